"""Dictionaries of the Hugging Face hub, from its cache where they are there."""

import re
from pathlib import Path

from mijax._errors import LoadError, NetworkError

HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:/(.+))?")
ROOT = (
    *("*.json", "*.yaml", "params.npz", "ae.pt"),
    *("*.safetensors",),
)


def download(name: str) -> Path:
    """Downloads the files of a dictionary, or finds them in the cache.

    Args:
        name: "org/name", or "org/name/folder/in/it" or ".../file".

    Returns:
        The folder or file.

    Raises:
        LoadError: the hub has no such thing, or it needs an agreement.
        NetworkError: the hub cannot be reached.
    """
    from huggingface_hub import errors, snapshot_download  # noqa: PLC0415

    found = HUB_ID.fullmatch(name)
    assert found is not None
    hub_id, part = found[1], found[2]
    patterns = list(ROOT)
    if part:
        above = str(Path(part).parent)
        config = "config.yaml" if above == "." else f"{above}/config.yaml"
        patterns = [part, f"{part}/*", config]
    try:
        folder = Path(snapshot_download(hub_id, allow_patterns=patterns))
    except (errors.RepositoryNotFoundError, errors.GatedRepoError) as error:
        raise LoadError(
            f"The hub gives no '{hub_id}': it does not exist, is private, or its "
            "licence was not accepted. Check the name, or run `hf auth login`."
        ) from error
    except Exception as error:  # those of its transport differ between versions
        raise NetworkError(
            f"Cannot download '{name}' ({type(error).__name__}). Where there is a "
            f"network, put its files of https://huggingface.co/{hub_id} into one "
            "folder, and load that folder."
        ) from error
    return folder / part if part else folder
