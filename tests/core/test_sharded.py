"""A model spread over devices equals the model on one."""

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from cases import CLEAN, METRIC, model
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import mijax
from mijax._errors import ShapeError

CUT = {"w_q": P(None, None, "model"), "w_o": P(None, "model")}


def spread(mesh):
    def put(path, x):
        name = jax.tree_util.keystr(path).rsplit(".", 1)[-1]
        return jax.device_put(x, NamedSharding(mesh, CUT.get(name, P())))

    arrays, static = eqx.partition(model("gpt2"), eqx.is_array)
    return eqx.combine(jax.tree_util.tree_map_with_path(put, arrays), static)


def test_axes_of_any_type():
    # The default of `jax.make_mesh`.
    mesh = jax.make_mesh((4,), ("model",))
    assert jax.sharding.AxisType.Explicit in mesh.axis_types
    sharded, one = spread(mesh), model("gpt2")
    row = jax.device_put(jnp.ones(32), NamedSharding(mesh, P("model")))
    site = mijax.Site("z")
    edits = mijax.Add(row).at("resid_pre", layer=1)
    both = [
        (
            mijax.run(m, CLEAN, edits),
            mijax.capture(m, CLEAN, site),
            mijax.gradients(m, CLEAN, METRIC, site),
            mijax.sweep(
                m, CLEAN, mijax.Zero().at("z"), over=("layer", "head"), metric=METRIC
            ).values,
        )
        for m in (sharded, one)
    ]
    chex.assert_trees_all_close(*both, atol=1e-4)
    with jax.set_mesh(mesh), pytest.raises(ShapeError, match=r"outside of it"):
        mijax.run(sharded, CLEAN)
