"""Folders of the Hugging Face hub, from its cache where they are there."""

import re
from pathlib import Path

from mijax._errors import LoadError, NetworkError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
FILES = (
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*.safetensors",
    "tokenizer.json",
)


def download(hub_id: str) -> Path:
    """Downloads a model's files, or finds them in the cache.

    Args:
        hub_id: "org/name".

    Returns:
        The folder.

    Raises:
        LoadError: the hub has no such model, or it needs an agreement.
        NetworkError: the hub cannot be reached.
    """
    from huggingface_hub import errors, snapshot_download  # noqa: PLC0415

    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(FILES)))
    except (errors.RepositoryNotFoundError, errors.GatedRepoError) as error:
        raise LoadError(
            f"The hub gives no model '{hub_id}': it does not exist, is private, or its "
            "licence was not accepted. Check the name, or run `hf auth login`."
        ) from error
    except Exception as error:  # those of its transport differ between versions
        raise NetworkError(
            f"Cannot download '{hub_id}' ({type(error).__name__}). Where there is a "
            f"network, put config.json, model.safetensors (or all model-*.safetensors "
            f"with model.safetensors.index.json) and tokenizer.json of "
            f"https://huggingface.co/{hub_id} into one folder, and load that folder."
        ) from error
