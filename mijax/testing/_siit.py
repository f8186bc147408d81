"""A transformer trained so that its circuit is known, like those of InterpBench."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from mijax._errors import ConfigError
from mijax._progress import Progress, reports
from mijax.io import SafeTensors, save_safetensors
from mijax.nn import (
    GELU,
    MLP,
    Attention,
    Block,
    Embedding,
    LayerNorm,
    Transformer,
    Unembedding,
)
from mijax.testing._siit_exchange import (
    AT,
    HEADS,
    LAYERS,
    NODES,
    SEQ,
    VOCAB,
    draw,
    exchanged,
    interchange,
    other,
    outside,
    plain,
)

FILE = Path(__file__).parent / "compiled" / "siit.safetensors"
EMBED, HEAD_DIM, HIDDEN = 32, 8, 64
STRICT = 0.4  # weight of the strict loss in InterpBench


class Accuracies(NamedTuple):
    """How well a model realises the causal model, each from 0 to 1.

    Attributes:
        behaviour: share of prompts that it completes with the name that comes once.
        interchange: share of runs with nodes of the circuit taken from other prompts,
            any set of them, that give what the causal model then gives.
        strict: share of runs with every head and MLP outside the circuit taken from
            another prompt that still give the right name.
    """

    behaviour: Float[Array, ""]
    interchange: Float[Array, ""]
    strict: Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class Siit:
    """A model trained to have a circuit, and prompts that need it.

    Attributes:
        model: the transformer: 3 layers, 4 heads, MLPs, LayerNorm.
        nodes: the head that each node of the causal model is, by its name.
        clean: prompts that show the behaviour.
        corrupt: the same, with the other of the two names coming again.
        answer: the name that comes once.
        wrong: the name that comes twice.
    """

    model: Transformer
    nodes: Mapping[str, str]
    clean: Int[Array, "batch seq"]
    corrupt: Int[Array, "batch seq"]
    answer: Int[Array, " batch"]
    wrong: Int[Array, " batch"]

    def accuracies(self, *, prompts: int = 4096, seed: int = 0) -> Accuracies:
        """Measures the model on prompts that it was not trained on."""
        return measure(self.model, held_out(jax.random.key(seed)), prompts)


@reports("Training")
def siit(
    *,
    steps: int | None = None,
    seed: int = 0,
    prompts: int = 16,
    progress: Progress = None,
) -> Siit:
    r"""Returns a transformer that does indirect-object identification in known heads.

    The causal model has three nodes. `duplicate`, at the third name: which of the two
    names before it is repeated. `inhibition`, at the end: the same, moved there.
    `mover`, at the end: the other name. Each is one head (`a0.h1`, `a1.h2`, `a2.h0`).
    Everything else, all MLPs among it, is trained to be no part of it. With cross
    entropy $\ell$ and activations of other prompts $x'$ of the batch,

    $$L = \ell(M(x), y) + \ell(M_{n \leftarrow x'}(x), H_{n \leftarrow x'}(x))
        + 0.4\, \ell(M_{\bar n \leftarrow x'}(x), y),$$

    where $n$ is a random set of the circuit's heads, each with a source of its own,
    $H$ the causal model with the same nodes exchanged, and $\bar n$ a random set of
    heads and MLPs outside the circuit (strict interchange intervention training). At
    most one node decides: the last of those exchanged, so that edges which pass a node
    by, such as that from `duplicate` to the logits, carry nothing either.

    Args:
        steps: train so many steps; `None` loads the model that comes with the library.
        seed: of weights and prompts.
        prompts: how many prompts to return.
        progress: called with steps done and in total; `None` draws a bar after three
            seconds in a terminal or notebook, `False` none.

    Returns:
        The model, its circuit and prompts.

    Source:
        Gupta, Arcuschin et al. 2024, "InterpBench: Semi-Synthetic Transformers for
        Evaluating Mechanistic Interpretability Techniques", arXiv:2407.14494; Geiger
        et al. 2022, arXiv:2112.00826, for interchange intervention training.

    Examples:
        >>> case = siit()
        >>> case.nodes["mover"]
        'a2.h0'
        >>> logits, _ = case.model(case.clean[0])
        >>> bool(logits[-1].argmax() == case.answer[0])
        True
    """
    key = jax.random.key(seed)
    if steps is None:
        model = load(init(key))
    else:
        model = train(key, steps=steps, progress=progress)
    found = draw(held_out(key), prompts)
    rows = jnp.arange(prompts)
    wrong = other(found, 1 - found.again)
    return Siit(
        model=model,
        nodes={name: f"a{layer}.h{head}" for name, (layer, head) in NODES.items()},
        clean=found.tokens,
        corrupt=found.tokens.at[rows, AT].set(found.answer),
        answer=found.answer,
        wrong=wrong,
    )


def held_out(key: PRNGKeyArray) -> PRNGKeyArray:
    """A key that training, which counts steps up from 0, does not come to."""
    return jax.random.fold_in(key, 2**30)


class State(NamedTuple):
    """Everything that a step changes."""

    model: Transformer
    optimiser: Any


def train(
    key: PRNGKeyArray,
    *,
    steps: int,
    batch: int = 128,
    progress: Progress = None,
    every: int = 100,
) -> Transformer:
    """Trains a model; prompts follow from the key and the step."""
    if steps < 1:
        raise ConfigError(f"Training takes 1 step at least, got {steps}.")
    optimiser = make_optimiser(steps)
    model = init(key)
    arrays: Any = model
    state = State(model, optimiser.init(arrays))
    for start in range(0, steps, every):
        done = min(start + every, steps)
        span = (jnp.int32(start), jnp.int32(done))
        state = advance((key, *span, (steps, batch)), state)
        if progress:
            jax.block_until_ready(state)
            progress(done, steps)
    return state.model


def make_optimiser(steps: int) -> optax.GradientTransformation:
    """Adam on clipped gradients, with a warm-up and a cosine."""
    rise = max(1, steps // 20)
    rate = optax.warmup_cosine_decay_schedule(0.0, 3e-3, rise, max(steps, rise + 1))
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))


@eqx.filter_jit(donate="all-except-first")
def advance(
    shared: tuple[PRNGKeyArray, Array, Array, tuple[int, int]], state: State
) -> State:
    """Runs the steps from one to another; `state` is used up."""
    key, first, last, (steps, batch) = shared
    optimiser = make_optimiser(steps)

    def step(i: Array, state: State) -> State:
        gradient = jax.grad(loss)(state.model, jax.random.fold_in(key, i), batch)
        updates, rest = optimiser.update(gradient, state.optimiser)
        return State(eqx.apply_updates(state.model, updates), rest)

    return jax.lax.fori_loop(first, last, step, state)


def loss(model: Transformer, key: PRNGKeyArray, batch: int) -> Float[Array, ""]:
    """The sum of the three losses on fresh prompts, in nats."""
    data, nodes, rest, part = jax.random.split(key, 4)
    prompts = draw(data, batch)
    logits, sources = plain(model, prompts.tokens)
    cross = optax.softmax_cross_entropy_with_integer_labels
    total = cross(logits, prompts.answer).mean()
    swapped, taken, answer = interchange(nodes, prompts, sources)
    total += cross(exchanged(model, prompts.tokens, swapped, taken), answer).mean()
    share = jax.random.uniform(part, (batch,))
    swapped, taken = outside(rest, sources, share=share)
    logits = exchanged(model, prompts.tokens, swapped, taken)
    return total + STRICT * cross(logits, prompts.answer).mean()


@eqx.filter_jit
def measure(model: Transformer, key: PRNGKeyArray, n: int) -> Accuracies:
    """Measures a model on fresh prompts."""
    data, nodes, rest = jax.random.split(key, 3)
    prompts = draw(data, n)
    logits, sources = plain(model, prompts.tokens)
    right = lambda logits, answer: (logits.argmax(-1) == answer).mean()  # noqa: E731
    swapped, taken, answer = interchange(nodes, prompts, sources)
    changed = exchanged(model, prompts.tokens, swapped, taken)
    swapped, taken = outside(rest, sources, share=jnp.ones(n))
    same = exchanged(model, prompts.tokens, swapped, taken)
    return Accuracies(
        right(logits, prompts.answer),
        right(changed, answer),
        right(same, prompts.answer),
    )


def init(key: PRNGKeyArray) -> Transformer:
    """Draws weights; what each part writes has a variance near 1."""
    keys = iter(jax.random.split(key, 9))

    def normal(*shape: int, inputs: int) -> Array:
        return jax.random.normal(next(keys), shape) / inputs**0.5

    def norm(*lead: int) -> LayerNorm:
        return LayerNorm(jnp.ones((*lead, EMBED)), jnp.zeros((*lead, EMBED)))

    heads = (LAYERS, EMBED, HEADS, HEAD_DIM)
    w_q, w_k, w_v = (normal(*heads, inputs=EMBED) for _ in range(3))
    w_o = normal(LAYERS, HEADS, HEAD_DIM, EMBED, inputs=HEADS * HEAD_DIM)
    mlp = MLP(
        w_in=normal(LAYERS, EMBED, HIDDEN, inputs=EMBED),
        w_out=normal(LAYERS, HIDDEN, EMBED, inputs=HIDDEN),
        b_in=jnp.zeros((LAYERS, HIDDEN)),
        b_out=jnp.zeros((LAYERS, EMBED)),
        activation=GELU(),
    )
    return Transformer(
        embedding=Embedding(normal(VOCAB, EMBED, inputs=1)),
        positions=Embedding(normal(SEQ, EMBED, inputs=1)),
        blocks=Block(
            norm(LAYERS),
            Attention(w_q=w_q, w_k=w_k, w_v=w_v, w_o=w_o),
            norm(LAYERS),
            mlp,
        ),
        norm=norm(),
        unembedding=Unembedding(normal(VOCAB, EMBED, inputs=EMBED)),
        context=SEQ,
    )


def named(model: Transformer) -> dict[str, np.ndarray]:
    """The arrays of a model, by place."""
    leaves = jax.tree.leaves_with_path(model)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def save(model: Transformer, file: Path = FILE) -> None:
    """Writes the weights of a model."""
    save_safetensors(named(model), file)


def load(like: Transformer, file: Path = FILE) -> Transformer:
    """Reads the weights of a model of the same shape."""
    weights = SafeTensors(file)
    read = lambda path, _: jnp.asarray(weights.read(jax.tree_util.keystr(path)))  # noqa: E731
    return jax.tree.map_with_path(read, like)
