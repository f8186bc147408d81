"""Parts of decoders with mixtures of experts in place of MLPs."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from mijax.models._config import ACTIVATIONS
from mijax.models._family import Rule
from mijax.models._init import Normal
from mijax.models._leaves import LAYER, turned
from mijax.nn import Experts, TopExperts

# Part of a Llama's names that a mixture of experts does not have.
DENSE = "blocks.mlp."
EXPERT = "mlp.experts.{expert}."
NAMES = {
    "blocks.mlp.w_router": f"{LAYER}mlp.gate.weight",
    "blocks.mlp.w_gate": f"{LAYER}{EXPERT}gate_proj.weight",
    "blocks.mlp.w_in": f"{LAYER}{EXPERT}up_proj.weight",
    "blocks.mlp.w_out": f"{LAYER}{EXPERT}down_proj.weight",
}


def experts(renormalize: bool) -> Callable[[Normal, Any], Experts]:
    """Return a function that draws experts, with weights that sum to 1 or not."""
    return partial(draw, renormalize=renormalize)


def draw(normal: Normal, spec: Any, *, renormalize: bool) -> Experts:
    """Draws the experts of every layer."""
    n, embed, count, mlp = spec.layers, spec.embed, spec.experts, spec.mlp
    return Experts(
        w_router=normal(n, embed, count),
        w_gate=normal(n, embed, count, mlp),
        w_in=normal(n, embed, count, mlp),
        w_out=normal(n, count, mlp, embed),
        activation=ACTIVATIONS[spec.activation],
        routing=TopExperts(spec.top_k, renormalize),
    )


def without_mlp(names: Mapping[str, str]) -> dict[str, str]:
    """Leave out the names of an MLP."""
    return {leaf: name for leaf, name in names.items() if not leaf.startswith(DENSE)}


def expert_rules(spec: Any, names: Mapping[str, str]) -> tuple[Rule, ...]:
    """Build the rules of a router and of experts that have a tensor each.

    Args:
        spec: the sizes.
        names: name in the file of each leaf.

    Returns:
        The rules.
    """
    embed, count, mlp = spec.embed, spec.experts, spec.mlp
    layouts = {
        "w_router": ((count, embed), turned, 1),
        "w_gate": ((mlp, embed), reads, count),
        "w_in": ((mlp, embed), reads, count),
        "w_out": ((embed, mlp), writes, count),
    }
    found = []
    for leaf, name in names.items():
        shape, make, tensors = layouts[leaf.removeprefix(DENSE)]
        found.append(Rule(name, shape, {leaf: make}, tensors))
    return tuple(found)


def reads(x: np.ndarray) -> np.ndarray:
    """Order the weights of stacked experts, `[expert, mlp, embed]`, embed first."""
    return x.transpose(2, 0, 1)


def writes(x: np.ndarray) -> np.ndarray:
    """Transpose the matrices of stacked experts."""
    return x.swapaxes(1, 2)
