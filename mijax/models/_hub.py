"""Models of the Hugging Face hub."""

from pathlib import Path

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


def download_model(hub_id: str) -> Path:
    """Downloads a model's files, or finds them in the cache; see `io._hub`."""
    return download(hub_id, FILES, files=WORDS)
