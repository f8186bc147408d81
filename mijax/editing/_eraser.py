"""Erasers: edits that remove linear information about a concept."""

import abc
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mijax._errors import ConfigError, FrameError, NotFiniteError, ShapeError, nearest
from mijax.core import AbstractEdit
from mijax.core.internal import check_linear_writes, checked
from mijax.editing._delta import Dense, LowRank
from mijax.editing._weight_edit import WeightEdit
from mijax.editing._weights import bare, read, weight_names

# Weight and bias that write each site.
WRITES = {
    "attn_out": ("blocks.attention.w_o", "blocks.attention.b_o"),
    "mlp_out": ("blocks.mlp.w_out", "blocks.mlp.b_out"),
}


class Eraser(AbstractEdit):
    r"""An affine edit that removes a few directions: $x \mapsto x - L R (x - \mu)$.

    It edits activations: place it with `.at`. Computed in float32.

    Attributes:
        left: $L$.
        right: $R$.
        mean: $\mu$, which the edit preserves; zero for a linear edit.

    Examples:
        >>> import jax, mijax
        >>> eraser = Eraser(jnp.eye(32)[:, :1], jnp.eye(32)[:1], jnp.ones(32))
        >>> eraser(jnp.full((1, 32), 3.0), None)[0, :3].tolist()
        [1.0, 3.0, 3.0]
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> edit = eraser.at("resid_post", layer=1)
        >>> mijax.run(model, jnp.array([5, 6, 7]), edit).shape
        (3, 64)
    """

    left: Float[Array, "embed rank"]
    right: Float[Array, "rank embed"]
    mean: Float[Array, " embed"]

    @property
    def rank(self) -> int:
        """Number of removed directions."""
        return self.left.shape[-1]

    @property
    def matrix(self) -> Float[Array, "embed embed"]:
        r"""The linear part, $I - L R$."""
        return jnp.eye(len(self.left)) - self.left @ self.right

    def __call__(self, x: Float[Array, "*rows embed"], place: Any) -> Array:
        """Erase the concept from the last axis."""
        if x.shape[-1] != self.left.shape[0]:
            raise ShapeError(
                f"The eraser was fitted to {self.left.shape[0]} features, but the "
                f"site's last axis has size {x.shape[-1]}."
            )
        wide = x.astype(jnp.float32)
        step = ((wide - self.mean) @ self.right.T) @ self.left.T
        return (wide - step).astype(x.dtype)

    def into(self, model: Any, site: str, *, layer: int) -> WeightEdit:
        """Erase the concept permanently from one layer's output, in the weights.

        The edited weights produce the same logits as this edit of activations at the
        site, up to rounding.

        Args:
            model: a model whose blocks add their outputs to the stream unchanged.
            site: `"mlp_out"` or `"attn_out"`.
            layer: the layer.

        Returns:
            The weight edit.

        Raises:
            ConfigError: a different site.
            FrameError: the eraser is affine and the model has no output biases.
            SiteError: the model has no such weights.
        """
        if site not in WRITES:
            raise ConfigError(
                f"Eraser.into takes the site {' or '.join(WRITES)}, got {site!r}."
                f"{nearest(site, WRITES)}"
            )
        lone = bare(model)
        check_linear_writes(lone, "Eraser.into")
        weight, bias = WRITES[site]
        matrix = read(lone, weight, layer).astype(jnp.float32)
        left = jnp.tensordot(matrix, self.right.T, 1)
        delta = LowRank(-left, self.left.T)
        edit = WeightEdit.on(lone, weight, delta, layer=layer)
        shift = lambda b: -((b - self.mean) @ self.right.T) @ self.left.T  # noqa: E731
        if bias not in weight_names(lone):
            move = shift(jnp.zeros_like(self.mean))
            if bool(jnp.abs(move).max() > 1e-6 * (1 + jnp.abs(self.mean).max())):
                raise FrameError(
                    f"An affine eraser needs the bias {bias!r}, which this model does "
                    "not have: fit the eraser with affine=False."
                )
            return edit
        value = read(lone, bias, layer).astype(jnp.float32)
        moved = WeightEdit.on(lone, bias, Dense(shift(value)), layer=layer)
        return edit.then(moved)


class AbstractErasure(eqx.Module):
    """A method that fits an eraser; see `LEACE`, `MeanProjection` and `INLP`."""

    example = "LEACE()"

    @abc.abstractmethod
    def fit(self, x: Float[np.ndarray, "example embed"], labels: np.ndarray) -> Any:
        """Fit an eraser to checked examples, in float64."""


@checked
def fit_eraser(x: Any, labels: Any, *, method: AbstractErasure) -> Any:
    """Fit an eraser for a concept.

    Args:
        x: activations, `[example, embed]`.
        labels: the concept: integers `[example]` for classes, or numbers `[example]` or
            `[example, k]`.
        method: `LEACE`, `MeanProjection` or `INLP` fit an `Eraser`, which is an edit;
            `OracleLEACE` and `Quadratic` fit erasers that need labels when applied.

    Returns:
        The eraser.

    Raises:
        ShapeError: activations and labels that do not match, or fewer than two
            examples.
        NotFiniteError: NaN or infinite activations.
        ConfigError: a kind of labels that the method does not support.

    Examples:
        >>> import jax
        >>> x = jax.random.normal(jax.random.key(0), (200, 8))
        >>> labels = (x[:, 0] + x[:, 1] > 0).astype(int)
        >>> from mijax.editing import LEACE
        >>> eraser = fit_eraser(x, labels, method=LEACE())
        >>> erased = eraser(x, None)
        >>> gap = erased[labels == 1].mean(0) - erased[labels == 0].mean(0)
        >>> eraser.rank, bool(jnp.abs(gap).max() < 1e-4)
        (1, True)
    """
    rows = np.asarray(x, np.float64)
    given = np.asarray(labels)
    if rows.ndim != 2 or given.shape[:1] != rows.shape[:1] or given.ndim not in (1, 2):
        raise ShapeError(
            "An eraser takes activations [example, embed] and labels [example] or "
            f"[example, k], got {rows.shape} and {given.shape}."
        )
    if len(rows) < 2:
        raise ShapeError(f"An eraser needs 2 examples or more, got {len(rows)}.")
    if not np.isfinite(rows).all() or not np.isfinite(given.astype(float)).all():
        raise NotFiniteError("Activations or labels are not finite.")
    return method.fit(rows, given)


def concept(labels: np.ndarray) -> Float[np.ndarray, "example k"]:
    """Return one column for each class; numbers are unchanged."""
    if labels.ndim == 2:
        return labels.astype(np.float64)
    if labels.dtype.kind == "f":
        return labels[:, None].astype(np.float64)
    return (labels[:, None] == np.unique(labels)).astype(np.float64)


def classes(labels: np.ndarray, what: str) -> np.ndarray:
    """Return labels as class indices, starting at 0.

    Raises:
        ConfigError: labels that are not integers.
    """
    if labels.ndim != 1 or labels.dtype.kind not in "iub":
        raise ConfigError(f"{what} takes class labels: integers [example].")
    return np.unique(labels, return_inverse=True)[1]


def eraser_of(left: np.ndarray, right: np.ndarray, mean: np.ndarray) -> Eraser:
    """Return an eraser in float32."""
    return Eraser(*(jnp.asarray(a, jnp.float32) for a in (left, right, mean)))
