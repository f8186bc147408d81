"""Blocks of vision transformers, drawn from their spec."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array

from mijax.models._decoder import gated_mlp, plain_mlp
from mijax.models._init import Normal, layer_norm
from mijax.nn import Attention, Block, GatedMLP, PatchRotary


def blocks(spec: Any, normal: Normal, dtype: DTypeLike, *, causal: bool) -> Block:
    """Draw the blocks of either tower."""
    n, embed, heads = spec.layers, spec.embed, spec.heads
    head_dim = embed // heads

    def bias() -> Array | None:
        return jnp.zeros((n, heads, head_dim), dtype) if spec.qkv_bias else None

    attention = Attention(
        w_q=normal(n, embed, heads, head_dim),
        w_k=normal(n, embed, heads, head_dim),
        w_v=normal(n, embed, heads, head_dim),
        w_o=normal(n, heads, head_dim, embed),
        b_q=bias(),
        b_k=bias() if spec.key_bias else None,
        b_v=bias(),
        b_o=jnp.zeros((n, embed), dtype),
        causal=causal,
        scale=spec.scale,
        rotary=_rotary(spec) if spec.theta else None,
    )
    mlp = (
        _gated_mlp(spec, normal, dtype)
        if spec.gated
        else plain_mlp(normal, spec, dtype)
    )
    norms = (layer_norm(embed, dtype, spec.eps, layers=n) for _ in range(2))
    return Block(next(norms), attention, next(norms), mlp)


def _rotary(spec: Any) -> PatchRotary:
    """Return rotary positions of the grid of the spec's images."""
    prefix = spec.class_token + spec.registers
    return PatchRotary(spec.theta, prefix, spec.grid, spec.grid)


def _gated_mlp(spec: Any, normal: Normal, dtype: DTypeLike) -> GatedMLP:
    """Draw gated MLPs with biases."""
    plain, wide = gated_mlp(normal, spec), jnp.zeros((spec.layers, spec.mlp), dtype)
    out = jnp.zeros((spec.layers, spec.embed), dtype)
    return dataclasses.replace(plain, b_gate=wide, b_in=wide, b_out=out)
