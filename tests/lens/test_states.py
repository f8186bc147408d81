"""Patchscopes, future lens and backward lens, each against a plain computation."""

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CLEAN, LENGTHS, encoder, model

import mijax
from mijax import lens
from mijax._errors import ConfigError, PositionError, ShapeError, SiteError

TARGET = jnp.array([8, 9, 10, 11])


def prompts():
    rows = zip(CLEAN.tolist(), LENGTHS.tolist(), strict=True)
    return mijax.data.Prompts.from_ids([row[:n] for row, n in rows])


def test_patchscope_is_the_loop_over_both_layers():
    one, given = model("gpt2"), prompts()
    answer = jnp.array([3, 4, 5])
    found = lens.patchscope(one, given, TARGET, answer=answer, target_position=2)
    run = jax.jit(lambda edits: jax.nn.log_softmax(one(TARGET, edits)[0][-1]))
    best = np.zeros((3, 3, 3))
    log_p = np.zeros((3, 3, 3))
    for p in range(3):
        alone = CLEAN[p, : LENGTHS[p]]
        acts = mijax.capture(one, alone, "resid_post")[:, -1]
        for source, layer in np.ndindex(3, 3):
            edit = mijax.Set(acts[source]).at("resid_post", layer=layer, position=2)
            out = run(edit)
            log_p[p, source, layer] = out[answer[p]]
            best[p, source, layer] = out.argmax() == answer[p]
    np.testing.assert_allclose(found["surprisal"].values, -log_p, atol=1e-4)
    np.testing.assert_allclose(found["probability"].values, np.exp(log_p), atol=1e-5)
    np.testing.assert_array_equal(found["accuracy"].values, best)
    plain = run(mijax.compose())
    np.testing.assert_allclose(found["surprisal"].base, -plain[answer], atol=1e-5)


def test_patchscope_leaves_the_padding_of_targets_out():
    both_ways = encoder("gpt2")
    targets = mijax.data.Prompts.from_ids([[1, 2, 3, 4], [5, 6]])
    found = lens.patchscope(both_ways, CLEAN[:2], targets, answer=3)["probability"]
    alone = lens.patchscope(both_ways, CLEAN[1:2], [5, 6], answer=3)["probability"]
    chex.assert_trees_all_close(found.values[1], alone.values[0], atol=1e-6)
    chex.assert_trees_all_close(found.base[1], alone.base[0], atol=1e-6)


def test_patchscope_into_itself_and_from_another_model():
    one, given = model("gpt2"), prompts()
    logits = mijax.run(one, given)[jnp.arange(3), LENGTHS - 1]
    # The state of the last block says what its prompt says, wherever it is read last.
    found = lens.patchscope(one, given, TARGET, answer=logits.argmax(-1))
    assert (found["accuracy"].values[:, 2, 2] == 1).all()
    # A map from another model; the identity is the model itself.
    same = lens.AffineMap(jnp.eye(32), jnp.zeros(32))
    options = {"answer": 3, "source_position": 1}
    mapped = lens.patchscope(
        one, given, TARGET, source_model=one, mapping=same, **options
    )
    direct = lens.patchscope(one, given, TARGET, **options)
    chex.assert_trees_all_close(
        mapped["surprisal"].values, direct["surprisal"].values, atol=1e-5
    )
    for position in (0, 4):
        with pytest.raises(PositionError, match="target_position must be 1"):
            lens.patchscope(one, given, TARGET, answer=3, target_position=position)
    with pytest.raises(PositionError, match="source_position must be inside"):
        lens.patchscope(one, given, TARGET, answer=3, source_position=6)
    with pytest.raises(ShapeError, match="3 sources and 2 targets"):
        lens.patchscope(one, given, [[1, 2], [3, 4]], answer=3)


def test_affine_maps_and_future_lenses_find_planted_ones(key):
    x = jax.random.normal(key, (40, 6))
    weight = jax.random.normal(jax.random.fold_in(key, 1), (5, 6))
    found = lens.fit_affine_map(x, x @ weight.T + 2)
    chex.assert_trees_all_close(found.weight, weight, atol=1e-4)
    chex.assert_trees_all_close(found(x), x @ weight.T + 2, atol=1e-4)
    one = model("gpt2")
    tokens = jax.random.randint(jax.random.fold_in(key, 2), (12, 9), 0, 64)
    now = lens.fit_future_lens(one, tokens, offset=0)
    # With offset 0 the last layer is the identity, and decodes to the model.
    chex.assert_trees_all_close(now.weight[-1], jnp.eye(32), atol=1e-3)
    score = lens.evaluate_future(one, tokens, now, offset=0)
    assert score.precision[-1].tolist() == [1, 1, 1]
    later = lens.fit_future_lens(one, tokens, offset=2)
    acts = np.asarray(mijax.capture(one, tokens, "resid_post"), np.float64)
    rows = acts[:, 1, :-2].reshape(-1, 32)
    rows = np.concatenate([rows, np.ones((len(rows), 1))], 1)
    goal = acts[:, -1, 2:].reshape(-1, 32)
    expected = np.linalg.pinv(rows) @ goal
    np.testing.assert_allclose(later.weight[1], expected[:-1].T, atol=1e-3)
    fitted = lens.evaluate_future(one, tokens, later, offset=2)
    plain = lens.evaluate_future(one, tokens, lens.LogitLens(), offset=2)
    control = lens.RotatedLens(later, key)
    rotated = lens.evaluate_future(one, tokens, control, offset=2)
    assert (fitted.surprisal < plain.surprisal).all()
    assert (fitted.precision[:, 0] > rotated.precision[:, 0]).all()


def test_future_evaluation_is_the_plain_count():
    one, given = model("gpt2"), prompts()
    found = lens.evaluate_future(one, given, lens.LogitLens(), offset=1, ks=(1, 4))
    hits, surprisal, count = np.zeros((3, 2)), np.zeros(3), 0
    for p, n in enumerate(LENGTHS.tolist()):
        read = lens.logit_lens(one, CLEAN[p, :n])
        best = mijax.run(one, CLEAN[p, :n]).argmax(-1)
        for at in range(n - 1):
            goal, count = best[at + 1], count + 1
            for layer in range(3):
                logits = np.asarray(read.logits[layer, at])
                rank = (logits > logits[goal]).sum()
                hits[layer] += [rank < 1, rank < 4]
                surprisal[layer] -= read.log_probabilities()[layer, at, goal]
    np.testing.assert_allclose(found.precision, hits / count, atol=1e-6)
    np.testing.assert_allclose(found.surprisal, surprisal / count, rtol=1e-4)
    with pytest.raises(ConfigError, match="0 or more positions"):
        lens.fit_future_lens(one, given, offset=-1)
    with pytest.raises(ShapeError, match="more than 7 tokens"):
        lens.fit_future_lens(one, given, offset=7)


def test_backward_lens_reads_the_gradient_of_the_matrices():
    one, target = model("gpt2"), jnp.array([9, 3, 4])
    given = prompts()
    found = lens.backward_lens(one, given, target, top=4)
    for p, n in enumerate(LENGTHS.tolist()):
        tokens = CLEAN[p, :n]

        def loss(w_out, tokens=tokens, p=p):
            other = eqx.tree_at(lambda m: m.blocks.mlp.w_out, one, w_out)
            return -jax.nn.log_softmax(other(tokens)[0][-1])[target[p]]

        gradient = jax.grad(loss)(one.blocks.mlp.w_out)
        sites = {"x": "mlp_in", "post": "mlp_post"}
        acts = mijax.capture(one, tokens, sites)
        # The rows of delta whose sum of products is the gradient of the matrix.
        metric = mijax.cross_entropy(target[p])
        delta = mijax.gradients(one, tokens, metric, "mlp_out")
        product = jnp.einsum("lsm,lse->lme", acts["post"], delta)
        chex.assert_trees_all_close(product, gradient, atol=1e-4)
        table = one.embedding.weight
        scores = -delta @ table.T
        picked = jnp.take_along_axis(scores, found.updates[p, :, :n], axis=-1)
        chex.assert_trees_all_close(
            picked, jnp.sort(scores, axis=-1)[..., ::-1][..., :4], atol=1e-5
        )
        scores = acts["x"] @ table.T
        picked = jnp.take_along_axis(scores, found.inputs[p, :, :n], axis=-1)
        chex.assert_trees_all_close(
            picked, jnp.sort(scores, axis=-1)[..., ::-1][..., :4], atol=1e-4
        )
        assert (found.strength[p, -1, : n - 1] == 0).all()
        assert (found.strength[p, :, n - 1] > 0).all()
    with pytest.raises(SiteError, match="no MLPs"):
        lens.backward_lens(model("attention_only"), given, 3)
