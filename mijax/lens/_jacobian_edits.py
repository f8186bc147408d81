"""Interventions along the directions of a Jacobian lens, as edits."""

import warnings
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mijax._errors import ConfigError, ShapeError
from mijax.core import (
    AbstractEdit,
    AbstractModel,
    Add,
    Patch,
    PerPrompt,
    Project,
    Site,
    capture,
    compose,
)
from mijax.core.internal import as_tokens, checked, opened, padded_lengths
from mijax.lens._jacobian import JacobianLens

# |cos| between two directions at which a swap warns, and raises.
CLOSE, SAME = 0.99, 0.999


@checked
def steer_concept(
    lens: JacobianLens,
    model: AbstractModel,
    tokens: Any,
    concept: int,
    *,
    layers: Sequence[int],
    alpha: float = 4.0,
    position: Any = None,
) -> Any:
    r"""Add a token's direction, in units of the stream.

    $h \leftarrow h + \alpha\, \mathrm{median}_t \lVert h_t \rVert\, \hat v$. The median
    over a prompt's positions comes from the clean run at each layer, so the same edit
    works in generation and sweeps. As a control, use a random direction with the same
    norm.

    Args:
        lens: the lens.
        model: the model.
        tokens: the prompts to steer.
        concept: id of the token.
        layers: layers whose output to steer.
        alpha: strength in median norms; negative values steer away.
        position: position, as for `Add(...).at`; every position by default.

    Returns:
        Edits for `run`, `generate` and `sweep`.

    Raises:
        ShapeError: a layer or token that the model does not have.

    Examples:
        >>> import jax, mijax
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> lens = JacobianLens(jnp.eye(32)[None].repeat(2, 0), prompts=1)
        >>> edit = steer_concept(lens, model, [5, 6, 7], 9, layers=[1])
        >>> mijax.run(model, [5, 6, 7], edit).shape
        (3, 64)
    """
    vectors = _vectors(lens, model, [concept], layers)[:, 0]
    units = vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)
    _, given = opened(model, tokens)
    stream = capture(model, given, Site("resid_post", layer=list(layers)))
    norms = np.array(jnp.linalg.norm(stream.astype(jnp.float32), axis=-1))
    lengths = padded_lengths(given, norms.shape[-1])
    if lengths is not None:
        padding = np.arange(norms.shape[-1]) >= np.asarray(lengths)[:, None]
        norms = np.where(padding[:, None], np.nan, norms)
    # As in torch, the median is the lower of two middle values.
    median = np.nanquantile(norms, 0.5, axis=-1, method="lower")
    batched = as_tokens(given).ndim == 2
    placed = []
    for i, layer in enumerate(layers):
        step = alpha * median[..., i, None] * np.asarray(units[i])
        value = PerPrompt(step) if batched else step
        placed.append(Add(value).at("resid_post", layer=layer, position=position))
    return compose(*placed)


@checked
def ablate_concepts(
    lens: JacobianLens,
    model: AbstractModel,
    concepts: Any,
    *,
    layers: Sequence[int],
    position: Any = None,
) -> Any:
    r"""Remove the span of token directions: $h \leftarrow h - Q Q^\top h$.

    $Q$ is an orthonormal basis of the span. Directions are far from orthogonal, so
    removing them one by one would bring back parts of the earlier ones.

    Args:
        lens: the lens.
        model: the model.
        concepts: ids of the tokens.
        layers: layers whose output to edit.
        position: position to edit; every position by default.

    Returns:
        Edits for `run`, `generate` and `sweep`.

    Raises:
        ShapeError: a layer or token that the model does not have, or linearly
            dependent directions.
    """
    vectors = _vectors(lens, model, concepts, layers)
    at = {"position": position}
    placed = [
        Project(each).at("resid_post", layer=layer, **at)
        for each, layer in zip(vectors, layers, strict=True)
    ]
    return compose(*placed)


@checked
def swap_concepts(
    lens: JacobianLens,
    model: AbstractModel,
    source: int,
    target: int,
    *,
    layers: Sequence[int],
    alpha: float = 1.0,
    position: Any = None,
) -> Any:
    r"""Swap two tokens' coordinates at one layer.

    $h \leftarrow h + \alpha V (\sigma(c) - c)$ with $V = [v_s, v_t]$ and $c = V^+ h$.
    Coordinates are read from the run itself, so a second swap at a later layer would
    undo the first, and several layers raise an error. `clamp_concepts` sets the swapped
    coordinates from the clean run at any number of layers.

    Args:
        lens: the lens.
        model: the model.
        source: id of the token to replace.
        target: id of the token to put in its place.
        layers: a list with the one layer whose output to edit.
        alpha: strength; 2 is the paper's "double strength".
        position: position to edit; every position by default.

    Returns:
        An edit for `run`, `generate` and `sweep`.

    Raises:
        ConfigError: several layers.
        ShapeError: directions that are nearly parallel, or a layer or token that the
            model does not have.

    Warns:
        UserWarning: directions whose cosine is 0.99 or more.
    """
    if len(layers) != 1:
        raise ConfigError(
            f"A swap at {len(layers)} layers would undo itself: give one layer, or use "
            "clamp_concepts."
        )
    vectors = _pair(lens, model, source, target, layers)[0]
    edit = _Exchange(vectors, jnp.linalg.pinv(vectors.T), jnp.float32(alpha))
    return edit.at("resid_post", layer=layers[0], position=position)


@checked
def clamp_concepts(
    lens: JacobianLens,
    model: AbstractModel,
    tokens: Any,
    source: int,
    target: int,
    *,
    layers: Sequence[int],
    alpha: float = 1.0,
) -> Any:
    r"""Set two tokens' coordinates to their swapped values in the clean run.

    $h \leftarrow h + \alpha V (\sigma(V^+ h_{\text{clean}}) - V^+ h)$ at every layer of
    a band; at $\alpha = 1$ a second application changes nothing.

    Args:
        lens: the lens.
        model: the model.
        tokens: the prompts, run once without edits.
        source: id of the token to replace.
        target: id of the token to put in its place.
        layers: layers whose output to edit.
        alpha: fraction of the way to the new coordinates.

    Returns:
        Edits for `run` and `sweep` on the same prompts.

    Raises:
        ShapeError: directions that are nearly parallel, or a layer or token that the
            model does not have.

    Warns:
        UserWarning: directions whose cosine is 0.99 or more.
    """
    pairs = _pair(lens, model, source, target, layers)
    _, given = opened(model, tokens)
    clean = Patch(capture(model, given, "resid_post")).bind(Site("resid_post"))
    placed = []
    for vectors, layer in zip(pairs, layers, strict=True):
        inverse = jnp.linalg.pinv(vectors.T)
        edit = _Exchange(vectors, inverse, jnp.float32(alpha), clean)
        placed.append(edit.at("resid_post", layer=layer))
    return compose(*placed)


class _Exchange(AbstractEdit):
    """Swap two coordinates, with values from this run or from a clean one."""

    vectors: Float[Array, "2 embed"]
    inverse: Float[Array, "2 embed"]
    alpha: Float[Array, ""]
    clean: Patch | None = None

    def check_operand(self, spec: Any, rows: range, batch: tuple[int, ...]) -> None:
        """Raise if the clean run is for other prompts."""
        if self.clean is not None:
            self.clean.check_operand(spec, rows, batch)

    def __call__(self, x: Float[Array, "rows ..."], place: Any) -> Array:
        """Return the rows with swapped coordinates."""
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        now = wide @ self.inverse.T
        other = now
        if self.clean is not None:
            other = self.clean(x, place).astype(wide.dtype) @ self.inverse.T
        goal = other[..., ::-1]
        return (wide + self.alpha * (goal - now) @ self.vectors).astype(x.dtype)


def _vectors(
    lens: JacobianLens, model: AbstractModel, concepts: Any, layers: Sequence[int]
) -> Float[Array, "chosen token embed"]:
    """Return token directions at some layers."""
    chosen = np.asarray(layers)
    fine = chosen.ndim == 1 and chosen.size and chosen.dtype.kind in "iu"
    if not fine or chosen.min() < 0 or chosen.max() >= model.n_layers:
        raise ShapeError(
            f"Layers must be a list of indices from 0 to {model.n_layers - 1}, got "
            f"{layers!r}."
        )
    return lens.vectors(model, concepts)[chosen]


def _pair(
    lens: JacobianLens,
    model: AbstractModel,
    source: int,
    target: int,
    layers: Sequence[int],
) -> Float[Array, "chosen 2 embed"]:
    """Return two tokens' directions; raise if they are nearly parallel."""
    vectors = _vectors(lens, model, [source, target], layers)
    units = vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)
    cosines = np.abs(np.asarray((units[:, 0] * units[:, 1]).sum(-1)))
    worst = int(cosines.argmax())
    if not cosines[worst] < SAME:
        raise ShapeError(
            f"Directions of tokens {source} and {target} at layer {layers[worst]} have "
            f"a cosine of {cosines[worst]:.4f}: give tokens that are farther apart."
        )
    if cosines[worst] >= CLOSE:
        warnings.warn(
            f"Directions of tokens {source} and {target} at layer {layers[worst]} have "
            f"a cosine of {cosines[worst]:.4f}, so swaps make large changes.",
            UserWarning,
            stacklevel=3,
        )
    return vectors
