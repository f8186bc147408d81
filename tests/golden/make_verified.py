"""Writes `mijax/models/verified.json`: how far each family is from its goldens.

For every family the largest difference of any logit, over all goldens that transformers
wrote of it, relative to the largest logit. `mijax models` shows it.
Run it again when a family or its golden changes; it takes a minute.

Needs mijax, and `tests` on the path.
"""

import datetime
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from family_weights import (  # noqa: E402
    ENCODER_DECODERS,
    ENCODERS,
    GOLDEN,
    VISION_LANGUAGE,
    write,
)

import mijax  # noqa: E402
from mijax import models  # noqa: E402

FILE = Path(mijax.__file__).parent / "models" / "verified.json"
FOLDERS = {"gpt2": "5.23.0", "llama": "5.23.0", "llama_tied": "5.23.0"}


def difference(folder: Path, golden: Path) -> tuple[str, float]:
    """Return the family of a golden, and how far its logits are."""
    arrays = np.load(golden)
    model, logits = models.load(folder).model, arrays["logits"]
    if "target" in arrays.files:
        ours = of_both_towers(model, arrays)
    else:
        tokens = jnp.asarray(np.atleast_2d(arrays["tokens"]), jnp.int32)
        ours = jax.vmap(lambda ids: model(ids)[0])(tokens)
    # A head of classes is read at the class token only.
    ours = np.asarray(ours).reshape(-1, logits.shape[-1])[
        : logits.size // logits.shape[-1]
    ]
    apart = np.abs(ours - logits.reshape(ours.shape)).max()
    name = json.loads((folder / "config.json").read_text())["model_type"]
    return name, float(apart / np.abs(logits).max())


def of_both_towers(model: Any, arrays: Any) -> Any:
    """Return the logits of an encoder-decoder, whose sources may have padding."""
    inputs = model.inputs(arrays["source"], arrays["target"])
    if "lengths" in arrays.files:
        inputs["length"] = jnp.asarray(arrays["lengths"], jnp.int32)
    return mijax.run(mijax.model(model, model.example), inputs)


def image_difference(folder: Path, golden: Path) -> tuple[str, float]:
    """Return the family of a golden of images and text, and how far its logits are."""
    arrays, worst = np.load(golden), 0.0
    loaded = models.load(folder, images=True)
    for which in ("one", "two"):
        tokens, logits = arrays[f"{which}.tokens"], arrays[f"{which}.logits"]
        prompt = {"tokens": tokens, "images": arrays[f"{which}.images"]}
        ours = loaded.model({k: jnp.asarray(v) for k, v in prompt.items()})
        worst = max(worst, float(np.abs(ours - logits).max() / np.abs(logits).max()))
    return golden.stem, worst


def main() -> None:
    """Compares every golden and writes the file."""
    jax.config.update("jax_default_matmul_precision", "highest")
    found: dict[str, tuple[float, str]] = {}

    def add(name: str, apart: float, version: str) -> None:
        worst = max(apart, found.get(name, (0.0, ""))[0])
        found[name] = (worst, version)

    for name, version in FOLDERS.items():
        add(*difference(HERE / "hf" / name, HERE / "hf" / f"{name}.npz"), version)
    folders = (GOLDEN, ENCODERS, ENCODER_DECODERS)
    for golden in sorted(file for at in folders for file in at.glob("*.npz")):
        with tempfile.TemporaryDirectory() as folder:
            add(*difference(write(Path(folder), golden.stem), golden), "5.24.0")
    for golden in sorted(VISION_LANGUAGE.glob("*.npz")):
        if "one.ids" in np.load(golden).files:
            with tempfile.TemporaryDirectory() as folder:
                write(Path(folder), golden.stem)
                add(*image_difference(Path(folder), golden), "5.24.0")
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    rows = {
        name: {
            "reference": f"transformers {version}",
            "difference": float(f"{apart:.1e}"),
            "date": date,
        }
        for name, (apart, version) in sorted(found.items())
    }
    FILE.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
