"""Models of other libraries get sites without a change of their outputs."""

import functools

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from flax import linen, nnx
from jax.ad_checkpoint import checkpoint_name
from penzai import pz
from penzai.models.simple_mlp import MLP as PenzaiMLP
from penzai.models.transformer.variants import llamalike_common as llamalike
from toys import IMAGE, KEY, SEQ

import mijax
from mijax import harvest, interop
from mijax._errors import SiteError

ATTENTION = eqx.nn.MultiheadAttention(2, 8, key=KEY)
MLP = eqx.nn.MLP(8, 3, 6, 2, key=KEY)
RNN = eqx.nn.LSTMCell(8, 4, key=KEY)


def attend(module):
    return lambda x: module(x, x, x)


class Images(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        sizes = ((3, 4), (4, 4))
        self.convs = nnx.List([nnx.Conv(i, o, (3, 3), rngs=rngs) for i, o in sizes])
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.head = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        for conv in self.convs:
            x = nnx.relu(conv(x))
        return self.head(self.norm(x).mean((0, 1)))


LINEN = linen.Sequential([linen.Dense(6), jnp.tanh, linen.Dense(3)])
VARIABLES = LINEN.init(KEY, SEQ[0])
PHOTO = IMAGE.transpose(1, 2, 0)


def images():
    model = Images()
    model.eval()
    return model


def decoder(*, stacked):
    config = llamalike.LlamalikeTransformerConfig(
        num_kv_heads=1,
        query_head_multiplier=2,
        embedding_dim=8,
        projection_dim=4,
        mlp_hidden_dim=6,
        num_decoder_blocks=2,
        vocab_size=11,
        mlp_variant="swiglu",
        tie_embedder_and_logits=False,
        use_layer_stack=stacked,
    )
    return llamalike.build_llamalike_transformer(config, KEY)


def spoken(model):
    """A penzai language model of plain token ids."""

    def run(x):
        ids = (10 * jnp.abs(jnp.sin(x[:, 0]))).astype(int)
        return model(pz.nx.wrap(ids).tag("seq")).unwrap("seq", "vocabulary")

    return run


def perceptron(model):
    def run(x):
        return model(pz.nx.wrap(x).tag("features", "batch")).unwrap("batch", "features")

    return run


def named(x):
    """Blocks that name activations for a policy, as MaxText does."""
    save = jax.checkpoint_policies.save_only_these_names("hidden")

    @functools.partial(jax.checkpoint, policy=save)
    def block(x, w):
        hidden = checkpoint_name(jnp.tanh(x @ w), "hidden")
        return x + checkpoint_name(hidden @ w.T, "out_proj"), None

    ramp = jnp.linspace(-1, 1, 3 * 8 * 6).reshape(3, 8, 6)
    return jax.lax.scan(block, x, ramp)[0]


def cases():
    """Name, the model as it is, with sites, an example, and the shapes expected."""
    linear = {"proj": eqx.nn.Linear}
    yield (
        "equinox, class, inner vmap",
        attend(ATTENTION),
        attend(interop.mark(ATTENTION, linear, axes={"proj": "feature"})),
        SEQ,
        {"proj": ((5, 8),) * 4},
    )
    chosen = {"q": lambda m: m.query_proj, "out": "output_proj"}
    yield (
        "equinox, function and path",
        attend(ATTENTION),
        attend(interop.mark(ATTENTION, chosen)),
        SEQ,
        {"q": ((5, 8),), "out": ((5, 8),)},
    )
    yield (
        "equinox, nested",
        lambda x: MLP(x[0]),
        lambda x: interop.mark([MLP], {"mlp": eqx.nn.MLP, "l": r"0\.layers\.1"})[0](
            x[0]
        ),
        SEQ,
        {"l": ((6,),), "mlp": ((3,),)},
    )
    yield (
        "equinox, a tuple",
        lambda x: RNN(x[0], (jnp.ones(4), jnp.ones(4)))[0],
        lambda x: interop.mark([RNN], {"rnn": eqx.nn.LSTMCell})[0](
            x[0], (jnp.ones(4), jnp.ones(4))
        )[0],
        SEQ,
        {"rnn.0": ((4,),), "rnn.1": ((4,),)},
    )
    by_path = {"conv": r"convs\.\d", "head": nnx.Linear}
    yield (
        "nnx",
        images(),
        interop.mark_nnx(images(), by_path, axes={"conv": "row column channel"}),
        PHOTO,
        {"conv": ((16, 16, 4),) * 2, "head": ((2,),)},
    )
    yield (
        "equinox, penzai selection",
        lambda x: MLP(x[0]),
        lambda x: interop.mark(
            MLP, {"linear": pz.select(MLP).at_instances_of(eqx.nn.Linear)}
        )(x[0]),
        SEQ,
        {"linear": ((6,), (6,), (3,))},
    )
    perceptron_ = PenzaiMLP.from_config(KEY, [5, 6, 4, 3])
    yield (
        "penzai, class and path",
        perceptron(perceptron_),
        perceptron(
            interop.mark_penzai(
                perceptron_, {"hidden": pz.nn.Elementwise, "out": r"sublayers\.4"}
            )
        ),
        SEQ,
        {"hidden": ((8, 6), (8, 4)), "out": ((8, 3),)},
    )
    for stacked in (False, True):
        model = decoder(stacked=stacked)
        chosen = {
            "pattern": pz.nn.Softmax,
            "attn_out": pz.select(model).at_instances_of(pz.nn.Attention),
        }
        axes = {"pattern": "seq kv_seq query_heads", "attn_out": "seq embedding"}
        yield (
            f"penzai decoder, stacked={stacked}",
            spoken(model),
            spoken(interop.mark_penzai(model, chosen, axes=axes)),
            SEQ,
            {"pattern": ((5, 5, 2),) * 2, "attn_out": ((5, 8),) * 2},
        )
    yield (
        "checkpoint names",
        named,
        interop.mark_names(named, {"h": "hid.*", "out_proj": "out_proj"}),
        SEQ,
        {"h": ((5, 6),) * 3, "out_proj": ((5, 8),) * 3},
    )
    yield (
        "linen",
        lambda x: LINEN.apply(VARIABLES, x),
        interop.mark_linen(LINEN, VARIABLES, {"dense": linen.Dense}),
        SEQ[0],
        {"dense": ((6,), (3,))},
    )


@pytest.mark.parametrize("case", list(cases()), ids=lambda case: case[0])
def test_marked_models_are_equal_bit_for_bit_and_have_their_sites(case):
    _, plain, marked, example, shapes = case
    table = mijax.sites(marked, example)
    assert {name: info.shapes for name, info in table.items()} == shapes
    out, acts = harvest(marked)(example)
    chex.assert_trees_all_equal(plain(example), marked(example), out)
    assert list(acts) == list(table)
    first = next(iter(shapes))
    double = {first: lambda x, at: 2 * x + 1}
    edited, _ = harvest(marked, edits=double)(example)
    assert (edited != out).any()


def test_wrapped_modules_keep_attributes_and_gradients():
    marked = interop.mark(MLP, {"linear": eqx.nn.Linear})
    assert marked.layers[0].weight is MLP.layers[0].weight
    slope = eqx.filter_grad(lambda m: m(SEQ[0]).sum())
    chex.assert_trees_all_equal(
        jax.tree.leaves(slope(marked)), jax.tree.leaves(slope(MLP))
    )
    model = images()
    interop.mark_nnx(model, {"head": nnx.Linear})
    assert type(model.head) is nnx.Linear


def test_named_axes_are_the_axes_of_a_site_in_any_order():
    model = decoder(stacked=True)
    chosen = {"attn_out": pz.nn.Attention}
    ids = pz.nx.wrap(jnp.arange(10).reshape(2, 5) % 11).tag("batch", "seq")
    acts = {}
    for order in ("batch seq embedding", "embedding seq batch"):
        marked = interop.mark_penzai(model, chosen, axes={"attn_out": order})
        info = mijax.sites(marked, ids)["attn_out"]
        assert " ".join(info.axes) == order
        out, acts[order] = harvest(marked)(ids)
        assert out.named_shape == {"batch": 2, "seq": 5, "vocabulary": 11}
        chex.assert_trees_all_equal(out, model(ids))
    first, second = (one.attn_out for one in acts.values())
    chex.assert_trees_all_equal(first, second.transpose(0, 3, 2, 1))


def test_checkpoint_names_stay_and_gradients_are_the_same():
    marked = interop.mark_names(named)
    slopes = [jax.jit(jax.grad(lambda x, f=f: f(x).sum())) for f in (named, marked)]
    chex.assert_trees_all_equal(*(slope(SEQ) for slope in slopes))
    # The policy saves the same values, so the same ones are computed again.
    costs = [slope.lower(SEQ).compile().cost_analysis() for slope in slopes]
    assert costs[0]["flops"] == costs[1]["flops"]


class Twice(eqx.Module):
    weight: jax.Array

    def __call__(self, x):
        return None


@pz.pytree_dataclass
class Counting(pz.nn.Layer):
    state: pz.StateVariable

    def __call__(self, x, /, **side_inputs):
        self.state.value = self.state.value + 1
        return x + self.state.value


DROPOUT = linen.Sequential([linen.Dense(6), linen.Dropout(0.5, deterministic=False)])


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: interop.mark(MLP, {"a": eqx.nn.Conv2d}), "No submodule fits"),
        (lambda: interop.mark(MLP, {"a": "layer"}), r"paths such as 'layers\.0'"),
        (
            lambda: interop.mark(MLP, {"a": eqx.nn.Linear, "b": r"layers\.0"}),
            r"at 'layers\.0' has two names",
        ),
        (
            lambda: interop.mark(MLP, {"a": eqx.nn.Linear}, axes={"b": "n"}),
            "axes for 'b', but the sites are a",
        ),
        (
            lambda: interop.mark([Twice(SEQ)], {"a": Twice})[0](SEQ),
            "returns no array",
        ),
        (
            lambda: interop.mark(
                MLP, {"a": pz.select([MLP]).at_instances_of(eqx.nn.Linear)}
            ),
            r"holds '0\.layers\.0', which is not a module of the model",
        ),
        (
            lambda: interop.mark_penzai(
                PenzaiMLP.from_config(KEY, [8, 3]), {"a": pz.nn.Attention}
            ),
            "No submodule fits",
        ),
        (
            lambda: perceptron(
                interop.mark_penzai(
                    PenzaiMLP.from_config(KEY, [5, 3]),
                    {"a": pz.nn.Affine},
                    axes={"a": "batch feature"},
                )
            )(SEQ),
            r"the named axes \['.*'\], got axes='batch feature'",
        ),
        (
            lambda: interop.mark_penzai(
                Counting(pz.StateVariable(jnp.zeros(3))), {"a": Counting}
            ),
            "No submodule fits",
        ),
        (
            lambda: interop.mark_penzai(
                pz.nn.Sequential([Counting(pz.StateVariable(jnp.zeros(3)))]),
                {"a": Counting},
            )(SEQ[0, :3]),
            "changes its variables",
        ),
        (lambda: interop.mark_names(jnp.tanh)(SEQ), "no checkpoint names"),
        (
            lambda: interop.mark_names(named, {"a": "hid"})(SEQ),
            "No checkpoint name fits 'hid' for site 'a'. The names are 'hidden'",
        ),
        (
            lambda: interop.mark_names(named, {"a": "hidden", "b": "h.*"})(SEQ),
            "'hidden' has two sites, 'a' and 'b'",
        ),
        (
            lambda: interop.mark_nnx(Images(), {"a": nnx.Conv})(PHOTO),
            r"Images changes its state.*model\.eval\(\)",
        ),
        (
            lambda: interop.mark_linen(DROPOUT, VARIABLES, {"a": linen.Dense})(SEQ[0]),
            "draws random numbers",
        ),
        (
            lambda: interop.mark_linen(LINEN, VARIABLES, {"a": "x"})(SEQ[0]),
            "No submodule fits 'x'",
        ),
    ],
)
def test_refuses(call, says):
    with pytest.raises(SiteError, match=says):
        call()
