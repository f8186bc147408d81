"""Models with several towers: each tower's tensors, and zero-shot classifiers."""

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
# From the name of a tensor to its tower and its name there.
Owner = Callable[[str], tuple[str, str] | None]


class Tower:
    """The tensors of one tower.

    Args:
        source: the file.
        names: name in the file of each tensor, by the name that the tower's family
            knows.
    """

    def __init__(self, source: Tensors, names: Mapping[str, str]) -> None:
        self.source, self.path, self.files = source, source.path, source.files
        self.names = names
        self.shapes: Mapping[str, tuple[int, ...]] = {
            name: source.shapes[real] for name, real in names.items()
        }

    def read(self, name: str) -> np.ndarray:
        """Read one tensor."""
        return self.source.read(self.names[name])


def split(source: Tensors, owner: Owner, scalars: Names = ()) -> dict[str, Tower]:
    """Assign every tensor to a tower.

    Args:
        source: the file.
        owner: the tower of a tensor and its name there, `None` for an unknown name.
        scalars: tensors that belong to no tower, one number each.

    Returns:
        The towers.

    Raises:
        LoadError: an unused or duplicate tensor, or a missing number.
    """
    found: dict[str, dict[str, str]] = {}
    unused = []
    for name in sorted(source.shapes.keys() - set(scalars)):
        owned = owner(name)
        if owned is None:
            unused.append(name)
            continue
        tower, ours = owned
        if ours in found.setdefault(tower, {}):
            raise LoadError(
                f"{source.path}: '{name}' and '{found[tower][ours]}' are the same part "
                "of the model. Give a file of one model."
            )
        found[tower][ours] = name
    if unused:
        raise LoadError(
            f"{source.path}: unused {listed(unused)}. Use the config.json or the spec "
            "that belongs to these weights."
        )
    for name in scalars:
        if source.shapes.get(name) not in ((), (1,)):
            raise LoadError(f"{source.path}: missing '{name}', one number.")
    return {tower: Tower(source, names) for tower, names in found.items()}


def by_start(names: Mapping[str, Names]) -> Owner:
    """Return an owner that goes by what names begin with, and keeps them."""

    def owner(name: str) -> tuple[str, str] | None:
        found = (tower for tower, start in names.items() if name.startswith(start))
        tower = next(found, None)
        return None if tower is None else (tower, name)

    return owner


def part(towers: Mapping[str, Tower], name: str, source: Tensors) -> Tower:
    """Return a tower.

    Raises:
        LoadError: the file has none of its tensors.
    """
    if name not in towers:
        raise LoadError(
            f"{source.path}: missing every tensor of the part '{name}'. Give the "
            "weights of the whole model."
        )
    return towers[name]


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
    towers = split(source, by_start(names), scalars)
    vision = read_tower(families[0], spec.vision, part(towers, "vision", source), dtype)
    text = read_tower(families[1], spec.text, part(towers, "text", source), dtype)
    read = [jnp.asarray(source.read(name).reshape(()), dtype) for name in scalars]
    return vision, text, read


class ZeroShot(eqx.Module):
    """An image classifier with texts as classes; its output is the site `logits`.

    Attributes:
        vision: the image tower.
        weight: features of each class, times the similarity scale.
        bias: bias added to every logit, or `None`.
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
    """Return a vector with norm 1."""
    return x / jnp.linalg.norm(x)
