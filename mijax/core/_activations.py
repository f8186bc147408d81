"""`Activations`: a value for each site, in the order of computation."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax

from mijax._errors import SiteError, nearest


@jax.tree_util.register_pytree_with_keys_class
class Activations(Mapping[str, Any]):
    """A frozen mapping from names of sites to values, a pytree.

    `acts.z` and `acts["z"]` are the same. Names are in the order of computation.

    Args:
        values: a value for each name.

    Raises:
        SiteError: on reading a name that it does not hold.

    Examples:
        >>> acts = Activations({"resid_pre": 1.0, "z": 2.0})
        >>> acts.z, acts["resid_pre"], list(acts)
        (2.0, 1.0, ['resid_pre', 'z'])
    """

    def __init__(self, values: Mapping[str, Any]):
        object.__setattr__(self, "_values", dict(values))

    def __getitem__(self, name: str) -> Any:
        """Return the value of a site."""
        if name not in self._values:
            close = nearest(name, self._values) if self._values else " It is empty."
            raise SiteError(f"There are no activations of site {name!r}.{close}")
        return self._values[name]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        try:
            return self[name]
        except SiteError as error:
            raise AttributeError(str(error)) from None

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError("Activations are frozen: build a new mapping.")

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{k}={_short(v)}" for k, v in self._values.items())
        return f"Activations({shapes})"

    def tree_flatten_with_keys(self) -> Any:
        """Flatten to the values, in order."""
        keys = tuple(self._values)
        pairs = [(jax.tree_util.GetAttrKey(k), v) for k, v in self._values.items()]
        return pairs, keys

    def tree_flatten(self) -> Any:
        """Flatten to the values, in order."""
        return tuple(self._values.values()), tuple(self._values)

    @classmethod
    def tree_unflatten(cls, names: tuple[str, ...], values: Any) -> "Activations":
        """Put values back under their names."""
        return cls(dict(zip(names, values, strict=True)))


def _short(value: Any) -> str:
    """Write the shape of an array, or of each layer."""
    if isinstance(value, tuple):
        return f"({', '.join(map(_short, value))})"
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    return repr(value) if shape is None else f"{dtype}{list(shape)}"
