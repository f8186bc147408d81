"""Backward rules: gradients derived by hand, coverage, unchanged outputs."""

import dataclasses

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from penzai import pz

import mijax
from mijax import nn, testing
from mijax._errors import ConfigError
from mijax.core._block import run_block

TOKENS = jnp.array([3, 14, 15, 9, 26, 5])
ANSWER, WRONG = 7, 11
METRIC = mijax.logit_difference(ANSWER, WRONG)
MODELS = {
    "gpt2": testing.tiny_gpt2,
    "llama": testing.tiny_llama,
    "parallel": testing.tiny_parallel,
    "attention only": testing.tiny_attention_only,
}
RULES = {
    "FrozenNorms": nn.FrozenNorms(),
    "TemperedSoftmax": nn.TemperedSoftmax(),
    "FrozenPattern": nn.FrozenPattern(),
    "HalfProducts": nn.HalfProducts(),
    "GIM": nn.GIM(),
    "RelP": nn.RelP(),
    "RelP, AH-rule": nn.RelP(freeze_pattern=True),
    "AttnLRP": nn.AttnLRP(),
}

CASES = [
    *(("llama", rule) for rule in RULES),
    *((name, rule) for name in MODELS if name != "llama" for rule in ("GIM", "RelP")),
]


def tiny(name):
    return MODELS[name](jax.random.key(1))


def one_block(name):
    model = tiny(name)
    blocks = jax.tree.map(lambda leaf: leaf[:1], model.blocks)
    return eqx.tree_at(lambda m: m.blocks, model, blocks)


@dataclasses.dataclass
class ByHand:
    """Forward and backward of one block in NumPy, with each rule as an option."""

    model: nn.Transformer
    frozen_norms: bool = False
    temperature: float | None = 1.0  # None: no gradient through the pattern
    share: float = 1.0  # of a product's gradient that each factor gets
    gate_share: float = 1.0
    secant: bool = False

    def gradients(self, tokens):
        """The gradient of the logit difference at embed, q, k and v."""
        block = jax.tree.map(lambda leaf: np.asarray(leaf[0], float), self.model.blocks)
        embed = np.asarray(
            self.model.embed(tokens, jnp.arange(len(tokens), dtype=jnp.int32)), float
        )
        x, norm_1 = self.norm(block.norm_1, embed)
        out, attention = self.attention(block.attention, x)
        mid = embed + out
        x, norm_2 = self.norm(block.norm_2, mid)
        out, mlp = self.mlp(block.mlp, x)
        last = jax.tree.map(lambda leaf: np.asarray(leaf, float), self.model.norm)
        _, norm = self.norm(last, mid + out)
        table = np.asarray((self.model.unembedding or self.model.embedding).weight)
        g = np.zeros(embed.shape)
        g[-1] = table[ANSWER] - table[WRONG]
        g = norm(g)
        g = g + norm_2(mlp(g))
        into, heads = attention(g)
        return {"embed": g + norm_1(into), **heads}

    def norm(self, norm, x):
        centre = isinstance(norm, nn.LayerNorm)
        if centre:
            x = x - x.mean(-1, keepdims=True)
        scale = np.sqrt((x**2).mean(-1, keepdims=True) + norm.eps)
        unit = x / scale

        def backward(g):
            g = g * norm.weight
            if not self.frozen_norms:
                g = g - unit * (g * unit).mean(-1, keepdims=True)
            return (g - g.mean(-1, keepdims=True) if centre else g) / scale

        return unit * norm.weight + (norm.bias if centre else 0), backward

    def attention(self, a, x):
        q, k, v = (
            np.einsum("ne,ehd->nhd", x, w) + (0 if b is None else b)
            for w, b in ((a.w_q, a.b_q), (a.w_k, a.b_k), (a.w_v, a.b_v))
        )
        groups = q.shape[1] // k.shape[1]
        k, v = (np.repeat(array, groups, axis=1) for array in (k, v))
        turned_q, turned_k = self.turn(a, q, 1), self.turn(a, k, 1)
        root = np.sqrt(q.shape[-1])
        scores = np.einsum("qhd,khd->hqk", turned_q, turned_k) / root
        scores = np.where(np.tri(len(x), dtype=bool), scores, -np.inf)
        pattern = softmax(scores)
        z = np.einsum("hqk,khd->qhd", pattern, v)

        def backward(g):
            g = np.einsum("ne,hde->nhd", g, a.w_o)
            g_pattern = self.share * np.einsum("qhd,khd->hqk", g, v)
            g_v = self.share * np.einsum("hqk,qhd->khd", pattern, g)
            g_scores = np.zeros(scores.shape)
            if self.temperature is not None:
                tempered = softmax(scores / self.temperature)
                mean = (g_pattern * tempered).sum(-1, keepdims=True)
                g_scores = self.share * tempered * (g_pattern - mean) / root
            g_q = self.turn(a, np.einsum("hqk,khd->qhd", g_scores, turned_k), -1)
            g_k = self.turn(a, np.einsum("hqk,qhd->khd", g_scores, turned_q), -1)
            g_x = np.zeros(x.shape)
            for g, w in ((g_q, a.w_q), (g_k, a.w_k), (g_v, a.w_v)):
                every = np.repeat(w, q.shape[1] // w.shape[1], axis=1)
                g_x += np.einsum("nhd,ehd->ne", g, every)
            return g_x, {"q": g_q, "k": g_k, "v": g_v}

        out = np.einsum("nhd,hde->ne", z, a.w_o)
        return out + (0 if a.b_o is None else a.b_o), backward

    def turn(self, a, x, sign):
        if a.rotary is None:
            return x
        angle = np.arange(len(x))[:, None, None] * a.rotary.frequency
        cos, sin = np.cos(angle), sign * np.sin(angle)
        first, second = np.split(x, 2, axis=-1)
        return np.concatenate(
            [first * cos - second * sin, second * cos + first * sin], axis=-1
        )

    def mlp(self, mlp, x):
        if isinstance(mlp, nn.GatedMLP):
            return self.gated(mlp, x)
        pre = x @ mlp.w_in + mlp.b_in
        post, slope = gelu(pre)
        slope = post / pre if self.secant else slope
        return (
            post @ mlp.w_out + mlp.b_out,
            lambda g: (g @ mlp.w_out.T * slope) @ (mlp.w_in.T),
        )

    def gated(self, mlp, x):
        pre, up = x @ mlp.w_gate, x @ mlp.w_in
        gate, slope = silu(pre)
        slope = gate / pre if self.secant else slope

        def backward(g):
            g = self.gate_share * g @ mlp.w_out.T
            return (g * up * slope) @ mlp.w_gate.T + (g * gate) @ mlp.w_in.T

        return (gate * up) @ mlp.w_out, backward


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def gelu(x):
    inner = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
    d_inner = np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * x**2)
    t = np.tanh(inner)
    return 0.5 * x * (1 + t), 0.5 * (1 + t) + 0.5 * x * (1 - t**2) * d_inner


def silu(x):
    s = 1 / (1 + np.exp(-x))
    return x * s, s * (1 + x * (1 - s))


DERIVED = {
    "no rule": ((), {}),
    "GIM": (
        (nn.GIM(),),
        {"frozen_norms": True, "temperature": 2.0, "share": 0.5, "gate_share": 0.5},
    ),
    "GIM, T = 3": (
        (nn.GIM(temperature=3.0),),
        {"frozen_norms": True, "temperature": 3.0, "share": 0.5, "gate_share": 0.5},
    ),
    "RelP": (
        (nn.RelP(),),
        {"frozen_norms": True, "secant": True, "gate_share": 0.5},
    ),
    "RelP, AH-rule": (
        (nn.RelP(freeze_pattern=True),),
        {
            "frozen_norms": True,
            "secant": True,
            "gate_share": 0.5,
            "temperature": None,
        },
    ),
    "AttnLRP": (
        (nn.AttnLRP(),),
        {"frozen_norms": True, "secant": True, "share": 0.5, "gate_share": 0.5},
    ),
    "norms and patterns": (
        (nn.FrozenNorms(), nn.FrozenPattern()),
        {"frozen_norms": True, "temperature": None},
    ),
}


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("case", DERIVED)
def test_gradients_are_those_derived_by_hand(name, case):
    rules, options = DERIVED[case]
    model = one_block(name)
    expected = ByHand(model, **options).gradients(TOKENS)
    if rules:
        model = nn.apply(model, *rules).model
    heads = {site: mijax.Site(site, layer=0) for site in ("q", "k", "v")}
    found = mijax.gradients(
        model, TOKENS, METRIC, {"embed": mijax.Site("embed"), **heads}
    )
    for site, value in expected.items():
        np.testing.assert_allclose(found[site], value, atol=3e-5, err_msg=site)


@pytest.mark.parametrize(("name", "rule"), CASES)
def test_outputs_do_not_change(name, rule):
    model = tiny(name)
    ruled = RULES[rule](model)
    for run in (lambda m: m(TOKENS), eqx.filter_jit(lambda m: m(TOKENS))):
        chex.assert_trees_all_equal(run(ruled), run(model))


def test_frozen_norms_keep_gradients_where_an_edit_leaves_their_scale():
    plain = tiny("llama")
    frozen = RULES["FrozenNorms"](plain)
    acts = mijax.capture(plain, TOKENS, "mlp_norm_scale")
    same = mijax.Patch(acts).at("mlp_norm_scale")
    gradients = [
        mijax.gradients(frozen, TOKENS, METRIC, mijax.Site("embed"), edits)
        for edits in (None, same)
    ]
    chex.assert_trees_all_close(*gradients, atol=1e-5)
    halved = mijax.Scale(0.5).at("mlp_norm_scale")
    runs = [mijax.run(model, TOKENS, halved) for model in (frozen, plain)]
    chex.assert_trees_all_equal(*runs)


@pytest.mark.parametrize(("name", "rule"), CASES)
def test_gradients_change(name, rule):
    model = tiny(name)
    site = mijax.Site("embed")
    plain = mijax.gradients(model, TOKENS, METRIC, site)
    found = mijax.gradients(RULES[rule](model), TOKENS, METRIC, site)
    assert np.isfinite(found).all()
    assert not np.allclose(found, plain, rtol=1e-2)


def test_true_gradients_are_special_cases():
    model = tiny("llama")
    site = mijax.Site("embed")
    plain = mijax.gradients(model, TOKENS, METRIC, site)
    found = nn.apply(model, nn.TemperedSoftmax(1.0)).model
    found = mijax.gradients(found, TOKENS, METRIC, site)
    np.testing.assert_allclose(found, plain, rtol=1e-4, atol=1e-5)


def test_relu_is_its_own_secant():
    model = tiny("gpt2")
    model = pz.select(model).at_instances_of(nn.GELU).set(nn.ReLU())
    site = mijax.Site("embed")
    plain = mijax.gradients(model, TOKENS, METRIC, site)
    found = mijax.gradients(nn.SecantActivation()(model), TOKENS, METRIC, site)
    np.testing.assert_allclose(found, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("activation", [nn.GELU(), nn.SiLU(), nn.ReLU()])
def test_secant_at_zero_is_the_derivative(activation):
    model = pz.select(tiny("gpt2")).at_instances_of(nn.GELU).set(activation)
    secant = nn.SecantActivation()(model).blocks.mlp.activation
    zero = jnp.zeros(())
    assert jax.grad(secant)(zero) == jax.grad(activation)(zero)
    assert jax.grad(secant)(jnp.array(2.0)) == activation(jnp.array(2.0)) / 2


def test_a_saturated_softmax_keeps_a_gradient():
    scores = jnp.array([60.0, 0.0, 1.0])
    direction = jnp.array([0.3, -1.0, 2.0])
    ruled = nn.TemperedSoftmax(20.0)(tiny("gpt2")).blocks.attention.softmax
    plain, found = (
        jax.grad(lambda s, f=f: f(s) @ direction)(scores) for f in (nn.Softmax(), ruled)
    )
    assert np.abs(plain).max() < 1e-20
    p = softmax(np.asarray(scores) / 20)
    np.testing.assert_allclose(found, p * (direction - direction @ p), rtol=1e-5)


def test_batches_and_layers_are_as_one_by_one():
    model = nn.GIM()(tiny("llama"))
    tokens = jnp.stack([TOKENS, TOKENS[::-1]])
    site = mijax.Site("z")
    batch = mijax.gradients(model, tokens, METRIC, site)
    each = [mijax.gradients(model, row, METRIC, site) for row in tokens]
    np.testing.assert_allclose(batch, jnp.stack(each), rtol=1e-4, atol=1e-5)

    def unrolled(embed):
        x = embed
        rows = mijax.core._rows.Sequence(jnp.arange(len(TOKENS)))
        for layer in range(model.n_layers):
            block = jax.tree.map(lambda leaf, layer=layer: leaf[layer], model.blocks)
            x = run_block(block, x, rows)
        return METRIC(model.unembed(model.normalise(x)))

    embed = mijax.capture(model, TOKENS, mijax.Site("embed"))
    scanned = mijax.gradients(model, TOKENS, METRIC, mijax.Site("embed"))
    np.testing.assert_allclose(scanned, jax.grad(unrolled)(embed), rtol=1e-4, atol=1e-5)


def test_low_precision_stays():
    model = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tiny("llama"))
    ruled = nn.AttnLRP()(model)
    chex.assert_trees_all_equal(ruled(TOKENS), model(TOKENS))
    found = mijax.gradients(ruled, TOKENS, METRIC, mijax.Site("embed"))
    assert found.dtype == jnp.bfloat16
    assert np.isfinite(np.asarray(found, np.float32)).all()


def counts(model, rule):
    return {k: dict(v) for k, v in nn.apply(model, rule).coverage.counts.items()}


def test_coverage_counts_modules_of_every_layer():
    assert counts(tiny("gpt2"), nn.GIM()) == {
        "FrozenNorms": {"LayerNorm": 7},
        "TemperedSoftmax": {"Softmax": 3},
        "HalfProducts": {"Product": 3},
    }
    assert counts(tiny("llama"), nn.AttnLRP()) == {
        "FrozenNorms": {"RMSNorm": 7},
        "SecantActivation": {"SiLU": 3},
        "HalfProducts": {"Product": 6},
    }
    assert counts(tiny("llama"), nn.RelP())["HalfGates"] == {"Product": 3}
    assert counts(tiny("attention only"), nn.RelP(freeze_pattern=True)) == {
        "FrozenNorms": {"LayerNorm": 3},
        "SecantActivation": {},
        "HalfGates": {},
        "FrozenPattern": {"Softmax": 2},
    }


def test_coverage_prints_what_found_nothing():
    coverage = nn.apply(tiny("attention only"), nn.RelP()).coverage
    assert str(coverage).splitlines() == [
        "FrozenNorms       3 LayerNorm",
        "SecantActivation  0",
        "HalfGates         0",
    ]
    assert coverage.total == 3
    assert coverage["FrozenNorms"] == {"LayerNorm": 3}


def test_rules_of_several_modules_keep_attention_products_of_gates_alone():
    model = nn.HalfGates()(tiny("llama"))
    assert isinstance(model.blocks.attention.product, nn.Product)
    assert not isinstance(model.blocks.mlp.product, nn.Product)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (nn.SecantActivation(), "SecantActivation matches nothing.*GELU, SiLU, ReLU"),
        (nn.HalfGates(), "HalfGates matches nothing.*Product inside AbstractMLP"),
    ],
)
def test_a_rule_that_matches_nothing_is_refused(rule, message):
    with pytest.raises(ConfigError, match=message):
        rule(tiny("attention only"))


def test_one_rule_of_many_that_matches_nothing_is_refused():
    with pytest.raises(ConfigError, match="HalfGates matches nothing"):
        nn.apply(tiny("gpt2"), nn.FrozenNorms(), nn.HalfGates())


def test_a_rule_is_applied_once():
    model = nn.GIM()(tiny("gpt2"))
    with pytest.raises(ConfigError, match=r"FrozenPattern.*SoftmaxAt already"):
        nn.FrozenPattern()(model)
    with pytest.raises(ConfigError, match=r"replaces LayerNorm.*FrozenNorm already"):
        nn.FrozenNorms()(model)
    assert nn.SecantActivation()(model) is not None


def test_unknown_activations_are_refused():
    model = tiny("gpt2")
    model = eqx.tree_at(lambda m: m.blocks.mlp.activation, model, jnp.tanh)
    with pytest.raises(ConfigError, match="does not know the activation 'tanh' of MLP"):
        nn.RelP()(model)


def test_no_rule_and_no_temperature():
    with pytest.raises(ConfigError, match="at least one rule"):
        nn.apply(tiny("gpt2"))
    with pytest.raises(ConfigError, match="positive"):
        nn.TemperedSoftmax(0.0)
