"""Weight processing of the model that a dictionary was trained on."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mijax._errors import FrameError
from mijax.core import AbstractModel, Site

# TransformerLens' arguments, by which SAELens says how it loads a model.
ARGUMENTS = {
    "fold_ln": "fold_norm",
    "center_writing_weights": "centre_writing",
    "center_unembed": "centre_unembedding",
    "fold_value_biases": "fold_value_biases",
}
STREAM = ("embed", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
# Sites whose activations a step changes.
CHANGED = {
    "fold_norm": ("mlp_in", "resid_final"),
    "centre_writing": STREAM,
    "centre_unembedding": (),
    "fold_value_biases": ("v", "z"),
}


def processing_in(arguments: Any) -> tuple[str, ...] | None:
    """Return the weight processing that arguments of TransformerLens ask for.

    SAELens asks for none by default; `None` without arguments is not known.
    """
    if not isinstance(arguments, Mapping):
        return None
    return tuple(step for key, step in ARGUMENTS.items() if arguments.get(key) is True)


def arguments_of(processing: tuple[str, ...]) -> dict[str, bool]:
    """Return the arguments of TransformerLens for a weight processing."""
    return {key: step in processing for key, step in ARGUMENTS.items()}


def effective(processing: tuple[str, ...], site: Site | None) -> tuple[str, ...]:
    """Return the steps that change activations of a site, or of any site."""
    return tuple(
        step
        for step in processing
        if (site is None and CHANGED.get(step) != ())
        or (site is not None and site.name in CHANGED.get(step, (site.name,)))
    )


def check_processing(
    processing: tuple[str, ...] | None,
    model: AbstractModel | None,
    site: Site | None,
    path: Path,
) -> None:
    """Refuse a model whose weights are processed in another way than a file says.

    Without a model, warn where the file says that weights were processed.

    Raises:
        FrameError: another weight processing.
    """
    if processing is None:
        return
    wanted = effective(processing, site)
    steps = ", ".join(f"mijax.nn.{step}" for step in wanted) or "nothing"
    if model is None:
        if wanted:
            warnings.warn(
                f"{path} was trained on activations of a model with processed weights "
                f"{wanted}: apply {steps} to the model, and give it to load(model=...) "
                "to check that.",
                stacklevel=3,
            )
        return
    frame = tuple(getattr(model, "frame", ()))
    if set(effective(frame, site)) != set(wanted):
        raise FrameError(
            f"{path} was trained on activations of a model with weight processing "
            f"{wanted}, the model's is {frame}: apply {steps} to the model as loaded."
        )
