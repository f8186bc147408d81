"""Models of several towers: the tensors of each, and classifiers of images by texts."""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from mijax._errors import LoadError
from mijax.core import site
from mijax.io import Tensors
from mijax.models._family import Family, assemble, listed
from mijax.models._parts import Placing
from mijax.models._vit import VisionTransformer
from mijax.nn import Transformer

Names = tuple[str, ...]


class Tower:
    """The tensors of one tower.

    Args:
        source: the file.
        start: what names of the tower begin with.
        renamed: the name under which the tower's family knows a tensor.
    """

    def __init__(
        self,
        source: Tensors,
        start: Names,
        renamed: Callable[[str], str] = lambda name: name,
    ) -> None:
        self.source, self.path, self.files = source, source.path, source.files
        self.names = {
            renamed(name): name for name in source.shapes if name.startswith(start)
        }
        self.shapes: Mapping[str, tuple[int, ...]] = {
            name: source.shapes[real] for name, real in self.names.items()
        }

    def read(self, name: str) -> np.ndarray:
        """Read one tensor."""
        return self.source.read(self.names[name])


def read_tower(
    family: Family,
    spec: Any,
    tower: Tensors,
    dtype: DTypeLike,
    *,
    place: Placing | None = None,
) -> Any:
    """Build one tower from its tensors.

    Raises:
        LoadError: a tensor is missing, unused or of the wrong shape.
    """
    assert family.table is not None
    tensors = tower if family.renamed is None else family.renamed(tower)
    return assemble(family, spec, tensors, family.table(spec), dtype, place=place)


def read_pair(
    source: Tensors,
    spec: Any,
    families: tuple[Family, Family],
    names: Mapping[str, Names],
    scalars: Names,
    dtype: DTypeLike,
) -> tuple[VisionTransformer, Transformer, list[Array]]:
    """Read an image tower, a text tower and numbers.

    Args:
        source: the file.
        spec: has a spec for each tower, `vision` and `text`.
        families: those of the towers.
        names: what names of each tower begin with.
        scalars: names of the numbers.
        dtype: precision of the weights.

    Returns:
        Both towers, and the numbers.

    Raises:
        LoadError: a tensor is missing, unused or of the wrong shape.
    """
    towers = {name: Tower(source, start) for name, start in names.items()}
    used = set(scalars).union(*(tower.shapes for tower in towers.values()))
    if unused := sorted(source.shapes.keys() - used):
        raise LoadError(
            f"{source.path}: unused {listed(unused)}. This model has names that begin "
            f"with {', '.join(sum(names.values(), ()))}, and {', '.join(scalars)}."
        )
    for name in scalars:
        if source.shapes.get(name) not in ((), (1,)):
            raise LoadError(f"{source.path}: missing '{name}', one number.")
    vision = read_tower(families[0], spec.vision, towers["vision"], dtype)
    text = read_tower(families[1], spec.text, towers["text"], dtype)
    read = [jnp.asarray(source.read(name).reshape(()), dtype) for name in scalars]
    return vision, text, read


class ZeroShot(eqx.Module):
    """A classifier of images by texts; its output is the site `logits`.

    Attributes:
        vision: the image tower.
        weight: features of each class, times the factor of similarities.
        bias: added to every logit, or `None`.
    """

    vision: VisionTransformer
    weight: Float[Array, "class feature"]
    bias: Float[Array, ""] | None = None

    def __call__(
        self, image: Float[Array, "channel row column"]
    ) -> Float[Array, " class"]:
        """Return the logits of one preprocessed image."""
        features = site("features", unit(self.vision(image)), "feature")
        logits = self.weight @ features
        logits = logits if self.bias is None else logits + self.bias
        return site("logits", logits, "class")


def zero_shot(
    vision: VisionTransformer,
    text_features: Callable[[Any], Array],
    tokens: Any,
    log_scale: Float[Array, ""],
    bias: Float[Array, ""] | None = None,
) -> ZeroShot:
    """Build a classifier from the token ids of each class."""
    features = jax.vmap(text_features)(tokens)
    return ZeroShot(vision, jnp.exp(log_scale) * features, bias)


def unit(x: Float[Array, " feature"]) -> Float[Array, " feature"]:
    """Return a vector of length 1."""
    return x / jnp.linalg.norm(x)
