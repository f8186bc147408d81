"""Composition of heads, read off the weights."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Float

from mijax.core import AbstractModel
from mijax.core.internal import checked
from mijax.lens._weights import heads_of
from mijax.lens._weights import through as read_through

Gram = Float[np.ndarray, "... head_dim head_dim"]


class Composition(eqx.Module):
    """How much heads read what earlier heads write, by what they read it for.

    Attributes:
        q: for their queries.
        k: for their keys.
        v: for their values.
    """

    q: Float[np.ndarray, "layer heads later_layer later_heads"]
    k: Float[np.ndarray, "layer heads later_layer later_heads"]
    v: Float[np.ndarray, "layer heads later_layer later_heads"]


class RandomComposition(NamedTuple):
    """What heads with random weights of the same shapes score.

    Attributes:
        mean: mean over draws, of every pair of layers.
        spread: standard deviation of one draw.
    """

    mean: Composition
    spread: Composition


class _Circuit(NamedTuple):
    """Factors of a product of matrices, through a space of head_dim."""

    inner: Float[np.ndarray, "*head embed head_dim"]
    gram: Gram


@checked
def composition(model: AbstractModel) -> Composition:
    r"""Scores the composition of every head with every head of a later layer.

    $$\frac{\lVert W_{QK}^{h_2\top} W_{OV}^{h_1} \rVert_F}
    {\lVert W_{QK}^{h_2} \rVert_F \lVert W_{OV}^{h_1} \rVert_F}$$

    for Q-composition, the same with $W_{QK}^{h_2}$ for K- and with $W_{OV}^{h_2}$ for
    V-composition (Elhage et al. 2021, "A Mathematical Framework",
    transformer-circuits.pub/2021/framework). Norms are taken of head_dim x head_dim
    matrices: $\lVert A M B \rVert_F^2 = \mathrm{tr}(A^\top A\, M\, B B^\top M^\top)$.

    Readers hold the weight of the norm before them and the centring of LayerNorm; its
    scale, biases and rotary positions are left out. Scores of random matrices are not
    0: compare with `random_composition`.

    Args:
        model: a transformer.

    Returns:
        Scores between 0 and 1; 0 where the second head is not of a later layer.

    Raises:
        SiteError: the weights of its heads are not known.

    Examples:
        >>> import jax, mijax
        >>> model = mijax.testing.tiny_attention_only(jax.random.key(0))
        >>> found = composition(model)
        >>> found.k.shape, bool((found.k[1] == 0).all())
        ((2, 4, 2, 4), True)
    """
    heads = heads_of(model, dtype=np.float64)
    layers, count = heads.q.shape[:2]
    found = np.zeros((3, layers, count, layers, count))
    for layer in range(layers - 1):
        write = heads.v[layer], heads.o[layer]
        for later in range(layer + 1, layers):
            read = heads.q[later], heads.k[later], heads.v[later], heads.o[later]
            pairs = tuple(w[:, None] for w in write), tuple(r[None] for r in read)
            found[:, layer, :, later] = _scores(*pairs)
    return Composition(*found)


@checked
def random_composition(
    model: AbstractModel, *, draws: int = 64, seed: int = 0
) -> RandomComposition:
    """Scores pairs of heads with random weights of the same shapes.

    The baseline of Elhage et al. 2021, "A Mathematical Framework". All four weights of
    both heads are drawn from a normal distribution; they read through the norms of the
    model.

    Args:
        model: a transformer, of which shapes and norms are taken.
        draws: pairs of heads, for each pair of layers.
        seed: of the draws.

    Returns:
        Mean and standard deviation, `[layer, 1, later_layer, 1]`, to compare with what
        `composition` returns; 0 where the second layer is not later.

    Raises:
        SiteError: the weights of its heads are not known.

    Examples:
        >>> import jax, mijax
        >>> model = mijax.testing.tiny_attention_only(jax.random.key(0))
        >>> random = random_composition(model)
        >>> above = (composition(model).k - random.mean.k)[0, :, 1]
        >>> bool((abs(above) < 6 * random.spread.k[0, :, 1]).all())
        True
    """
    heads, norm = heads_of(model), getattr(model.blocks, "norm_1")  # noqa: B009
    layers, _, embed, head_dim = heads.q.shape
    random = np.random.default_rng(seed)
    found = np.zeros((2, 3, layers, 1, layers, 1))

    def reader(layer: int) -> np.ndarray:
        one = jax.tree.map(lambda leaf: leaf[layer], norm)
        drawn = random.standard_normal((draws, embed, head_dim))
        return read_through(one, drawn, axis=1)

    def writer() -> np.ndarray:
        return random.standard_normal((draws, head_dim, embed))

    for layer in range(layers - 1):
        for later in range(layer + 1, layers):
            write = reader(layer), writer()
            read = (*(reader(later) for _ in range(3)), writer())
            drawn = _scores(write, read)
            found[0, :, layer, 0, later, 0] = drawn.mean(1)
            found[1, :, layer, 0, later, 0] = drawn.std(1)
    return RandomComposition(Composition(*found[0]), Composition(*found[1]))


def _scores(
    write: tuple[np.ndarray, ...], read: tuple[np.ndarray, ...]
) -> Float[np.ndarray, "kind *pair"]:
    """Q-, K- and V-composition of heads that write with heads that read.

    Args:
        write: `v` and `o` of the first heads, `[*pair, ...]`, broadcast.
        read: `q`, `k`, `v` and `o` of the second ones.
    """
    v, o = write
    q, k, later_v, later_o = read
    first = _gram(v)
    size = np.sqrt(_trace(first, o @ o.swapaxes(-1, -2)))
    outer = later_o @ later_o.swapaxes(-1, -2)
    kinds = (_Circuit(q, _gram(k)), _Circuit(k, _gram(q)), _Circuit(later_v, outer))
    found: list[Any] = []
    for kind in kinds:
        middle = o @ kind.inner
        product = middle @ kind.gram @ middle.swapaxes(-1, -2)
        whole = np.sqrt(_trace(_gram(kind.inner), kind.gram))
        found.append(np.sqrt(_trace(first, product)) / (size * whole))
    return np.stack(found)


def _gram(weight: np.ndarray) -> Gram:
    return weight.swapaxes(-1, -2) @ weight


def _trace(one: Gram, two: Gram) -> np.ndarray:
    """Trace of the product of two symmetric matrices, never below 0."""
    return np.maximum((one * two).sum((-1, -2)), 0)
