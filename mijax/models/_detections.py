"""Objects that a detector finds in one image."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from mijax._errors import ConfigError
from mijax.models._letterbox import Letterbox


@dataclasses.dataclass(frozen=True)
class Detections:
    """Objects in one image, the highest score first.

    Attributes:
        boxes: left, top, right, bottom in pixels of the image.
        scores: sigmoid of the class logit.
        classes: index of the class.
        anchors: index of the anchor: `output.logits[anchor, class]` is the logit that
            a metric reads.
    """

    boxes: Float[np.ndarray, "object 4"]
    scores: Float[np.ndarray, " object"]
    classes: Int[np.ndarray, " object"]
    anchors: Int[np.ndarray, " object"]

    def __len__(self) -> int:
        return len(self.scores)


def detections(
    output: Any,
    *,
    input: Letterbox,
    shape: tuple[int, ...],
    least: float = 0.25,
    most: int = 300,
) -> Detections:
    """Return the objects in one image from the output of a detector without NMS.

    The anchors with the highest class logits are kept, `most` of them, and of their
    logits the `most` highest, so one anchor may give several classes.

    Args:
        output: what the model returns for one image, `DetectorOutput`.
        input: preprocessing of the image.
        shape: shape of the image, rows and columns first.
        least: least score.
        most: largest number of objects.

    Returns:
        The objects.

    Raises:
        ConfigError: a least score that is not from 0 to 1, or no objects.

    Examples:
        >>> import jax, jax.numpy as jnp, mijax
        >>> key, box = jax.random.key(0), mijax.models.Letterbox(size=64)
        >>> model = mijax.models.init_image_model("yolo26n", key)
        >>> output = model(box(jnp.ones((48, 64, 3))))
        >>> found = detections(output, input=box, shape=(48, 64), least=0.0, most=5)
        >>> found.boxes.shape
        (5, 4)
    """
    if not 0 <= least <= 1 or most < 1:
        raise ConfigError(
            f"least is {least} and most is {most}; give a score from 0 to 1 and at "
            "least one object."
        )
    logits = jnp.asarray(output.logits)
    most = min(most, len(logits))
    _, kept = jax.lax.top_k(logits.max(axis=1), most)
    values, flat = jax.lax.top_k(logits[kept].reshape(-1), most)
    anchors, classes = np.asarray(kept)[flat // logits.shape[1]], flat % logits.shape[1]
    scores = np.asarray(jax.nn.sigmoid(values))
    seen = scores >= least
    boxes = input.to_image(np.asarray(output.boxes)[anchors], shape)
    return Detections(
        boxes[seen], scores[seen], np.asarray(classes)[seen], anchors[seen]
    )
