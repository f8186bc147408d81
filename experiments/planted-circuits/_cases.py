"""Models whose circuits are known, and the tasks on which they are looked for."""

import dataclasses
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from mijax import circuits
from mijax._errors import ConfigError, nearest
from mijax.circuits import Circuit, Graph, Task
from mijax.core import kl, l2, logit_difference, negative
from mijax.nn import Transformer
from mijax.testing import Planted, Siit, planted, siit, tracr

PLANTED = ("copy", "induction", "inhibition", "conjunction", "cancelling")
ABLATIONS = ("corrupt", "zero")
TRACR = ("reverse", "xproportion")
MODELS = (*PLANTED, *TRACR, "siit")
# Edges that the weights of a compiled program read although no input makes a
# difference of it: scores that are the same for every key.
IDLE = {
    "reverse": [f"a{layer}.h0<{x}> <- token" for layer in (0, 3) for x in "qk"],
    "xproportion": [f"a1.h0<{x}> <- token" for x in "qk"],
}


class Whole(Transformer):
    """A transformer in whose circuit graph `input` is the token and its position."""

    def embeddings(self, tokens: jax.Array, position: jax.Array) -> dict[str, Any]:
        """Returns one term."""
        return {"input": self.embed(tokens, position)}


@dataclasses.dataclass(frozen=True)
class Case:
    """A model with a known circuit under one ablation.

    Attributes:
        name: of the model.
        ablation: `"corrupt"` or `"zero"`.
        model: the model.
        truth: its circuit under that ablation.
        task: prompts, the metric of the behaviour, and the ablation.
        divergence: the same with minus a divergence from the model's own output.
        traps: edges outside the circuit that matter one by one and cancel together.
        edges: whether edges are known, and not only heads and MLPs.
    """

    name: str
    ablation: str
    model: Transformer
    truth: Circuit
    task: Task
    divergence: Task
    traps: Circuit | None = None
    edges: bool = True

    @property
    def label(self) -> str:
        """Name of the model and the ablation."""
        return f"{self.name}/{self.ablation}"


def cases(
    models: Iterable[str], ablations: Iterable[str], *, prompts: int, seed: int
) -> list[Case]:
    """Builds every model under every ablation for which its circuit is known.

    Args:
        models: names of models.
        ablations: `"corrupt"` and `"zero"`.
        prompts: of each model but the hand-built ones, which come with their own.
        seed: of those prompts.

    Returns:
        The cases, ablation by ablation.

    Raises:
        ConfigError: there is no such model.
    """
    models = tuple(models)
    for name in models:
        if name not in MODELS:
            close = nearest(name, MODELS)
            raise ConfigError(
                f"There is no model {name!r} with a known circuit.{close}"
            )
    known = dict.fromkeys(PLANTED, ABLATIONS)
    known |= dict.fromkeys(TRACR, ("zero",)) | {"siit": ("corrupt",)}
    return [
        build(name, ablation, prompts=prompts, seed=seed)
        for ablation in ablations
        for name in models
        if ablation in known[name]
    ]


def build(name: str, ablation: str, *, prompts: int, seed: int) -> Case:
    """Builds one case."""
    if name in PLANTED:
        return by_hand(name, ablation)
    if name == "siit":
        return trained(prompts=prompts, seed=seed)
    return compiled(name, prompts=prompts, seed=seed)


def by_hand(name: str, ablation: str) -> Case:
    """A hand-built model.

    Under zero ablation the circuit is all that the mechanism reads. Under corrupt
    activations it is what differs between the two prompts and reaches the logits.
    Positions are part of the input, as they are in the record of these models.
    """
    case = planted(name)
    model = whole(case.model)
    graph = Graph.of(model)
    known = case.differing if ablation == "corrupt" else case.edges
    behaviour, divergence = tasks(model, case, ablation)
    return Case(
        *(name, ablation, model),
        truth=Circuit.of(graph, named(known)),
        task=behaviour,
        divergence=divergence,
        traps=Circuit.of(graph, named(case.traps)) if case.traps else None,
    )


def trained(*, prompts: int, seed: int) -> Case:
    """The trained model: which heads it uses is known, not by what of each.

    Its circuit holds for activations of other prompts, which it was trained on.
    """
    case = siit(prompts=prompts, seed=seed)
    model = whole(case.model)
    path = ["input", *case.nodes.values()]
    edges = [f"{receiver}<v> <- {sender}" for sender, receiver in pairwise(path)]
    behaviour, divergence = tasks(model, case, "corrupt")
    return Case(
        *("siit", "corrupt", model),
        truth=Circuit.of(Graph.of(model), [*edges, f"logits <- {path[-1]}"]),
        task=behaviour,
        divergence=divergence,
        edges=False,
    )


def whole(model: Transformer) -> Whole:
    """Makes positions a part of the input."""
    fields = dataclasses.fields(model)
    return Whole(**{field.name: getattr(model, field.name) for field in fields})


def tasks(model: Transformer, case: Planted | Siit, ablation: str) -> tuple[Task, Task]:
    """The task of a model, and the same with minus a divergence from its output."""
    metric = logit_difference(np.asarray(case.answer), np.asarray(case.wrong))
    first = Task(case.clean, case.corrupt, metric=metric)
    values = reference(model, Graph.of(model), first)
    values = values if ablation == "corrupt" else jnp.zeros_like(values)
    # Values of one shape, so that both ablations run the same programs.
    other = circuits.Fixed(values, jnp.arange(len(first)))
    away = negative(kl(run(model, case.clean)))
    return (
        Task(case.clean, metric=metric, ablation=other),
        Task(case.clean, metric=away, ablation=other),
    )


def compiled(name: str, *, prompts: int, seed: int) -> Case:
    """A compiled program, measured as Conmy et al. 2023 do: the l2 of all outputs.

    The edges that its weights allow to matter are known under zero ablation only; those
    among them that no input makes use of are left out.
    """
    program = tracr(name)
    graph = Graph.of(program.model, split_input=True)
    # Of one length, but not the greatest, for which `reverse` needs no length.
    length = program.max_seq_len - 1
    inputs = [values for values in program.inputs() if len(values) == length]
    drawn = np.random.default_rng(seed).permutation(len(inputs))[:prompts]
    tokens = jnp.stack([program.encode(inputs[i]) for i in drawn])
    every = jnp.broadcast_to(jnp.arange(1, length + 1), (len(tokens), length))
    away = l2(run(program.model, tokens), position=every)
    task = Task(tokens, metric=negative(away), ablation=circuits.Zero())
    truth = Circuit.of(graph, named(program.edges))
    truth = truth.without(*IDLE[name])
    return Case(name, "zero", program.model, truth, task, task)


def named(edges: Iterable[tuple[str, str]]) -> list[str]:
    """Names of edges, from pairs of sender and receiver."""
    return [f"{receiver} <- {sender}" for sender, receiver in edges]


@eqx.filter_jit
def reference(model: Transformer, graph: Graph, task: Task) -> jax.Array:
    """What every sender writes in each corrupt prompt."""
    one = lambda i: task.ablation.reference(model, graph, task, i)  # noqa: E731
    return jax.lax.map(one, jnp.arange(len(task), dtype=jnp.int32))


@eqx.filter_jit
def run(model: Transformer, tokens: jax.Array) -> jax.Array:
    """Logits of a batch."""
    return jax.vmap(lambda prompt: model(prompt)[0])(tokens)
