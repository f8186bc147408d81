"""A model whose weights are spread over a mesh equals the model on one device."""

from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import pytest
from cases import CLEAN, CORRUPT, METRIC, model
from jax.sharding import PartitionSpec as P

import mijax
from mijax import Site, circuits, models
from mijax._errors import ConfigError
from mijax.train import mesh as mesh_of

MESHES = {
    "data": (mesh_of(data=8, model=1), models.Sharding(embed="data")),
    "model": (mesh_of(data=1, model=8), models.Sharding()),
    "both": (mesh_of(data=2, model=4), models.Sharding()),
    "all": (mesh_of(data=2, model=4), models.Sharding(embed="data")),
}


def results(llama, mesh=None):
    task = circuits.Task(CLEAN, CORRUPT, metric=METRIC)
    z, edit = Site("z"), mijax.Scale(0.5).at("resid_post", layer=1)
    zero = mijax.Zero().at("z")
    heads = {"over": ("layer", "head"), "metric": METRIC}
    return {
        "run": mijax.run(llama, CLEAN, edit),
        "capture": mijax.capture(llama, CLEAN, z),
        "gradients": mijax.gradients(llama, CLEAN, METRIC, z),
        "generate": mijax.generate(llama, CLEAN, steps=4).astype(float),
        "sweep": mijax.sweep(llama, CLEAN, zero, mesh=mesh, **heads).values,
        "EAP": circuits.discover(llama, task, method=circuits.EAP()).values,
        "exact": circuits.discover(llama, task, method=circuits.Exact()).values,
    }


@pytest.fixture(scope="module")
def single():
    return results(model("llama"))


@pytest.mark.parametrize("name", MESHES)
def test_methods_equal_one_device(name, single):
    mesh, sharding = MESHES[name]
    sharded = models.shard(model("llama"), mesh, sharding)
    # 32 wide, 4 heads, 2 of keys and values.
    split = {"data": 8, "model": 1, "both": 4, "all": 8}[name]
    w_q = sharded.blocks.attention.w_q
    assert w_q.addressable_shards[0].data.size * split == w_q.size
    chex.assert_trees_all_close(results(sharded, mesh), single, atol=1e-5)


def test_activations_to_train_on():
    corpus = mijax.data.Corpus.from_ids([range(1, 60)], separator=0)
    tokens = mijax.data.Tokens(corpus, seq=10, batch=2)

    def rows(llama, mesh):
        site = Site("resid_post", layer=1)
        sizes = {"batch": 8, "buffer": 32, "mesh": mesh}
        source = mijax.data.Activations(llama, tokens, site, **sizes)
        return source.batch(source.start())[1].x

    mesh, _ = MESHES["both"]
    sharded = models.shard(model("llama"), mesh)
    ours, single = rows(sharded, mesh), rows(model("llama"), None)
    assert ours.sharding.spec == P("data")
    chex.assert_trees_all_close(ours, single, atol=1e-5)


def test_loading_reads_each_part_to_its_device(tmp_path):
    folder = Path(__file__).parents[1] / "golden" / "hf" / "llama"
    mesh = mesh_of(data=2, model=2)
    whole = models.load(folder)
    models.save(whole.model, whole.spec, tmp_path / "native")
    for place in (folder, tmp_path / "native"):
        loaded = models.load(place, mesh=mesh, sharding=models.Sharding(embed="data"))
        chex.assert_trees_all_equal(loaded.model, whole.model)
        blocks = loaded.model.blocks
        assert blocks.attention.w_k.sharding.spec == P(None, "data", "model", None)
        assert blocks.mlp.w_out.addressable_shards[0].data.shape == (3, 40, 16)
        assert loaded.model.embedding.weight.sharding.spec == P("model", "data")
        assert blocks.norm_1.weight.sharding.is_fully_replicated
    half = models.load(folder, dtype="bfloat16", mesh=mesh)
    assert half.model.blocks.mlp.w_in.dtype == jnp.bfloat16


def test_what_cannot_be_split():
    mesh = jax.make_mesh((4,), ("model",))
    # Two heads of keys and values stay whole on each of four devices.
    shapes = {"w_q": (3, 32, 4, 8), "w_k": (3, 32, 2, 8)}
    specs = [models.Sharding().of(*weight, mesh) for weight in shapes.items()]
    assert specs == [P(None, None, "model", None), P(None, None, None, None)]
    wrong = jax.make_mesh((4,), ("tensor",))
    with pytest.raises(ConfigError, match=r"has the axes \['tensor'\] and weights are"):
        models.shard(model("llama"), wrong)
    named = models.Sharding(heads="tensor", mlp="tensor", vocab="tensor")
    assert models.shard(model("llama"), wrong, named).n_layers == 3
