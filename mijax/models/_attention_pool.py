"""Pooling by attention (SigLIP): one learned query reads all positions."""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from mijax.core import prefixed, site
from mijax.core.internal import Sequence
from mijax.models._config import ACTIVATIONS
from mijax.models._family import Rule, same
from mijax.models._init import Normal, layer_norm
from mijax.nn import MLP, Attention, LayerNorm

EMBED = "position embed"


class AttentionPool(eqx.Module):
    """`a + mlp(norm(a))`, where `a` is what a learned query reads by attention.

    The query is the same for every image and has no norm. Sites have the names of a
    block's and a prefix, with one position, that of the query: `pool.q`,
    `pool.pattern`, `pool.z`, `pool.attn_out`, `pool.mlp_post`, `pool.mlp_out`.

    Attributes:
        probe: the query's input, `[1, embed]`.
        attention: its attention.
        norm: norm of what the MLP reads.
        mlp: the MLP.
    """

    probe: Float[Array, "1 embed"]
    attention: Attention
    norm: LayerNorm
    mlp: MLP

    def __call__(self, x: Float[Array, "position embed"]) -> Float[Array, " embed"]:
        """Return the pooled features of all positions."""
        return prefixed("pool.", self._pooled)(x)

    def _pooled(self, x: Float[Array, "position embed"]) -> Float[Array, " embed"]:
        rows = Sequence(jnp.arange(len(x), dtype=jnp.int32))
        z = self.attention((self.probe, x, x), rows)
        out = site("attn_out", self.attention.out(z), EMBED)
        return (out + site("mlp_out", self.mlp(self.norm(out)), EMBED))[0]


def init_pool(spec: Any, normal: Normal, dtype: DTypeLike) -> AttentionPool:
    """Draw random weights."""
    embed, heads, mlp = spec.embed, spec.heads, spec.mlp
    head_dim = embed // heads
    attention = Attention(
        w_q=normal(embed, heads, head_dim),
        w_k=normal(embed, heads, head_dim),
        w_v=normal(embed, heads, head_dim),
        w_o=normal(heads, head_dim, embed),
        b_q=jnp.zeros((heads, head_dim), dtype),
        b_k=jnp.zeros((heads, head_dim), dtype),
        b_v=jnp.zeros((heads, head_dim), dtype),
        b_o=jnp.zeros(embed, dtype),
        causal=False,
    )
    return AttentionPool(
        probe=normal(1, embed),
        attention=attention,
        norm=layer_norm(embed, dtype, spec.eps),
        mlp=MLP(
            w_in=normal(embed, mlp),
            w_out=normal(mlp, embed),
            b_in=jnp.zeros(mlp, dtype),
            b_out=jnp.zeros(embed, dtype),
            activation=ACTIVATIONS[spec.activation],
        ),
    )


def pool_rules(spec: Any) -> list[Rule]:
    """Return names and shapes of the tensors, as `VisionTensors` has them."""
    embed, heads, mlp = spec.embed, spec.heads, spec.mlp
    head_dim = embed // heads

    def reads(i: int) -> Any:
        def make(x: np.ndarray) -> np.ndarray:
            third = np.split(x, 3)[i]
            return third.reshape(heads, head_dim, embed).transpose(2, 0, 1)

        return make

    def biases(i: int) -> Any:
        return lambda x: np.split(x, 3)[i].reshape(heads, head_dim)

    def writes(x: np.ndarray) -> np.ndarray:
        return x.T.reshape(heads, head_dim, embed)

    made: dict[str, tuple[tuple[int, ...], Mapping[str, Any]]] = {
        "probe": ((1, 1, embed), {"probe": lambda x: x[0]}),
        "attention.in_proj_weight": (
            (3 * embed, embed),
            {f"attention.w_{x}": reads(i) for i, x in enumerate("qkv")},
        ),
        "attention.in_proj_bias": (
            (3 * embed,),
            {f"attention.b_{x}": biases(i) for i, x in enumerate("qkv")},
        ),
        "attention.out_proj.weight": ((embed, embed), {"attention.w_o": writes}),
        "attention.out_proj.bias": ((embed,), {"attention.b_o": same}),
        "layernorm.weight": ((embed,), {"norm.weight": same}),
        "layernorm.bias": ((embed,), {"norm.bias": same}),
        "mlp.fc1.weight": ((mlp, embed), {"mlp.w_in": np.transpose}),
        "mlp.fc1.bias": ((mlp,), {"mlp.b_in": same}),
        "mlp.fc2.weight": ((embed, mlp), {"mlp.w_out": np.transpose}),
        "mlp.fc2.bias": ((embed,), {"mlp.b_out": same}),
    }
    return [
        Rule(
            f"head.{name}",
            shape,
            {f"attention_pool.{leaf}": make for leaf, make in into.items()},
        )
        for name, (shape, into) in made.items()
    ]
