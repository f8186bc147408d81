"""Models of other libraries get sites without a change of their outputs."""

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from flax import linen, nnx
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
    named = {"conv": r"convs\.\d", "head": nnx.Linear}
    yield (
        "nnx",
        images(),
        interop.mark_nnx(images(), named, axes={"conv": "row column channel"}),
        PHOTO,
        {"conv": ((16, 16, 4),) * 2, "head": ((2,),)},
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


class Twice(eqx.Module):
    weight: jax.Array

    def __call__(self, x):
        return None


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
