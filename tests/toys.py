"""Small models of every kind that mark sites, for the laws of `harvest`.

A new kind of model is one row of `TOYS`: a function, and one example of its input.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from flax import linen, nnx

from mijax.core import site

KEY = jax.random.key(7)
ROWS, WIDTH = 5, 8
SEQ = jax.random.normal(KEY, (ROWS, WIDTH))
IMAGE = jax.random.normal(KEY, (3, 16, 16))


def weights(i, *shape):
    return 0.3 * jax.random.normal(jax.random.fold_in(KEY, i), shape)


class ConvNet(eqx.Module):
    """A CNN of stages of unequal shape."""

    convs: list
    head: eqx.nn.Linear

    def __init__(self):
        keys = jax.random.split(KEY, 4)
        widths = (3, 8, 16, 16)
        self.convs = [
            eqx.nn.Conv2d(i, o, 3, stride=2, padding=1, key=k)
            for i, o, k in zip(widths, widths[1:], keys[:3], strict=False)
        ]
        self.head = eqx.nn.Linear(16, 5, key=keys[3])

    def __call__(self, x):
        for conv in self.convs:
            x = site("conv", conv(x), "channel row column")
            x = site("relu", jax.nn.relu(x), "channel row column")
        return site("logits", self.head(x.mean((1, 2))), "class")


ENCODER = {
    "qkv": weights(1, 3, 3, WIDTH, 2, 4),
    "out": weights(2, 3, 2, 4, WIDTH),
    "mlp": weights(3, 3, WIDTH, WIDTH),
}


def norm(x):
    return x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + 1e-5)


def block(x, p, tower=""):
    """A bidirectional transformer block."""
    x = site(f"{tower}resid_pre", x, "position embed")
    q, k, v = jnp.einsum("se,jehd->jshd", norm(x), p["qkv"])
    scores = jnp.einsum("qhd,khd->qhk", q, k) / 2
    pattern = site(
        f"{tower}pattern", jax.nn.softmax(scores), "position head key_position"
    )
    z = jnp.einsum("qhk,khd->qhd", pattern, v)
    z = site(f"{tower}z", z, "position head head_dim")
    x = x + jnp.einsum("qhd,hde->qe", z, p["out"])
    return x + site(f"{tower}mlp_out", jnp.tanh(norm(x) @ p["mlp"]), "position embed")


def encoder(x):
    return jax.lax.scan(lambda x, p: (block(x, p), None), x, ENCODER)[0].mean(0)


def unrolled(x):
    """The same as `encoder`, without a scan."""
    for i in range(3):
        x = block(x, jax.tree.map(lambda a, i=i: a[i], ENCODER))
    return x.mean(0)


PATCHES, POSITIONS = weights(4, 3 * 8 * 8, WIDTH), weights(5, 5, WIDTH)


def vit(image):
    """Patches, a class token, the encoder, a head on the class token."""
    patches = image.reshape(3, 2, 8, 2, 8).transpose(1, 3, 0, 2, 4).reshape(4, -1)
    x = jnp.concatenate([jnp.ones((1, WIDTH)), patches @ PATCHES]) + POSITIONS
    x = site("embed", x, "position embed")
    x = jax.lax.scan(lambda x, p: (block(x, p), None), x, ENCODER)[0]
    return site("logits", x[0], "class")


def encoder_decoder(inputs):
    """Two scans of blocks; the decoder reads the encoder's output."""
    step = lambda tower: lambda x, p: (block(x, p, tower), None)  # noqa: E731
    memory = jax.lax.scan(step("encoder."), inputs["source"], ENCODER)[0]
    memory = site("memory", memory, "position embed")

    def decode(x, p):
        pattern = jax.nn.softmax(x @ memory.T)
        pattern = site("cross.pattern", pattern, "position key_position")
        return step("decoder.")(x + pattern @ memory, p)

    return jax.lax.scan(decode, inputs["target"], ENCODER)[0][-1]


def recurrent(x):
    """State-space layers: a scan over positions in a scan over layers."""

    def layer(x, p):
        def step(h, u):
            h = site("state", 0.9 * h + u, "position: embed")
            return h, h

        hidden = jax.lax.scan(step, jnp.zeros(WIDTH), x @ p)[1]
        return site("resid_post", x + jnp.tanh(hidden), "position embed"), None

    return jax.lax.scan(layer, x, ENCODER["mlp"])[0][-1]


EXPERTS, ROUTER = weights(6, 4, WIDTH, WIDTH), weights(8, WIDTH, 4)


def experts(x):
    """A mixture of experts: an inner `vmap` with a name."""
    gates = site("router", jax.nn.softmax(x @ ROUTER), "position expert")
    one = lambda w: site("expert_out", jnp.tanh(x @ w), "position embed")  # noqa: E731
    outs = jax.vmap(one, axis_name="expert")(EXPERTS)
    return jnp.einsum("pe,epd->d", gates, outs)


class Marked(eqx.Module):
    """Marks what a layer returns."""

    layer: eqx.Module

    def __call__(self, x, *, key=None):
        return site("linear", self.layer(x), "feature")


def foreign_equinox():
    """An `eqx.nn.MLP` whose layers are wrapped, not rewritten."""
    mlp = eqx.nn.MLP(WIDTH, 3, 6, 2, key=KEY)
    mlp = eqx.tree_at(lambda m: list(m.layers), mlp, replace_fn=Marked)
    return lambda x: mlp(x[0])


class Nnx(nnx.Module):
    """A Flax NNX model."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.linear = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        x = site("conv", nnx.relu(self.conv(x)), "row column channel")
        return self.linear(x.mean((0, 1)))


GRAPH, STATE = nnx.split(Nnx())


def flax_nnx(image):
    return nnx.merge(GRAPH, STATE)(image.transpose(1, 2, 0))


class Linen(linen.Module):
    """A Flax Linen model."""

    @linen.compact
    def __call__(self, x):
        x = site("hidden", jnp.tanh(linen.Dense(6)(x)), "position feature")
        return linen.Dense(3)(x).sum(0)


LINEN = {
    "Dense_0": {"kernel": weights(9, WIDTH, 6), "bias": jnp.zeros(6)},
    "Dense_1": {"kernel": weights(10, 6, 3), "bias": jnp.zeros(3)},
}


def flax_linen(x):
    return Linen().apply({"params": LINEN}, x)


PAIR = {"source": SEQ, "target": SEQ[:3] + 1}
TOYS = {
    "cnn": (ConvNet(), IMAGE),
    "encoder": (encoder, SEQ),
    "unrolled": (unrolled, SEQ),
    "vit": (vit, IMAGE),
    "encoder_decoder": (encoder_decoder, PAIR),
    "recurrent": (recurrent, SEQ),
    "experts": (experts, SEQ),
    "equinox": (foreign_equinox(), SEQ),
    "nnx": (flax_nnx, IMAGE),
    "linen": (flax_linen, SEQ),
}
