r"""The search for the value that an MLP or a block should output at the subject.

A vector $\delta$ is added to the residual stream at the subject's last token, right
after the edited layer, and optimized until the model completes the prompts with the
target. Earlier layers run only once instead of in every step. All steps are one
compiled program; facts in a batch are searched in parallel, each until it is done.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from mijax._errors import ConfigError
from mijax.core import AbstractModel, Site, capture
from mijax.core.internal import Sequence, empty, scan_blocks
from mijax.editing._facts import Requests


class ValueSearch(eqx.Module):
    r"""Settings of the search for a value, those of ROME by default.

    The loss of $\delta$ is the mean over contexts of the negative log-likelihood of the
    target, divided by its number of tokens, plus
    `kl` times $\mathrm{KL}(p_\delta \| p_0)$ after the subject of "{} is a", plus
    `decay` times $\|\delta\| / \|v_0\|^2$. The last term follows the published code;
    the paper squares the norm in the numerator too. After each step of Adam,
    $\|\delta\|$ is clipped to `clamp` times $\|v_0\|$.

    Attributes:
        learning_rate: step size of Adam.
        steps: number of loss evaluations, one more than updates.
        clamp: largest norm of $\delta$, relative to the original value's norm.
        kl: weight of the divergence.
        decay: weight of the norm.
        stop: the search ends when the loss falls below this number.

    Raises:
        ConfigError: fewer than one step, or a clamp that is not above 0.
    """

    learning_rate: float | int = 0.5
    steps: int = 20
    clamp: float | int = 4.0
    kl: float | int = 0.0625
    decay: float | int = 0.5
    stop: float | int = 0.05

    def __check_init__(self) -> None:
        if self.steps < 1 or not self.clamp > 0:
            raise ConfigError(
                "ValueSearch takes at least 1 step and a clamp above 0, got "
                f"{self.steps} and {self.clamp}."
            )


class Values(eqx.Module):
    """The values found by a search, with its loss history.

    Attributes:
        initial: value before the edit, on the plain prompt.
        delta: change to add to it.
        losses: negative log-likelihood, divergence and norm terms at each step, in
            nats; NaN after the end.
        steps: number of loss evaluations.
        probability: mean over contexts of the target's probability per token at the
            end, the exponential of its mean log-likelihood.
    """

    initial: Float[Array, "*fact embed"]
    delta: Float[Array, "*fact embed"]
    losses: Float[Array, "*fact step 3"]
    steps: Int[Array, "*fact"]
    probability: Float[Array, "*fact"]

    @property
    def value(self) -> Float[Array, "*fact embed"]:
        """The value after the edit."""
        return self.initial + self.delta


def search(
    model: AbstractModel,
    requests: Requests,
    *,
    layer: int,
    site: str,
    settings: ValueSearch,
) -> Values:
    """Search for the values of facts in parallel.

    Args:
        model: the model; its blocks add their outputs to the stream unchanged.
        requests: the facts.
        layer: the edited layer.
        site: site of the value, `"mlp_out"` or `"resid_post"`.
        settings: loss and optimizer.

    Returns:
        The values.
    """
    facts, prompts, seq = requests.tokens.shape
    flat = requests.tokens.reshape(facts * prompts, seq)
    stream = capture(model, flat, Site("resid_post", layer=layer))
    plain = Site(site, layer=layer, position=requests.lookup[:, 0])
    initial = capture(model, requests.tokens[:, 0], plain).astype(jnp.float32)
    return _search(
        _tail(model, layer),
        requests,
        stream.reshape(facts, prompts, seq, -1),
        initial,
        settings,
    )


def _tail(model: AbstractModel, layer: int) -> AbstractModel:
    """Return the model without its layers up to the edited one."""
    later = jax.tree.map(
        lambda leaf: leaf[layer + 1 :] if eqx.is_array(leaf) else leaf, model.blocks
    )
    return eqx.tree_at(lambda m: m.blocks, model, later)


@eqx.filter_jit
def _search(
    tail: AbstractModel,
    requests: Requests,
    stream: Float[Array, "fact prompt seq embed"],
    initial: Float[Array, "*fact embed"],
    settings: ValueSearch,
) -> Values:
    facts = (requests.lookup, requests.ends, requests.target, requests.lengths)
    one = lambda *fact: _one(tail, settings, *fact)  # noqa: E731
    return jax.vmap(one)(*facts, stream, initial)


def _one(
    tail: AbstractModel,
    settings: ValueSearch,
    lookup: Int[Array, " prompt"],
    ends: Int[Array, " context"],
    target: Int[Array, " target"],
    length: Int[Array, ""],
    stream: Float[Array, "prompt seq embed"],
    initial: Float[Array, " embed"],
) -> Values:
    """Search for the value of one fact."""
    counted = jnp.arange(target.shape[0]) < length
    reads = jnp.minimum(
        ends[:, None] - 1 + jnp.arange(target.shape[0]), stream.shape[1] - 1
    )
    size = jnp.linalg.norm(initial)

    def predictions(delta: Array) -> tuple[Array, Array]:
        """Return the target's log-likelihoods and predictions after the subject."""
        rows = jnp.arange(len(lookup))
        x = stream.at[rows, lookup].add(delta.astype(stream.dtype))
        x = jax.vmap(lambda one: _blocks(tail, one))(x)
        read = x[rows[:-1, None], reads]
        at_target = jax.nn.log_softmax(_logits(tail, read))
        each = jnp.take_along_axis(
            at_target, jnp.broadcast_to(target, reads.shape)[..., None], axis=-1
        )[..., 0]
        likely = jnp.where(counted, each, 0).sum(-1) / length
        after = jax.nn.log_softmax(_logits(tail, x[-1, lookup[-1]][None])[0])
        return likely, after

    before = predictions(jnp.zeros_like(initial))[1]

    def loss(delta: Array) -> tuple[Array, tuple[Array, Array]]:
        likely, after = predictions(delta)
        terms = jnp.stack(
            [
                -likely.mean(),
                settings.kl * (jnp.exp(after) * (after - before)).sum(),
                settings.decay * _norm(delta) / size**2,
            ]
        )
        return terms.sum(), (terms, jnp.exp(likely).mean())

    adam = optax.adam(settings.learning_rate)

    def step(carry: Any) -> Any:
        i, delta, state, losses, _, _ = carry
        (total, (terms, found)), slope = jax.value_and_grad(loss, has_aux=True)(delta)
        done = (total < settings.stop) | (i == settings.steps - 1)
        change, moved = adam.update(slope, state)
        new = delta + change
        norm, most = _norm(new), settings.clamp * size
        new = jnp.where(norm > most, new * (most / jnp.maximum(norm, 1e-30)), new)
        delta, state = jax.tree.map(
            lambda a, b: jnp.where(done, a, b), (delta, state), (new, moved)
        )
        return i + 1, delta, state, losses.at[i].set(terms), found, done

    delta = jnp.zeros_like(initial)
    losses = jnp.full((settings.steps, 3), jnp.nan)
    start = (jnp.int32(0), delta, adam.init(delta), losses, jnp.float32(0), False)
    end = jax.lax.while_loop(lambda carry: ~jnp.asarray(carry[-1]), step, start)
    return Values(initial, end[1], end[3], end[0], end[4])


def _blocks(tail: AbstractModel, x: Float[Array, "seq embed"]) -> Array:
    """Run the layers after the edited one."""
    rows = Sequence(jnp.arange(x.shape[0], dtype=jnp.int32))
    keep: Any = {"want": (), "select": lambda kept, acts, layer: (kept, None)}
    return scan_blocks(tail, x, empty().blocks, rows, **keep)[0]


def _logits(tail: AbstractModel, x: Float[Array, "*rows embed"]) -> Array:
    return tail.unembed(tail.normalise(x)).astype(jnp.float32)


def _norm(x: Float[Array, " embed"]) -> Float[Array, ""]:
    """Return the norm, whose gradient at 0 is 0."""
    square = (x**2).sum()
    root = jnp.sqrt(jnp.where(square > 0, square, 1))
    return jnp.where(square > 0, root, 0)
