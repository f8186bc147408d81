"""A detector, a photo, and the objects that it finds there."""

from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image

import mijax
import mijax.experiment
from mijax._errors import ConfigError
from mijax.io import digest
from mijax.models import (
    COCO_NAMES,
    Detections,
    Letterbox,
    Yolo26Spec,
    detections,
    init_image_model,
    load_image_model,
)

TINY = "tiny"
TINY_SPEC = Yolo26Spec(width=1 / 32, classes=3)
OVERLAP, MOST = 0.5, 20


class Scene(NamedTuple):
    """What is looked into.

    Attributes:
        model: the detector.
        input: its preprocessing.
        photo: the photo.
        x: the photo as the model's input.
        first: maps of the first convolution.
        stages: maps of every stage.
        found: all objects in the photo.
        explained: index in `found` of each object whose units are measured.
        names: what each explained object is called.
    """

    model: Any
    input: Letterbox
    photo: UInt8[np.ndarray, "row column channel"]
    x: Float[Array, "channel row column"]
    first: Float[np.ndarray, "channel row column"]
    stages: list[np.ndarray]
    found: Detections
    explained: list[int]
    names: list[str]

    @property
    def targets(self) -> "Targets":
        """What metrics read for each explained object."""
        boxes = self.input.to_input(self.found.boxes, self.photo.shape)
        i = self.explained
        return Targets(
            jnp.asarray(self.found.anchors[i]),
            jnp.asarray(self.found.classes[i]),
            jnp.asarray(boxes[i]),
        )


class Targets(NamedTuple):
    """What metrics read for each object.

    Attributes:
        anchor: its anchor.
        label: its class.
        box: its box in the model's input.
    """

    anchor: Array
    label: Array
    box: Array

    def logits(self, output: Any) -> Float[Array, " object"]:
        """Return the class logit of each object at its anchor."""
        return output.logits[self.anchor, self.label]

    def scores(self, output: Any) -> Float[Array, " object"]:
        """Return the best score of each object's class in boxes that overlap its box.

        Where the anchor of an object gives up, another one may still find it.
        """
        near = jax.vmap(lambda box: overlap(output.boxes, box) >= OVERLAP)(self.box)
        near = near.at[jnp.arange(len(near)), self.anchor].set(True)
        logits = output.logits[:, self.label].T
        return jax.nn.sigmoid(jnp.where(near, logits, -jnp.inf)).max(axis=1)


def overlap(
    boxes: Float[Array, "anchor 4"], box: Float[Array, " 4"]
) -> Float[Array, " anchor"]:
    """Return the area of intersection over the area of union with one box."""
    low = jnp.maximum(boxes[:, :2], box[:2])
    high = jnp.minimum(boxes[:, 2:], box[2:])
    both = jnp.clip(high - low, 0).prod(axis=1)
    sizes = jnp.clip(boxes[:, 2:] - boxes[:, :2], 0).prod(axis=1)
    union = sizes + (box[2:] - box[:2]).prod() - both
    return both / jnp.maximum(union, 1e-9)


def opened(
    run: mijax.experiment.Run,
    *,
    model: str,
    weights: str | None,
    photo: str | None,
    side: int,
    least: float,
    objects: int,
    seed: int,
) -> Scene:
    """Open the model and the photo, and detect objects.

    Args:
        run: where digests of the files go.
        model: name of the detector, or `tiny` for a small one with random weights.
        weights: file of its weights.
        photo: the picture; noise for `tiny`.
        side: side of the model's input.
        least: least score of an object.
        objects: number of objects that are explained.
        seed: of random weights and noise.

    Raises:
        ConfigError: a file that is not given, or a photo without objects.
    """
    box = Letterbox(side)
    if model == TINY:
        weights_of = init_image_model(TINY_SPEC, jax.random.key(seed))
        # Larger than usual, so that units have effects that rounding does not hide.
        detector = jax.tree.map(lambda w: 2 * w if eqx.is_array(w) else w, weights_of)
        draw = np.random.default_rng(seed)
        pixels = draw.integers(0, 256, (48, 64, 3)).astype(np.uint8)
    elif weights is None or photo is None:
        raise ConfigError(
            f"Give --weights, the weights of {model} (.safetensors), and --photo, a "
            "picture (.jpg or .png)."
        )
    else:
        loaded = load_image_model(model, weights)
        with Image.open(photo) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        detector = loaded.model
        run.weights(model, loaded.digest)
        run.data("photo", digest([Path(photo)]))
    x = box(pixels)
    output, first, stages = _looked(detector, x)
    found = detections(output, input=box, shape=pixels.shape, least=least, most=MOST)
    if not len(found):
        raise ConfigError(
            f"The detector finds nothing with a score of {least} or more: give another "
            "photo, or a lower least."
        )
    explained = list(range(min(objects, len(found))))
    return Scene(
        detector,
        box,
        pixels,
        x,
        np.asarray(first),
        [np.asarray(maps) for maps in stages],
        found,
        explained,
        named(found, explained),
    )


@eqx.filter_jit
def _looked(model: Any, x: Array) -> tuple[Any, Array, tuple[Array, ...]]:
    """Return the output, and the maps of the first convolution and of all stages."""
    output, acts = mijax.harvest(model, want=["conv", "stage"])(x)
    return output, acts["conv"][0], acts["stage"]


def named(found: Detections, explained: list[int]) -> list[str]:
    """Return a name for each object; several of one class are numbered."""
    words = [class_name(found.classes[i]) for i in explained]
    return [
        f"{word} {words[:i].count(word) + 1}" if words.count(word) > 1 else word
        for i, word in enumerate(words)
    ]


def class_name(label: int) -> str:
    """Return the name of a class."""
    return COCO_NAMES[label]
