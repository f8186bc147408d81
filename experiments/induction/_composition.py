"""Composition of heads, read off the weights (Elhage et al. 2021)."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mijax import viz
from mijax.experiment import Run
from mijax.nn import Attention, Transformer

from ._heads import Head, Roles
from ._scores import blocks, gain

KINDS = ("K", "Q", "V")
DRAWS = 16


def compose_heads(model: Transformer, *, roles: Roles, run: Run, seed: int) -> None:
    """Scores every head of layer 0 with every head of layer 1 and reports it."""
    with run.progress("composition of heads") as progress:
        block = blocks(model)
        weight = jnp.broadcast_to(gain(block.norm_1), block.attention.w_q.shape[:2])
        found = scores(block.attention, weight)
        drawn = baseline(block.attention, weight, seed=seed)
        excess = np.asarray(found) - drawn[:, None, None]
        progress(1, 1)
    before, best = roles.previous[0], roles.induction[0]
    names = [str(Head(0, head)) for head in range(excess.shape[1])]
    order = np.argsort(-excess[0], axis=None)
    rows = [
        [f"{names[one]} → {Head(1, two)}", *map(float, excess[:, one, two])]
        for one, two in (np.unravel_index(i, excess.shape[1:]) for i in order[:8])
    ]
    columns = ("heads", *(f"{kind}-composition" for kind in KINDS))
    run.table("Composition above random matrices, most K first", columns, rows)
    for kind, values in zip(KINDS, excess, strict=True):
        value = float(values[before.head, best.head])
        run.number(f"{kind.lower()}_composition", value, note=f"{before} → {best}")
    figure = viz.heatmaps(
        {f"{kind}-composition": v for kind, v in zip(KINDS, excess, strict=True)},
        x_labels=[str(Head(1, head)) for head in range(excess.shape[2])],
        y_labels=names,
        title="Composition of heads above random matrices",
        x="reads",
        y="writes",
        label="score minus baseline",
    )
    run.figure(
        "composition",
        figure,
        caption="Frobenius norm of the product of the "
        "circuits over the product of their norms.",
    )


@jax.jit
def scores(
    attention: Attention, weight: Float[Array, "layer embed"]
) -> Float[Array, "kind writes reads"]:
    r"""$\|W_1 W_2\| / (\|W_1\| \|W_2\|)$ for what layer 0 writes and layer 1 reads.

    Args:
        attention: stacked attention of two layers.
        weight: weight of the norm that each layer reads through.

    Returns:
        K-, Q- and V-composition of every pair of heads.
    """
    w_q, w_k, w_v = (
        w * weight[:, :, None, None]
        for w in (attention.w_q, attention.w_k, attention.w_v)
    )
    writes = jnp.einsum("ehc,hcf->hef", w_v[0], attention.w_o[0])
    values = jnp.einsum("ehc,hcf->hef", w_v[1], attention.w_o[1])
    asks = jnp.einsum("ehc,fhc->hef", w_q[1], w_k[1])

    def ratio(reads: Array) -> Array:
        product = jnp.einsum("aef,bfg->abeg", writes, reads)
        norm = lambda x: jnp.sqrt((x**2).sum((-2, -1)))  # noqa: E731
        return norm(product) / (norm(writes)[:, None] * norm(reads))

    return jnp.stack([ratio(asks.swapaxes(1, 2)), ratio(asks), ratio(values)])


def baseline(
    attention: Attention, weight: Float[Array, "layer embed"], *, seed: int
) -> Float[np.ndarray, " kind"]:
    """Mean scores of heads with random weights of the same shapes."""
    random = np.random.default_rng(seed)
    like = lambda w: jnp.asarray(random.standard_normal(w.shape, np.float32))  # noqa: E731
    drawn = [scores(jax.tree.map(like, attention), weight) for _ in range(DRAWS)]
    return np.mean(drawn, axis=(0, 2, 3))
