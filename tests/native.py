"""Small native models whose blocks cache every kind of value."""

import functools
from types import MappingProxyType

import equinox as eqx
import jax
import jax.numpy as jnp
from cases import model

import mijax
from mijax import nn
from mijax.core import AbstractBlock, Fixed, Recurrent

LAYERS, EMBED, INNER, SIZE, TAPS, MEMORY = 3, 32, 16, 3, 3, 4


class Mixer(eqx.Module):
    """A causal convolution, then a selective state-space recurrence, as in Mamba."""

    w_in: jax.Array
    taps: jax.Array
    w_decay: jax.Array
    w_write: jax.Array
    w_read: jax.Array

    def __call__(self, x, rows, past):
        u = x @ self.w_in
        start = jnp.zeros((TAPS, INNER))
        shift = lambda window, u: jnp.concatenate([window[1:], u[None]])  # noqa: E731
        conv = lambda window, u: (window * self.taps).sum(0)  # noqa: E731
        u = rows.recur("window", shift, start, u, past, read=conv)
        u = mijax.site("mlp_pre", jax.nn.silu(u), "position mlp")
        xs = {
            "u": u,
            "decay": jax.nn.sigmoid(u @ self.w_decay),
            "write": u @ self.w_write,
            "read": u @ self.w_read,
        }

        def step(state, x):
            return x["decay"][:, None] * state + x["u"][:, None] * x["write"]

        def read(state, x):
            return state @ x["read"]

        start = jnp.zeros((INNER, SIZE))
        y = rows.recur("state", step, start, xs, past, read=read)
        return mijax.site("mlp_post", y, "position mlp")


RECURRENT = MappingProxyType({"window": Recurrent(), "state": Recurrent()})


class RecurrentBlock(AbstractBlock):
    """A recurrence, without attention."""

    cache = RECURRENT

    norm: nn.RMSNorm
    mixer: Mixer
    w_out: jax.Array

    def __call__(self, stream, rows, past=None):
        y = self.mixer(stream.read("mlp_in", norm=self.norm), rows, past)
        return stream.write("mlp_out", y, self.w_out)


class HybridBlock(AbstractBlock):
    """Attention, then a recurrence that reads what it wrote."""

    cache = MappingProxyType({**nn.Attention.cache, **RECURRENT})

    norm: nn.RMSNorm
    attention: nn.Attention
    mixer: Mixer
    w_out: jax.Array

    def __call__(self, stream, rows, past=None):
        z = self.attention(stream.read("attn_in", norm=self.norm), rows, past)
        stream = stream.keep(rows).write("attn_out", z, self.attention.w_o)
        stream = stream.mark("resid_mid")
        y = self.mixer(stream.read("mlp_in", norm=self.norm), rows, past)
        return stream.write("mlp_out", y, self.w_out)


class CrossBlock(AbstractBlock):
    """Attention to the tokens, then to a memory that each prompt has."""

    cache = MappingProxyType(
        {**nn.Attention.cache, "memory_k": Fixed(), "memory_v": Fixed()}
    )

    norm: nn.RMSNorm
    attention: nn.Attention
    cross: nn.Attention
    memory: jax.Array

    def __call__(self, stream, rows, past=None):
        z = self.attention(stream.read("attn_in", norm=self.norm), rows, past)
        stream = stream.keep(rows).write("attn_out", z, self.attention.w_o)
        stream = stream.mark("resid_mid")
        memory = self.memory[0 if rows.prompt is None else rows.prompt]
        project = lambda w: jnp.einsum("me,ehd->mhd", memory, w)  # noqa: E731
        k = rows.fixed("memory_k", lambda: project(self.cross.w_k), past)
        v = rows.fixed("memory_v", lambda: project(self.cross.w_v), past)
        x, asking = stream.read("mlp_in", norm=self.norm), rows.after
        q = asking.queries(jnp.einsum("ne,ehd->nhd", x, self.cross.w_q))
        pattern = jax.nn.softmax(jnp.einsum("...qhd,...khd->...hqk", q, k) / 2)
        z = asking.flat(jnp.einsum("...hqk,...khd->...qhd", pattern, v))
        return stream.write("mlp_out", z, self.cross.w_o)


def draw(key, *shape, scale=0.3):
    return scale * jax.random.normal(key, (LAYERS, *shape))


@functools.cache
def native(name):
    """Return the tiny GPT-2 with other blocks."""
    old, keys = model("gpt2"), iter(jax.random.split(jax.random.key(11), 12))
    norm = nn.RMSNorm(1 + draw(next(keys), EMBED))
    mixer = Mixer(
        draw(next(keys), EMBED, INNER, scale=0.15),
        draw(next(keys), TAPS, INNER, scale=0.6),
        draw(next(keys), INNER, INNER, scale=1.0),
        draw(next(keys), INNER, SIZE, scale=0.25),
        draw(next(keys), INNER, SIZE, scale=0.25),
    )
    w_out, attention = draw(next(keys), INNER, EMBED), old.blocks.attention
    blocks = {
        "recurrent": RecurrentBlock(norm, mixer, w_out),
        "hybrid": HybridBlock(norm, attention, mixer, w_out),
        "cross": CrossBlock(
            norm,
            attention,
            model("parallel").blocks.attention,
            draw(next(keys), 3, MEMORY, EMBED, scale=1.0),
        ),
    }
    return eqx.tree_at(lambda m: m.blocks, old, blocks[name])


NATIVE = ("recurrent", "hybrid", "cross")


def alone(name, i):
    """The model of one prompt of the batch by itself."""
    found = native(name)
    if name != "cross":
        return found
    return eqx.tree_at(
        lambda m: m.blocks.memory, found, found.blocks.memory[:, i : i + 1]
    )
