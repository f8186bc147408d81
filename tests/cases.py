"""Tables that the laws run over: one row per model, site, edit, metric.

A new model or edit is one row here.
"""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp

import mijax
from mijax import nn
from mijax.core import SITES, BlockSites
from mijax.core._shapes import site_shapes

MODELS = ("gpt2", "llama", "parallel", "attention_only", "sandwich")


@functools.cache
def model(name):
    return getattr(mijax.testing, f"tiny_{name}")(jax.random.key(3))


@functools.cache
def encoder(name):
    """Return a model in which every token reads every other one."""
    return eqx.tree_at(
        lambda m: m.blocks.attention,
        model(name),
        replace_fn=lambda a: nn.Attention(**{**vars(a), "causal": False}),
    )


@functools.cache
def sites(name):
    """Sites that the model has."""
    shapes = site_shapes(model(name), 4)
    return tuple(
        s
        for s in SITES
        if getattr(shapes.blocks if hasattr(shapes.blocks, s) else shapes, s)
        is not None
    )


HEAD_SITES = (
    *("q", "k", "v", "q_rotated", "k_rotated"),
    *("scores", "pattern", "z", "result"),
)
BLOCK_SITES = tuple(BlockSites.__dataclass_fields__)

ROTARY_OR_GATED = (
    *("q_rotated", "k_rotated", "mlp_gate", "mlp_up"),
    *("router_logits", "router_weights", "expert_out"),
    *("q_latent", "kv_latent", "shared_gate", "shared_out"),
    *("z_gate", "conv_out", "ssm_delta", "ssm_b", "ssm_c", "gdn_alpha"),
    *("gdn_beta", "mixer_state", "mixer_scan", "mixer_gate", "mixer_out"),
)

# Every site of one model, and of the others those where their blocks differ.
BLOCK_CASES = [
    *(("gpt2", s) for s in BLOCK_SITES if s not in ROTARY_OR_GATED),
    *(("llama", s) for s in ("k", "v", "pattern", "z", "mlp_post")),
    *(("llama", s) for s in ("attn_norm_scale", "k_rotated", "mlp_up")),
    *(("parallel", s) for s in ("resid_pre", "k", "mlp_out")),
    *(("attention_only", s) for s in ("q", "resid_post")),
    *(("sandwich", s) for s in ("resid_pre", "k")),
]
HEAD_CASES = [
    *(("gpt2", s) for s in ("q", "scores", "pattern", "result")),
    *(("llama", s) for s in ("k", "v", "k_rotated", "z")),
    ("attention_only", "k"),
]


CLEAN = jnp.array(
    [[5, 9, 2, 7, 11, 3, 8], [1, 2, 3, 4, 5, 0, 0], [60, 50, 40, 30, 20, 10, 6]]
)
# Differ from position 2, 3 and 0 on; the second prompt is two tokens shorter.
CORRUPT = CLEAN.at[0, 2].set(33).at[1, 3].set(34).at[2, 0].set(35).at[2, 4].set(36)
LENGTHS = jnp.array([7, 5, 7])
LAST = LENGTHS - 1
METRIC = mijax.logit_difference(
    jnp.array([4, 5, 6]), jnp.array([7, 8, 9]), position=LAST
)

METRICS = {
    "logit_difference": METRIC,
    "probability": mijax.probability(jnp.array([4, 5, 6]), position=LAST),
    "cross_entropy": mijax.cross_entropy(
        jnp.array([[1, 2], [3, 4], [5, 6]]), position=jnp.stack([LAST - 2, LAST], 1)
    ),
    "kl": mijax.kl(jax.random.normal(jax.random.key(1), (3, 7, 64)), position=LAST),
    "accuracy": mijax.accuracy(jnp.array([4, 5, 6]), position=LAST),
    "best_logit_difference": mijax.logit_difference(
        jnp.array([4, 5, 6]), [[7, -1], [8, 10], [9, 11]], position=LAST
    ),
    "probability_difference": mijax.probability_difference(
        [[4, 7], [5, -1], [6, 8]], jnp.array([1, 2, 3]), position=LAST
    ),
    "l2": mijax.l2(
        jax.random.normal(jax.random.key(2), (3, 7, 64)),
        position=jnp.stack([LAST - 2, LAST], 1),
    ),
}


def acts_of(name, site, tokens=CLEAN):
    return mijax.capture(model(name), tokens, mijax.Site(site))


def edits(name, site):
    """One of every kind of edit, fit for a site."""
    acts = acts_of(name, site)
    row = acts.reshape(-1, *acts.shape[-(2 if site in HEAD_SITES else 1) :])[0]
    return {
        "set": mijax.Set(0.3 * row),
        "add": mijax.Add(row),
        "scale": mijax.Scale(0.5),
        "zero": mijax.Zero(),
        "mean": mijax.Mean(acts),
        "mean_per_position": mijax.Mean(acts, per_position=True),
        "noise": mijax.Noise(jax.random.key(5), 0.3),
        "project": mijax.Project(jax.random.normal(jax.random.key(6), row.shape[-1:])),
        "patch": mijax.Patch(acts),
    }
