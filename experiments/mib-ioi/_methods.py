"""The methods of the benchmark, and three that it does not have."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import equinox as eqx
import jax

import mijax
from mijax import circuits, nn
from mijax.core import AbstractMetric, kl, negative
from mijax.data import Pairs
from mijax.nn import Transformer

Progress = Callable[[int, int], None]
# Points on the paths of integrated gradients (Mueller et al. 2025).
STEPS = 5


@dataclass(frozen=True)
class Method:
    """How circuits are found; they are all measured in the same way.

    Attributes:
        label: the benchmark's name of it.
        strategy: what scores edges or nodes.
        ablation: what the rest of the model is replaced by while scoring.
        divergence: whether the metric is the divergence from the model's own output,
            instead of the logit difference.
        select: how edges are chosen by their scores.
    """

    label: str
    strategy: circuits.AbstractMethod
    ablation: Literal["counterfactual", "mean", "optimal"] = "counterfactual"
    divergence: bool = False
    select: Any = circuits.top


def methods(*, ugs_steps: int) -> dict[str, Method]:
    """Returns all methods, by the names that configs give them.

    Args:
        ugs_steps: updates of uniform gradient sampling.

    Returns:
        The methods of the benchmark's table, in its order, then GIM at edges and at
        nodes (Edin et al. 2025), RelP (Jafari et al. 2025) and AtP* at nodes (Kramár
        et al. 2024), whose scores have no sign.
    """
    return {
        "random": Method("Random", circuits.Random()),
        "eactp_cf": Method("EActP (CF)", circuits.Exact()),
        "eap_mean": Method("EAP (mean)", circuits.EAP(), ablation="mean"),
        "eap_cf": Method("EAP (CF)", circuits.EAP()),
        "eap_oa": Method("EAP (OA)", circuits.EAP(), ablation="optimal"),
        "eap_ig_inputs_cf": Method("EAP-IG-inputs (CF)", circuits.EAPIG(steps=STEPS)),
        "eap_ig_activations_cf": Method(
            "EAP-IG-activations (CF)", circuits.EAPIGActivations(steps=STEPS)
        ),
        "nap_cf": Method("NAP (CF)", circuits.EAP(level="node")),
        "nap_ig_cf": Method("NAP-IG (CF)", circuits.EAPIG(steps=STEPS, level="node")),
        "ifr": Method("IFR", circuits.InformationFlowRoutes(), select=circuits.greedy),
        "ugs": Method("UGS", circuits.UGS(steps=ugs_steps), divergence=True),
        "gim": Method("GIM, edges", circuits.EAP(rule=nn.GIM())),
        "relp": Method("RelP, edges", circuits.EAP(rule=nn.RelP())),
        "nap_gim": Method("GIM, nodes", circuits.EAP(level="node", rule=nn.GIM())),
        "nap_atp_star": Method("AtP*, nodes", circuits.AtPStar()),
    }


class Found(eqx.Module):
    """What a method found.

    Attributes:
        scores: of edges or nodes.
        seconds: what that took, compilation and learned constants included.
    """

    scores: circuits.Scores
    seconds: float = eqx.field(static=True)


def find(
    model: Transformer,
    pairs: Pairs,
    method: Method,
    *,
    optimal_steps: int,
    scratch: Path,
    memory: int,
    progress: Progress,
) -> Found:
    """Scores a model's edges or nodes with one method.

    Args:
        model: the model.
        pairs: prompts to find circuits on.
        method: the method.
        optimal_steps: updates of the constants of optimal ablation.
        scratch: file, without its ending, from which a killed run goes on.
        memory: bytes of working memory.
        progress: called with what is done and the total.

    Returns:
        The scores and the time they took.
    """
    start = time.perf_counter()
    options: dict[str, Any] = {"memory": memory, "progress": progress}
    metric = divergence(model, pairs) if method.divergence else None
    task = circuits.Task.of(pairs, metric=metric)
    if method.ablation == "mean":
        ablation = circuits.mean_ablation(model, pairs.clean)
        task = circuits.Task.of(pairs, ablation=ablation)
    elif method.ablation == "optimal":
        ablation = circuits.optimal_ablation(
            model,
            circuits.Task.of(pairs, metric=divergence(model, pairs)),
            circuits.OptimalAblation(steps=optimal_steps),
            resume=f"{scratch}-constants.npz",
            **options,
        )
        task = circuits.Task.of(pairs, ablation=ablation)
    resume = f"{scratch}.npz"
    if isinstance(method.strategy, circuits.Random):
        options, resume = {}, None
    scores = circuits.discover(model, task, method.strategy, resume=resume, **options)
    jax.block_until_ready(scores.values)
    return Found(scores, time.perf_counter() - start)


def divergence(model: Transformer, pairs: Pairs) -> AbstractMetric:
    """Minus the divergence from what the model says after each prompt."""
    last = pairs.clean.last
    logits = mijax.capture(
        model, pairs.clean.tokens, mijax.Site("logits", position=last)
    )
    # Logits of every position of every prompt would not fit: what is read is all
    # there is, and then where to read it.
    metric = kl(logits[:, None])
    return negative(
        eqx.tree_at(lambda m: m.position, metric, last, is_leaf=lambda x: x is None)
    )
