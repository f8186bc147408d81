"""Self-attention with an edit at every step."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from mijax.core import BlockSites, Past, Place, edit
from mijax.nn._basic import Identity, Product, Rotary, Softmax
from mijax.nn._smear import SmearedKeys


class Attention(eqx.Module):
    """Multi-head attention; grouped-query where there are fewer key/value heads.

    Query head `h` reads key/value head `h // (heads / kv_heads)`. Biases and rotary
    positions are `None` where the model has none. `keys` is what happens to the keys
    of a sequence before queries see them: nothing, or `SmearedKeys`. `causal=False`
    lets every query read every key (compiled programs, encoders).
    """

    w_q: Float[Array, "*layer embed heads head_dim"]
    w_k: Float[Array, "*layer embed kv_heads head_dim"]
    w_v: Float[Array, "*layer embed kv_heads head_dim"]
    w_o: Float[Array, "*layer heads head_dim embed"]
    b_q: Float[Array, "*layer heads head_dim"] | None = None
    b_k: Float[Array, "*layer kv_heads head_dim"] | None = None
    b_v: Float[Array, "*layer kv_heads head_dim"] | None = None
    b_o: Float[Array, "*layer embed"] | None = None
    rotary: Rotary | None = None
    softmax: Softmax = Softmax()
    product: Product = Product()
    keys: Identity | SmearedKeys = Identity()
    causal: bool = eqx.field(static=True, default=True)

    def __call__(
        self,
        x: Float[Array, "rows embed"],
        edits: BlockSites[Any],
        place: Place,
        past: Past | None = None,
    ) -> tuple[Float[Array, "kept embed"], dict[str, Array]]:
        """Computes attention at the rows.

        Args:
            x: the normalised residual stream.
            edits: what to change at each site.
            place: the layer and where the rows stand; from the queries on, only the
                rows of `place.after` are computed.
            past: keys (before rotary) and values of tokens that are not rows, as this
                layer returns them, `[prompt, key_seq, heads, head_dim]`.

        Returns:
            What attention writes to the residual stream, and its activations by site.
        """
        kept, after = place.rows.keep(x), place.after
        q = edit(edits.q, project(kept, self.w_q, self.b_q), after)
        k, v = project(x, self.w_k, self.b_k), project(x, self.w_v, self.b_v)
        k_view, v_view = (jnp.repeat(a, self.groups, axis=1) for a in (k, v))
        # An edit may change one query head's view of a key that its group shares.
        if edits.k is not None or edits.v is not None:
            k = k_view = edit(edits.k, k_view, place)
            v = v_view = edit(edits.v, v_view, place)
        acts = self.attend(q, k, v, edits, place, past)
        acts |= {"q": q, "k": k_view, "v": v_view}
        out = jnp.einsum("nhd,hde->ne", acts["z"], self.w_o)
        acts["attn_out"] = edit(edits.attn_out, add(out, self.b_o), after)
        return acts["attn_out"], acts

    @property
    def groups(self) -> int:
        """Number of query heads that share a key and a value head."""
        return self.w_q.shape[-2] // self.w_k.shape[-2]

    def heads(
        self,
        x: tuple[Float[Array, "rows heads embed"], ...],
        edits: BlockSites[Any],
        place: Place,
    ) -> tuple[Float[Array, "rows heads embed"], Float[Array, " embed"] | None]:
        """Computes what each head writes, when each reads an input of its own.

        Args:
            x: normalised inputs of the queries, the keys and the values of every query
                head. Under grouped-query attention heads that share a key may then
                see different ones; the weights are shared all the same.
            edits: what to change at `q`, `k`, `v`, `scores`, `pattern` and `z`.
            place: the layer and where the rows stand; a whole sequence.

        Returns:
            What each head writes to the residual stream, and the bias that is nobody's.
        """
        q = edit(edits.q, project_each(x[0], self.w_q, self.b_q), place)
        k = edit(edits.k, project_each(x[1], self.w_k, self.b_k), place)
        v = edit(edits.v, project_each(x[2], self.w_v, self.b_v), place)
        z = self.attend(q, k, v, edits, place, None)["z"]
        return jnp.einsum("nhd,hde->nhe", z, self.w_o), self.b_o

    def attend(
        self,
        q: Array,
        k: Array,
        v: Array,
        edits: BlockSites[Any],
        place: Place,
        past: Past | None,
    ) -> dict[str, Array]:
        """Mixes values across tokens.

        Args:
            q: `[rows, heads, head_dim]`.
            k: `[rows, heads or kv_heads, head_dim]`.
            v: as `k`.
            edits: edits of `scores`, `pattern` and `z`.
            place: the layer and where the rows stand.
            past: keys and values of tokens that are not rows.

        Returns:
            `scores`, `pattern` and `z`.
        """
        rows, after = place.rows, place.after
        asking = after.rows
        heads, kv_heads, head_dim = q.shape[1], k.shape[1], q.shape[2]
        past_k, past_v = past if past is not None else (None, None)
        if past_k is not None and past_v is not None:
            every = past_k.shape[-2] // kv_heads
            past_k, past_v = past_k[..., ::every, :], past_v[..., ::every, :]
        if self.rotary is not None:
            q, k = self.rotary(q, asking.position), self.rotary(k, rows.position)
            if past_k is not None:
                past_k = self.rotary(past_k, jnp.arange(past_k.shape[1]))
        queries, keys = asking.queries(q), self.keys(rows.keys(k, past_k))
        queries = queries.reshape(*queries.shape[:-2], kv_heads, -1, head_dim)
        scores = self.product("...qhgd,...khd->...hgqk", queries, keys) / head_dim**0.5
        scores = scores.reshape(*scores.shape[:-4], heads, *scores.shape[-2:])
        scores, scores_site = edit_grid(edits.scores, scores, after)
        reads = jnp.expand_dims(asking.causal(), -3) if self.causal else True
        if edits.scores is not None:
            # An edit may cut scores off by minus infinity, all of a token's too.
            reads = reads & (scores > -jnp.inf)
        if self.causal or edits.scores is not None:
            scores = jnp.where(reads, scores, jnp.finfo(scores.dtype).min)
        pattern = self.softmax(scores).astype(q.dtype)
        if edits.scores is not None:
            pattern = jnp.where(reads, pattern, 0)
        pattern, pattern_site = edit_grid(edits.pattern, pattern, after)
        grouped = pattern.reshape(
            *pattern.shape[:-3], kv_heads, -1, *pattern.shape[-2:]
        )
        z = self.product("...hgqk,...khd->...qhgd", grouped, rows.keys(v, past_v))
        z = asking.flat(z.reshape(*z.shape[:-3], heads, head_dim))
        z = edit(edits.z, z, after)
        return {"scores": scores_site, "pattern": pattern_site, "z": z}


def project(
    x: Float[Array, "rows embed"],
    weight: Float[Array, "embed heads head_dim"],
    bias: Float[Array, "heads head_dim"] | None,
) -> Float[Array, "rows heads head_dim"]:
    """Reads every head's input from the residual stream."""
    return add(jnp.einsum("ne,ehd->nhd", x, weight), bias)


def project_each(
    x: Float[Array, "rows heads embed"],
    weight: Float[Array, "embed kv_heads head_dim"],
    bias: Float[Array, "kv_heads head_dim"] | None,
) -> Float[Array, "rows heads head_dim"]:
    """Reads every head's own input; consecutive heads share a weight."""
    rows, heads, embed = x.shape
    grouped = x.reshape(rows, weight.shape[1], -1, embed)
    out = jnp.einsum("nkge,ekd->nkgd", grouped, weight)
    return add(out, None if bias is None else bias[:, None]).reshape(rows, heads, -1)


def add(x: Array, bias: Array | None) -> Array:
    """Adds a bias where there is one."""
    return x if bias is None else x + bias


def edit_grid(
    edits: Any, grid: Float[Array, "*lane heads seq key_seq"], place: Place
) -> tuple[Float[Array, "*lane heads seq key_seq"], Float[Array, "rows heads key_seq"]]:
    """Edits a (query, key) grid in the layout of its site, rows first.

    Returns:
        The edited grid, and the activation as the site has it.
    """
    site = edit(edits, place.rows.flat(jnp.moveaxis(grid, -3, -2)), place)
    if edits is not None:
        grid = jnp.moveaxis(place.rows.queries(site), -2, -3)
    return grid, site
