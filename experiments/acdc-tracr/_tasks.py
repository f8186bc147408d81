"""The two programs and their prompts, as in the published code."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import mijax
from mijax.circuits import Counterfactual, Graph, Task, Zero
from mijax.nn import Transformer
from mijax.testing import Compiled, tracr

SEQ = 4


class Program(NamedTuple):
    """A compiled program and the task on it.

    Attributes:
        name: of the program.
        model: its transformer.
        graph: with embeddings of tokens and positions as two senders.
        task: prompts, counterparts and minus the squared error of the logits.
    """

    name: str
    model: Transformer
    graph: Graph
    task: Task


def program(name: str, ablation: str, *, prompts: int, seed: int) -> Program:
    """Builds a program's task.

    Args:
        name: `"reverse"` or `"xproportion"`.
        ablation: `"random"` (another prompt of the set) or `"zero"`.
        prompts: number of prompts; `reverse` has six.
        seed: of prompts and their counterparts.

    Returns:
        The program.
    """
    compiled = tracr(name)
    draws = np.random.default_rng(seed)
    clean = prompts_of(compiled, prompts, draws)
    order = shuffled(len(clean), draws, fixed=name != "reverse")
    tokens = jnp.asarray(clean)
    logits = jax.vmap(lambda tokens: compiled.model(tokens)[0])(tokens)
    # The first position, the beginning of the sequence, is not read.
    position = np.tile(np.arange(1, SEQ), (len(clean), 1))
    task = Task(
        clean,
        clean[order],
        metric=mijax.negative(mijax.l2(logits, position=position)),
        ablation=Zero() if ablation == "zero" else Counterfactual(),
    )
    graph = Graph.of(compiled.model, split_input=True)
    return Program(name, compiled.model, graph, task)


def prompts_of(
    compiled: Compiled, prompts: int, draws: np.random.Generator
) -> np.ndarray:
    """Returns the orders of three values, or sequences of tokens drawn."""
    if compiled.name == "reverse":
        orders = itertools.permutations(compiled.vocab)
        return np.array([compiled.encode(values) for values in orders])
    # The published code takes tokens 0 to 3, which are the beginning of a sequence,
    # padding, "w" and "x": sequences have no beginning and neither "y" nor "z".
    every = np.array(list(itertools.product(range(4), repeat=SEQ)), np.int32)
    return draws.permutation(every)[:prompts]


def shuffled(n: int, draws: np.random.Generator, *, fixed: bool) -> np.ndarray:
    """Draws an order; without fixed points unless they are allowed."""
    order = draws.permutation(n)
    while not fixed and (order == np.arange(n)).any():
        order = draws.permutation(n)
    return order
