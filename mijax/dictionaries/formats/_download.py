"""Dictionaries of the Hugging Face hub."""

import re
from pathlib import Path

from mijax.io.internal import HUB_ID, download

PLACE = re.compile(rf"({HUB_ID.pattern})(?:/(.+))?")
ROOT = ("*.json", "*.yaml", "params.npz", "ae.pt", "*.safetensors")


def download_dictionary(name: str) -> Path:
    """Downloads the files of a dictionary, or finds them in the cache.

    Args:
        name: "org/name", or "org/name/folder/in/it" or ".../file".

    Returns:
        The folder or file.

    Raises:
        LoadError: the hub has no such thing, or it needs an agreement.
        NetworkError: the hub cannot be reached.
    """
    found = PLACE.fullmatch(name)
    assert found is not None
    hub_id, part = found[1], found[2]
    if not part:
        return download(hub_id, ROOT, files="its files")
    above = str(Path(part).parent)
    config = "config.yaml" if above == "." else f"{above}/config.yaml"
    patterns = (part, f"{part}/*", config)
    return download(hub_id, patterns, files=f"the files of '{part}'") / part
