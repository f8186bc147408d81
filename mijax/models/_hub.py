"""Models of the Hugging Face hub, and revisions of models."""

from pathlib import Path

from mijax._errors import LoadError, nearest
from mijax.io.internal import download

FILES = (
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)
WORDS = (
    "config.json, model.safetensors (or all model-*.safetensors with "
    "model.safetensors.index.json) and tokenizer.json"
)

# Downloaded only without safetensors, since many repositories have both.
OF_TORCH = (
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "pytorch_model-*.bin",
)


def download_model(hub_id: str, revision: str | None = None) -> Path:
    """Downloads a model's files, or finds them in the cache; see `io._hub`."""
    folder = download(hub_id, FILES, files=WORDS, revision=revision)
    if any(folder.glob("*.safetensors")):
        return folder
    return download(hub_id, (*FILES, *OF_TORCH), files=WORDS, revision=revision)


def revision_in(folder: Path, revision: str) -> Path:
    """Find the folder of a revision.

    Raises:
        LoadError: there is none of that name.
    """
    found = folder / revision
    if not found.is_dir():
        names = [one.name for one in folder.iterdir() if one.is_dir()]
        raise LoadError(
            f"{folder} has no revision '{revision}': in a local folder, revisions are "
            f"subfolders.{nearest(revision, names)}"
        )
    return found


def refuse_revision(revision: str | None, name: str) -> None:
    """Raise if a revision is requested for a model with a single version.

    Raises:
        LoadError: a revision.
    """
    if revision is not None:
        raise LoadError(
            f"'{name}' has no revisions: only models on the hub and folders with one "
            f"subfolder per revision have them. Leave out revision={revision!r}."
        )
