"""The Jacobian lens: against TransformerLens, and against a derivation by hand."""

from pathlib import Path
from typing import ClassVar

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CLEAN, LENGTHS, model

import mijax
from mijax import lens, nn
from mijax._errors import ConfigError, FrameError, LoadError, OutputError, ShapeError
from mijax.core import AbstractBlock, AbstractModel

GOLDEN = Path(__file__).parent.parent / "golden"
FILE = GOLDEN / "jacobian_lens" / "lens.pt"
EMBED = 6


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "jacobian_lens" / "gpt2.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def gpt2():
    return mijax.models.load(GOLDEN / "hf" / "gpt2").model


@pytest.fixture(scope="module")
def fitted(golden):
    return lens.JacobianLens(jnp.asarray(golden["jacobian"]), prompts=2)


def test_fit_is_that_of_transformer_lens(gpt2, golden):
    rows = [golden["tokens_0"].tolist(), golden["tokens_1"].tolist(), [3, 4, 5]]
    prompts = mijax.data.Prompts.from_ids(rows)
    # 32 dimensions in chunks of 5; the third prompt has no position that counts.
    method = lens.ExactJacobian(skip=2, chunk=5)
    found = lens.fit_jacobian_lens(gpt2, prompts, method=method)
    assert found.prompts == 2
    np.testing.assert_allclose(found.jacobian, golden["jacobian"], atol=1e-5)


def test_readout_and_vectors_are_those_of_transformer_lens(gpt2, golden, fitted):
    read = lens.read(gpt2, golden["tokens_0"], fitted)
    np.testing.assert_allclose(read.logits[:2], golden["logits"][:2], atol=1e-4)
    vectors = fitted.vectors(gpt2, [7, 11, 19])
    np.testing.assert_allclose(vectors[1], golden["vectors"], atol=1e-5)
    head = gpt2.readout.head.weight
    chex.assert_trees_all_equal(vectors[-1], head[jnp.array([7, 11, 19])])


def test_interventions_are_those_of_transformer_lens(gpt2, golden, fitted):
    tokens = golden["tokens_0"]
    options = {
        "steered": lens.steer_concept(fitted, gpt2, tokens, 7, layers=[1]),
        "ablated": lens.ablate_concepts(fitted, gpt2, [7, 11], layers=[0, 1]),
        "swapped": lens.swap_concepts(fitted, gpt2, 7, 11, layers=[1], alpha=2.0),
        "clamped": lens.clamp_concepts(fitted, gpt2, tokens, 7, 11, layers=[0, 1]),
    }
    plain = mijax.run(gpt2, tokens)
    for name, edit in options.items():
        found = mijax.run(gpt2, tokens, edit)
        np.testing.assert_allclose(found, golden[name], atol=2e-4, err_msg=name)
        assert np.abs(found - plain).max() > 0.1


class Sums(AbstractBlock):
    """Adds a linear map of the sum of all tokens so far: attention without scores."""

    linear_writes: ClassVar[bool] = True

    mix: jax.Array

    def __call__(self, stream, rows, past=None):
        return stream.add("attn_out", jnp.cumsum(stream.read("attn_in"), 0) @ self.mix)


class Linear(AbstractModel):
    """Sums of tokens, three times."""

    table: jax.Array
    blocks: AbstractBlock

    def embed(self, tokens, position):
        return self.table[tokens]

    def normalise(self, x):
        return x

    def unembed(self, x, ids=None):
        return nn.Unembedding(self.table)(x, ids)

    @property
    def readout(self):
        return nn.Readout(nn.Identity(), nn.Unembedding(self.table))


def test_it_is_the_derivation_by_hand(key):
    table, mix = (
        jax.random.normal(key, (9, EMBED)),
        0.3 * jax.random.normal(jax.random.fold_in(key, 1), (3, EMBED, EMBED)),
    )
    linear = Linear(table, Sums(mix))
    # Counted are positions 2, 3, 4, 5: an effect of t on every later t' of them, and
    # of pairs t <= s <= t' through two layers.
    method = lens.ExactJacobian(skip=2, chunk=4)
    found = lens.fit_jacobian_lens(linear, [[1, 2, 3, 4, 5, 6, 7]], method=method)
    n, (_, one, two) = 4, mix
    expected = [
        jnp.eye(EMBED)
        + (n + 1) / 2 * (one + two).T
        + (n + 1) * (n + 2) / 6 * (one @ two).T,
        jnp.eye(EMBED) + (n + 1) / 2 * two.T,
    ]
    chex.assert_trees_all_close(found.jacobian, jnp.stack(expected), rtol=1e-5)


def prompts():
    rows = zip(CLEAN.tolist(), LENGTHS.tolist(), strict=True)
    return mijax.data.Prompts.from_ids([row[:n] for row, n in rows])


def test_prompts_of_several_lengths_are_each_alone_and_merge(tmp_path):
    one, method = model("gpt2"), lens.ExactJacobian(skip=1)
    whole = lens.fit_jacobian_lens(one, prompts(), method=method)
    parts = [
        lens.fit_jacobian_lens(one, CLEAN[i : i + 1, :n], method=method)
        for i, n in enumerate(LENGTHS.tolist())
    ]
    merged = lens.merge_jacobian_lenses([*parts[:2], parts[2]])
    chex.assert_trees_all_close(whole.jacobian, merged.jacobian, atol=1e-5)
    # Two thirds of a fit, interrupted, and the rest: bit for bit.
    path = tmp_path / "fit"

    class Stop(Exception):
        pass

    def stop(done, total):
        if done == 2:
            raise Stop

    with pytest.raises(Stop):
        lens.fit_jacobian_lens(
            one, prompts(), method=method, progress=stop, resume=path
        )
    resumed = lens.fit_jacobian_lens(one, prompts(), method=method, resume=path)
    chex.assert_trees_all_equal(resumed.jacobian, whole.jacobian)


def test_files_of_both_kinds(tmp_path, golden, gpt2):
    published = lens.load_jacobian_lens(FILE, gpt2)
    half = golden["jacobian"].astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(published.jacobian, half)
    assert published.prompts == 2
    for name in ("own.safetensors", "own.pt"):
        note = {"corpus": "golden"}
        lens.save_jacobian_lens(published, tmp_path / name, model=gpt2, metadata=note)
        found = lens.load_jacobian_lens(tmp_path / name, gpt2)
        chex.assert_trees_all_equal(found, published)
        other = eqx.tree_at(lambda m: m.embedding.weight, gpt2, jnp.eye(300, 32))
        with pytest.warns(UserWarning, match="different unembedding"):
            lens.load_jacobian_lens(tmp_path / name, other)
    sums = {
        "jacobian_sum": {i: 2 * a for i, a in enumerate(half)},
        "n_done": 2,
        "next_idx": 2,
        "source_layers": [0, 1],
        "target_layer": 2,
        "skip_first": 2,
    }
    mijax.io.save_torch(sums, tmp_path / "fit.pt")
    chex.assert_trees_all_equal(lens.load_jacobian_lens(tmp_path / "fit.pt"), published)
    wrong = {
        "target_layer": sums | {"target_layer": 1},
        "source_layers": sums | {"source_layers": [0, 2]},
        "every layer": {"J": {1: half[1]}, "n_prompts": 1},
        "n_prompts": {"J": {0: half[1]}},
        "expected J.0": {"J": {0: half[1]}, "n_prompts": 1, "K": half[0]},
        "averages 0 prompts": {"J": {0: half[1]}, "n_prompts": 0},
    }
    for words, content in wrong.items():
        mijax.io.save_torch(content, tmp_path / "wrong.pt")
        with pytest.raises(LoadError, match=words):
            lens.load_jacobian_lens(tmp_path / "wrong.pt")
    with pytest.raises(LoadError, match="for 3 layers of width 32"):
        lens.load_jacobian_lens(FILE, model("attention_only"))
    with pytest.raises(OutputError, match=r"\.safetensors or \.pt"):
        lens.save_jacobian_lens(published, tmp_path / "a.bin")


def test_clamping_twice_is_clamping_once_and_live_exchange_undoes_itself(fitted, gpt2):
    tokens = jnp.arange(3, 9)
    clamp = lens.clamp_concepts(fitted, gpt2, tokens, 7, 11, layers=[1])
    swap = lens.swap_concepts(fitted, gpt2, 7, 11, layers=[1])
    plain = mijax.run(gpt2, tokens)
    once, twice = (mijax.run(gpt2, tokens, [clamp] * n) for n in (1, 2))
    chex.assert_trees_all_close(once, twice, atol=1e-4)
    chex.assert_trees_all_close(once, mijax.run(gpt2, tokens, swap), atol=1e-4)
    # The trap: the same exchange again brings the clean run back.
    chex.assert_trees_all_close(mijax.run(gpt2, tokens, [swap] * 2), plain, atol=1e-4)
    assert jnp.abs(once - plain).max() > 0.1
    with pytest.raises(ConfigError, match="would undo itself"):
        lens.swap_concepts(fitted, gpt2, 7, 11, layers=[0, 1])


def test_ablated_streams_have_no_part_along_any_direction(fitted, gpt2):
    tokens = jnp.arange(3, 9)
    edit = lens.ablate_concepts(fitted, gpt2, [7, 11], layers=[1])
    stream = mijax.capture(gpt2, tokens, mijax.Site("resid_post", layer=1), edit)
    vectors = fitted.vectors(gpt2, [7, 11])[1]
    assert jnp.abs(stream @ vectors.T).max() < 1e-3
    # One after the other leaves a part of the first direction.
    units = vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)
    naive = mijax.capture(gpt2, tokens, mijax.Site("resid_post", layer=1))
    for unit in units:
        naive = naive - (naive @ unit)[:, None] * unit
    assert jnp.abs(naive @ vectors.T).max() > 0.05


def test_steering_a_batch_is_steering_each(fitted, gpt2):
    given = prompts()
    edit = lens.steer_concept(fitted, gpt2, given, 7, layers=[0, 1], alpha=2.0)
    whole = mijax.run(gpt2, given, edit)
    for i, n in enumerate(LENGTHS.tolist()):
        alone = CLEAN[i, :n]
        own = lens.steer_concept(fitted, gpt2, alone, 7, layers=[0, 1], alpha=2.0)
        chex.assert_trees_all_close(
            whole[i, :n], mijax.run(gpt2, alone, own), atol=1e-4
        )
    none = lens.steer_concept(fitted, gpt2, given, 7, layers=[1], alpha=0.0)
    chex.assert_trees_all_equal(mijax.run(gpt2, given, none), mijax.run(gpt2, given))


def test_refuses(fitted, gpt2):
    folded = nn.fold_norm(gpt2)
    for call in (
        lambda: lens.read(folded, [1, 2], fitted),
        lambda: lens.fit_jacobian_lens(folded, [[1, 2, 3]]),
        lambda: fitted.vectors(folded, 3),
    ):
        with pytest.raises(FrameError, match="fold_norm"):
            call()
    with pytest.raises(ShapeError, match="longest prompt has 3 tokens"):
        lens.fit_jacobian_lens(gpt2, [[1, 2, 3]])
    with pytest.raises(ShapeError, match="fitted on 3 layers"):
        lens.read(model("attention_only"), CLEAN, fitted)
    with pytest.raises(ConfigError, match="seq above skip"):
        lens.ExactJacobian(seq=17)
    with pytest.raises(ShapeError, match="from 0 to 299"):
        fitted.vectors(gpt2, 300)
    with pytest.raises(ShapeError, match="from 0 to 2"):
        lens.ablate_concepts(fitted, gpt2, [1], layers=[3])
    with pytest.raises(ShapeError, match=r"cosine of 1\.0000"):
        lens.swap_concepts(fitted, gpt2, 5, 5, layers=[1])
    weight = gpt2.embedding.weight
    near = weight.at[5].set(weight[7] + 0.1 * weight[5])
    alike = eqx.tree_at(lambda m: m.embedding.weight, gpt2, near)
    with pytest.warns(UserWarning, match="swaps make large changes"):
        lens.swap_concepts(fitted, alike, 5, 7, layers=[2])
