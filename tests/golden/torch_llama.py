"""A Llama forward in plain torch with explicit edits: the reference of the grids.

Written from the paper's equations, not from `transformers`; the scripts that use it
first compare its logits with those of `transformers`. Weights are a dict under the
names of Hugging Face. One function computes everything, so that an edit is a line of
Python between two lines of the model.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

Edit = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Shape:
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    theta: float
    eps: float


def forward(weights, shape, tokens, edits=None, keep=None):
    """Logits [batch, seq, vocab].

    `edits` maps (site, layer) to a function of that activation; `keep`, if given, is a
    dict that receives every activation under the same keys. q, k, v and z are
    [batch, seq, heads, head_dim] (k and v repeated, one view to a query head, q and k
    before the rotation); pattern is [batch, heads, seq, key_seq].
    """
    edits = {} if edits is None else edits
    keep = {} if keep is None else keep

    def site(name, layer, x):
        x = edits.get((name, layer), lambda y: y)(x)
        keep[name, layer] = x
        return x

    seq = tokens.shape[1]
    cos, sin = rotary(shape, seq)
    future = torch.ones(seq, seq, dtype=torch.bool).triu(1)
    x = weights["model.embed_tokens.weight"][tokens]
    for layer in range(shape.layers):
        w = _layer(weights, layer)
        x = site("resid_pre", layer, x)
        normed = rms_norm(x, w["input_layernorm"], shape.eps)
        q = _split(normed @ w["self_attn.q_proj"].T, shape.heads)
        k = _split(normed @ w["self_attn.k_proj"].T, shape.kv_heads)
        v = _split(normed @ w["self_attn.v_proj"].T, shape.kv_heads)
        repeats = shape.heads // shape.kv_heads
        q = site("q", layer, q)
        k = site("k", layer, k.repeat_interleave(repeats, 2))
        v = site("v", layer, v.repeat_interleave(repeats, 2))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / shape.head_dim**0.5
        scores = scores.masked_fill(future, -torch.inf)
        pattern = site("pattern", layer, scores.softmax(-1))
        z = site("z", layer, torch.einsum("bhqk,bkhd->bqhd", pattern, v))
        x = x + z.flatten(2) @ w["self_attn.o_proj"].T
        normed = rms_norm(x, w["post_attention_layernorm"], shape.eps)
        gate = torch.nn.functional.silu(normed @ w["mlp.gate_proj"].T)
        x = x + (gate * (normed @ w["mlp.up_proj"].T)) @ w["mlp.down_proj"].T
        x = site("resid_post", layer, x)
    x = rms_norm(x, weights["model.norm.weight"], shape.eps)
    head = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
    return x @ head.T


def grid(run, layers, site, setter, source, count):
    """The metric of every cell, [prompt, layer, index]; `run(edits)` -> [prompt]."""
    columns = []
    for layer in layers:
        value = source[site, layer]
        cells = [
            run({(site, layer): lambda x, i=i, v=value: setter(x, v, i)})
            for i in range(count)
        ]
        columns.append(torch.stack(cells, 1))
    return torch.stack(columns, 1)


def set_position(x, value, index):
    return torch.cat([x[:, :index], value[:, index : index + 1], x[:, index + 1 :]], 1)


def set_head(x, value, index):
    x = x.clone()
    x[:, :, index] = value[:, :, index]
    return x


def set_pattern(x, value, index):
    return set_position(x, value, index)  # heads are axis 1 of a pattern


def rms_norm(x, weight, eps):
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight


def rotary(shape, seq):
    half = torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim
    angle = torch.arange(seq, dtype=torch.float32)[:, None] * shape.theta**-half
    angle = torch.cat([angle, angle], -1)[None, :, None]
    return angle.cos(), angle.sin()


def rotate(x, cos, sin):
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


def _layer(weights, layer):
    start = f"model.layers.{layer}."
    return {
        name.removeprefix(start).removesuffix(".weight"): value
        for name, value in weights.items()
        if name.startswith(start)
    }


def _split(x, heads):
    return x.unflatten(-1, (heads, -1))
