"""Images that excite a unit most, with the pixels that it sees."""

from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import mijax
from mijax import viz
from mijax.models import ImageModel

from ._images import Images

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Box = tuple[int, int, int, int]


def exciting(
    loaded: ImageModel,
    images: Images,
    inputs: Float[np.ndarray, "image channel row column"],
    found: Float[np.ndarray, "image unit"],
    units: dict[str, tuple[int, ...]],
    *,
    site: str,
    count: int,
    title: str,
) -> "Figure":
    """Draw the images in which some units are most active, on average over the map.

    The frame is the receptive field of the most active place: the pixels that its value
    depends on. There is none where that is the whole image.

    Args:
        loaded: the model.
        images: the images.
        inputs: the same, preprocessed.
        found: mean activation of each unit in each image.
        units: for each label the index of a unit, its layer and its channel.
        site: the site of these layers.
        count: number of images of each unit.
        title: title of the picture.
    """
    rows, boxes, captions = {}, {}, {}
    for label, (index, layer, channel) in units.items():
        order = np.argsort(-found[:, index], kind="stable")[:count]
        shown = [loaded.input.pixels(inputs[i]) for i in order]
        rows[label] = shown
        boxes[label] = [
            field(loaded.model, inputs[i], site, layer, jnp.int32(channel))
            for i in order
        ]
        captions[label] = [images.names[int(images.labels[i])][:16] for i in order]
    return viz.image_grid(rows, boxes=boxes, captions=captions, title=title)


def field(
    model: Any, image: np.ndarray, site: str, layer: int, channel: Array
) -> Box | None:
    """Return the receptive field of the most active place of a unit."""
    slope = np.asarray(_slope(model, jnp.asarray(image), site, layer, channel))
    seen = (slope != 0).any(0)
    if not seen.any():
        return None
    rows, columns = (np.flatnonzero(seen.any(axis)) for axis in (1, 0))
    box = (int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)
    return None if box == (0, 0, *seen.shape) else box


@eqx.filter_jit
def _slope(
    model: Any, image: Array, site: str, layer: int, channel: Array
) -> Float[Array, "channel row column"]:
    """Return the gradient of the largest activation of a unit."""

    def largest(image: Array) -> Array:
        _, acts = mijax.harvest(model, want=[site])(image)
        return acts[site][layer][channel].max()

    return jax.grad(largest)(image)
