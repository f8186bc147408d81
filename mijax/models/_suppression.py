"""Non-maximum suppression: one box for each object."""

from typing import Any

import numpy as np
from jaxtyping import Float

from mijax._errors import ConfigError
from mijax.models._detections import Detections
from mijax.models._letterbox import Letterbox


def non_max_suppression(
    output: Any,
    *,
    input: Letterbox,
    shape: tuple[int, ...],
    least: float = 0.25,
    overlap: float = 0.7,
    most: int = 300,
) -> Detections:
    """Return the objects in one image from the output of a detector such as YOLO11.

    Each anchor has the class with its highest logit. The anchor with the highest score
    is kept, anchors of its class whose boxes overlap its box are dropped, and so on.
    The overlap of two boxes is the area of their intersection divided by the area of
    their union. This runs in NumPy, outside the model.

    Args:
        output: output of the model for one image, `DetectorOutput`.
        input: preprocessing of the image.
        shape: shape of the image, rows and columns first.
        least: scores have to be above this.
        overlap: largest overlap of two boxes of one class.
        most: largest number of objects.

    Returns:
        The objects.

    Raises:
        ConfigError: a score or an overlap that is not from 0 to 1, or no objects.

    Examples:
        >>> import jax, jax.numpy as jnp, mijax
        >>> key, box = jax.random.key(0), mijax.models.Letterbox(size=64)
        >>> spec = mijax.models.Yolo11Spec(width=1 / 32, classes=2)
        >>> model = mijax.models.init_image_model(spec, key)
        >>> output = model(box(jnp.ones((48, 64, 3))))
        >>> found = non_max_suppression(
        ...     output, input=box, shape=(48, 64), least=0.0, most=5
        ... )
        >>> found.boxes.shape
        (5, 4)
    """
    if not (0 <= least <= 1 and 0 <= overlap <= 1) or most < 1:
        raise ConfigError(
            f"least is {least}, overlap {overlap} and most {most}; give a score and an "
            "overlap from 0 to 1, and at least one object."
        )
    logits = np.asarray(output.logits, np.float32)
    boxes = np.asarray(output.boxes, np.float32)
    classes, best = logits.argmax(1), logits.max(1)
    scores = 1 / (1 + np.exp(-best))
    left = np.argsort(-best, kind="stable")
    left, kept = left[scores[left] > least], []
    while len(left) and len(kept) < most:
        first, left = left[0], left[1:]
        kept.append(first)
        same = classes[left] == classes[first]
        left = left[~(same & (_overlaps(boxes[first], boxes[left]) > overlap))]
    anchors = np.array(kept, np.int32)
    placed = input.to_image(boxes[anchors], shape)
    return Detections(placed, scores[anchors], classes[anchors], anchors)


def _overlaps(
    one: Float[np.ndarray, "4"], others: Float[np.ndarray, "box 4"]
) -> Float[np.ndarray, " box"]:
    """Return intersection over union of one box with others."""
    corners = np.minimum(one[2:], others[:, 2:]), np.maximum(one[:2], others[:, :2])
    inside = np.maximum(corners[0] - corners[1], 0).prod(1)
    areas = (others[:, 2:] - others[:, :2]).prod(1) + (one[2:] - one[:2]).prod()
    return inside / np.maximum(areas - inside, np.finfo(np.float32).tiny)
