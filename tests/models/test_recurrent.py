"""Recurrent mixers: edits of their states, their unrolled form, sweeps, readouts."""

import functools
import tempfile
from pathlib import Path
from typing import Any, cast

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiles import compiles
from family_weights import golden, write

import mijax
from mijax import Site, models, nn

NAMES = ("mamba", "mamba_bias", "mamba2")
LAYER, SHORT = 1, 6
SCALE = mijax.Scale(1.7).at("ssm_delta", layer=LAYER, position=3, head=2)


@functools.cache
def loaded(name: str) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        return models.load(write(Path(folder), name)).model


@functools.cache
def batch(name: str) -> Any:
    tokens = golden(name)["tokens"]
    return jnp.asarray(np.stack([tokens, tokens[::-1]]), jnp.int32)


def of_layer(name):
    return jax.tree.map(lambda leaf: leaf[LAYER], loaded(name).blocks.mixer)


def seen(name, tokens, edits=None):
    """Activations of one layer that a loop by hand reads or computes."""
    sites = ("conv_out", "ssm_delta", "ssm_b", "ssm_c", "mixer_state", "mixer_scan")
    asked = {site: Site(site, layer=LAYER) for site in sites}
    found = mijax.capture(loaded(name), tokens, asked, edits)
    return {site: np.asarray(acts, np.float64) for site, acts in found.items()}


def heads_of(name):
    return loaded(name).blocks.mixer.a_log.shape[1]


def inputs(name, acts):
    """Return the inputs to the states, `[seq, heads, head_dim]`."""
    channels = acts["mixer_scan"].shape[-1]
    u = acts["conv_out"][:, :channels]
    return u.reshape(len(u), heads_of(name), -1)


def by_hand(name, acts, change=lambda t, state: state):
    """The scan of one prompt, token after token, in float64."""
    mixer, u = of_layer(name), inputs(name, acts)
    a = -np.exp(np.asarray(mixer.a_log, float)).reshape(u.shape[1], 1, -1)
    skip = np.asarray(mixer.skip, float)[:, None]
    b, c, step = acts["ssm_b"], acts["ssm_c"], acts["ssm_delta"][..., None]
    state, states, outs = np.zeros((*u.shape[1:], b.shape[-1])), [], []
    for t in range(len(u)):
        entering = step[t] * u[t][:, :, None] * b[t][:, None]
        state = change(t, np.exp(step[t] * a) * state + entering)
        states.append(state.reshape(u.shape[1], -1))
        outs.append((state * c[t][:, None]).sum(-1) + skip * u[t])
    return np.stack(states), np.stack(outs).reshape(len(u), -1)


@pytest.mark.parametrize("edits", [None, SCALE], ids=["plain", "edited"])
@pytest.mark.parametrize("name", NAMES)
def test_the_scan_is_a_loop_and_a_matrix(name, edits):
    tokens = batch(name)[0]
    acts = seen(name, tokens, edits)
    states, out = by_hand(name, acts)
    chex.assert_trees_all_close(acts["mixer_state"], states, atol=1e-5)
    chex.assert_trees_all_close(acts["mixer_scan"], out, atol=2e-5)
    model = loaded(name)
    matrix = mijax.lens.effective_attention(model, tokens, edits, layer=LAYER)
    assert matrix.shape == (heads_of(name), 10, 10)
    u, skip = inputs(name, acts), of_layer(name).skip[:, None]
    product = jnp.einsum("hij,jhp->ihp", matrix, u) + skip * u
    chex.assert_trees_all_close(product.reshape(out.shape), out, atol=2e-5)
    assert not jnp.triu(matrix, 1).any()
    both = mijax.lens.effective_attention(model, batch(name), edits, layer=LAYER)
    chex.assert_trees_all_close(both[0], matrix, atol=1e-6)
    # Another step size is another matrix, of that channel only.
    if edits is not None:
        plain = mijax.lens.effective_attention(model, tokens, layer=LAYER)
        differs = jnp.abs(plain - matrix).max((1, 2)) > 1e-3
        assert differs.tolist() == [c == 2 for c in range(heads_of(name))]


@pytest.mark.parametrize("name", NAMES)
def test_an_edited_state_is_what_later_tokens_read(name):
    tokens = batch(name)[0]
    edits = [
        mijax.Zero().at("mixer_state", layer=LAYER, position=4, head=3),
        mijax.Scale(0.5).at("mixer_state", layer=LAYER, position=6),
    ]

    def change(t, state):
        state = state.copy()
        state[3] *= t != 4
        return state * (0.5 if t == 6 else 1.0)

    acts = seen(name, tokens, edits)
    states, out = by_hand(name, acts, change)
    chex.assert_trees_all_close(acts["mixer_state"], states, atol=1e-5)
    chex.assert_trees_all_close(acts["mixer_scan"], out, atol=2e-5)
    assert np.abs(acts["mixer_state"] - seen(name, tokens)["mixer_state"]).max() > 0.1
    kept = mijax.edited(loaded(name), edits)
    expected = mijax.run(loaded(name), tokens, edits)
    chex.assert_trees_all_close(mijax.run(kept, tokens), expected, atol=1e-5)


def test_the_gradient_at_a_state_is_a_difference():
    model, tokens = loaded("mamba"), batch("mamba")[0]
    metric, where = (
        mijax.logit_difference(3, 4),
        Site("mixer_state", layer=LAYER, position=5),
    )
    gradient = mijax.gradients(model, tokens, metric, where)
    direction = jax.random.normal(jax.random.key(0), gradient.shape)
    step = 1e-2
    moved = [
        mijax.Add(direction, by).at("mixer_state", layer=LAYER, position=5)
        for by in (step, -step)
    ]
    up, down = (metric(mijax.run(model, tokens, one)) for one in moved)
    expected = (up - down) / (2 * step)
    assert jnp.abs(expected) > 1e-2
    chex.assert_trees_all_close((gradient * direction).sum(), expected, rtol=1e-2)


@pytest.mark.parametrize(
    ("name", "site"),
    [
        ("mamba", "resid_pre"),
        ("mamba", "mixer_state"),
        ("mamba", "ssm_b"),
        ("mamba2", "mixer_state"),
    ],
)
def test_a_sweep_is_a_loop_of_runs(name, site):
    model, tokens = loaded(name), batch(name)
    metric = mijax.logit_difference(3, 4, position=jnp.array([9, 5]))
    patch = mijax.Patch(mijax.capture(model, tokens[::-1], Site(site)))
    options = {"over": ("layer", "position"), "metric": metric}
    found = mijax.sweep(model, tokens, patch.at(site), **options).values
    for layer in range(3):
        for position in (0, 4, 5):
            at = patch.at(site, layer=layer, position=position)
            one = metric(mijax.run(model, tokens, at))
            chex.assert_trees_all_close(found[:, layer, position], one, atol=2e-5)
    with compiles() as programs:
        mijax.sweep(model, tokens, patch.at(site), **options)
    assert not programs


def test_generation_goes_on_from_edited_states():
    model, tokens = loaded("mamba"), batch("mamba")[0]
    lengths = jnp.array([10, SHORT])
    edits = [
        mijax.Scale(-2.0).at("mixer_state", layer=LAYER, position=lengths + 1),
        mijax.Scale(0.3).at("mixer_state", layer=0),
    ]
    both = jnp.stack([tokens, tokens])
    found = mijax.generate(model, both, steps=4, lengths=lengths, edits=edits)
    plain = mijax.generate(model, both, steps=4, lengths=lengths)
    assert (found != plain).any()
    for row, length in zip(found, lengths.tolist(), strict=True):
        text = tokens[:length].tolist()
        for _ in range(4):
            padded = jnp.asarray(text + [0] * (14 - len(text)), jnp.int32)
            one = [
                mijax.Scale(-2.0).at("mixer_state", layer=LAYER, position=length + 1),
                edits[1],
            ]
            text.append(int(mijax.run(model, padded, one)[len(text) - 1].argmax()))
        assert row.tolist() == text[length:]


@pytest.mark.parametrize("name", NAMES)
def test_what_blocks_write_adds_up_to_the_logits(name):
    model, tokens = loaded(name), batch(name)
    parts = mijax.lens.direct_logit_attribution(model, tokens, 3)
    logits = mijax.run(model, tokens)
    chex.assert_trees_all_close(parts.total(), logits[..., 3], atol=1e-4)
    folded = nn.fold_norm(cast("nn.Transformer", model))
    assert cast("Any", folded.blocks).norm.weight is None
    chex.assert_trees_all_close(mijax.run(folded, tokens), logits, atol=1e-4)
    assert mijax.circuits.Graph.of(model).senders == ("input", "m0", "m1", "m2")


def test_a_step_size_without_limit_is_read_in_either_spelling(tmp_path):
    def limit(*values):
        return lambda config, tensors: config.update(time_step_limit=list(values))

    folder = write(tmp_path, "mamba2", limit(0.0, float("inf")))
    assert "Infinity" in (folder / "config.json").read_text()
    assert models.load(folder).spec.heads == 8
    with pytest.raises(mijax.MijaxError, match="time_step_limit"):
        models.load(write(tmp_path, "mamba2", limit(0.0, 0.5)))


def test_models_without_a_mixer_are_refused():
    model = mijax.testing.tiny_llama(jax.random.key(0))
    with pytest.raises(mijax.MijaxError, match="pattern"):
        mijax.lens.effective_attention(model, jnp.arange(3), layer=0)
    with pytest.raises(mijax.MijaxError, match="out of range"):
        mijax.lens.effective_attention(loaded("mamba"), jnp.arange(3), layer=3)


def test_a_rule_of_the_backward_pass_may_hold_the_norm_of_a_mixer():
    model, tokens = loaded("mamba2"), batch("mamba2")
    ruled = nn.apply(model, nn.FrozenNorms()).model
    chex.assert_trees_all_close(
        mijax.run(ruled, tokens), mijax.run(model, tokens), atol=1e-5
    )
