"""Activations and patching grids against TransformerLens and plain PyTorch.

The files and the scripts that made them are in `tests/golden`.
"""

import functools
from pathlib import Path

import chex
import jax.numpy as jnp
import numpy as np
import pytest

import mijax

GOLDEN = Path(__file__).parent.parent / "golden"
TOLERANCE = 1e-4
SITES = (
    *("resid_pre", "q", "k", "v", "pattern", "z", "attn_out", "resid_mid"),
    *("mlp_in", "mlp_pre", "mlp_post", "mlp_out", "resid_post"),
)


@functools.cache
def model(name):
    return mijax.models.load(str(GOLDEN / "hf" / name)).model


def read(name):
    with np.load(GOLDEN / name) as file:
        return {key: jnp.asarray(file[key]) for key in file.files}


@pytest.mark.parametrize("run", ["clean", "corrupt"])
def test_every_site_of_gpt2_is_that_of_transformer_lens(run):
    golden = read(f"transformer_lens/activations_{run}.npz")
    asked = {site: mijax.Site(site) for site in (*SITES, "scores", "resid_final")}
    found = mijax.capture(model("gpt2"), golden["tokens"], asked)
    for site in SITES:
        chex.assert_trees_all_close(found[site], golden[site], atol=TOLERANCE)
    chex.assert_trees_all_close(
        found["resid_final"], golden["ln_final"], atol=TOLERANCE
    )
    seen = jnp.isfinite(golden["scores"])
    chex.assert_trees_all_close(
        jnp.where(seen, found["scores"], 0),
        jnp.where(seen, golden["scores"], 0),
        atol=TOLERANCE,
    )
    logits = mijax.run(model("gpt2"), golden["tokens"])
    chex.assert_trees_all_close(logits, golden["logits"], atol=TOLERANCE)


GRIDS = [
    ("gpt2", "transformer_lens/grids.npz", site, "position")
    for site in ("resid_pre", "attn_out", "mlp_out")
]
GRIDS += [
    ("gpt2", "transformer_lens/grids.npz", site, "head")
    for site in ("z", "q", "k", "v", "pattern")
]
GRIDS += [("llama", "llama/grids.npz", "resid_pre", "position")]
GRIDS += [
    ("llama", "llama/grids.npz", site, "head")
    for site in ("z", "q", "k", "v", "pattern")
]


@pytest.mark.parametrize(("name", "file", "site", "axis"), GRIDS)
def test_patching_grids(name, file, site, axis):
    golden = read(file)
    acts = mijax.capture(model(name), golden["clean"], mijax.Site(site))
    found = mijax.sweep(
        model(name),
        golden["corrupt"],
        mijax.Patch(acts).at(site),
        over=("layer", axis),
        metric=mijax.logit_difference(int(golden["answer"]), int(golden["wrong"])),
    )
    chex.assert_trees_all_close(found.values, golden[f"{site}_{axis}"], atol=TOLERANCE)
    chex.assert_trees_all_close(found.base, golden["metric_corrupt"], atol=TOLERANCE)


@pytest.mark.parametrize("kind", ["noising", "zero"])
def test_noising_and_zero_ablation(kind):
    golden = read("transformer_lens/grids.npz")
    acts = mijax.capture(model("gpt2"), golden["corrupt"], mijax.Site("z"))
    edit = mijax.Zero() if kind == "zero" else mijax.Patch(acts)
    found = mijax.sweep(
        model("gpt2"),
        golden["clean"],
        edit.at("z"),
        over=("layer", "head"),
        metric=mijax.logit_difference(int(golden["answer"]), int(golden["wrong"])),
    )
    chex.assert_trees_all_close(found.values, golden[f"z_head_{kind}"], atol=TOLERANCE)


@pytest.mark.parametrize("site", ["q", "k", "v", "z", "pattern"])
def test_views_of_grouped_query_heads(site):
    golden = read("llama/grids.npz")
    found = mijax.capture(model("llama"), golden["clean"], mijax.Site(site))
    chex.assert_trees_all_close(found, golden[f"clean_{site}"], atol=TOLERANCE)
