"""What layers would say, and what heads and MLPs write to the answer."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

import mijax
import mijax.experiment
from mijax import viz
from mijax.lens import Direct, direct_logit_attribution, logit_lens
from mijax.nn import Transformer

from ._tasks import Problem, best, end_logits


class View(NamedTuple):
    """One behaviour through both lenses.

    Attributes:
        difference: logit difference after each layer.
        right: whether the most likely token of all is right.
        model: the logit difference of the model, best answer minus best wrong one.
        direct: its parts.
    """

    difference: Float[np.ndarray, "prompt layer"]
    right: Bool[np.ndarray, "prompt layer"]
    model: Float[np.ndarray, " prompt"]
    direct: Direct


def view(model: Transformer, problem: Problem) -> View:
    """Reads all prompts of a behaviour at their last token.

    Of several right or wrong answers those are followed that the model ends with.
    """
    pairs = problem.both
    tokens, last = pairs.clean.tokens, pairs.clean.last
    logits = end_logits(model, pairs.clean)
    answer, wrong = best(logits, pairs.answer), best(logits, pairs.wrong)
    ids = jnp.stack([answer, wrong], axis=1)
    read = logit_lens(model, tokens, position=last, ids=ids).logits
    said = logit_lens(model, tokens, position=last, top=1).tokens
    right = (said == pairs.answer[:, None]).any(-1)
    direct = direct_logit_attribution(model, tokens, answer, wrong, position=last)
    ends = jnp.take_along_axis(logits, ids, axis=1)
    return View(
        np.asarray(read[..., 0] - read[..., 1]),
        np.asarray(right),
        np.asarray(ends[:, 0] - ends[:, 1]),
        direct,
    )


def report(views: dict[str, View], top: int, run: mijax.experiment.Run) -> None:
    """Draws both, and checks that they add up to the model."""
    errors = [
        (np.abs(one.difference[:, -1] - one.model).max(), direct_error(one))
        for one in views.values()
    ]
    # Unlike max, it keeps a NaN.
    lens, parts = np.max(errors, axis=0).tolist()
    run.number("lens_error", lens, note="last layer and model, nats")
    run.number("direct_error", parts, note="sum of parts and model, nats")
    curves, bands, rows = {}, {}, []
    for label, one in views.items():
        within = mijax.interval(jnp.asarray(one.difference))
        curves[label] = np.asarray(within.mean)
        bands[label] = (np.asarray(within.low), np.asarray(within.high))
        key = label.lower().replace("-", "_")
        decided = settled(np.asarray(within.low))
        note = "first layer from which on the answer is ahead"
        run.number(f"{key}_decided", decided, note=note)
        rows += [[label, *row] for row in written(one, top)]
    run.figure(
        "lens",
        viz.line(
            curves,
            bands=bands,
            title="Logit lens at the last token",
            x="After layer",
            y="Logit difference (nats)",
        ),
        caption="Final norm and unembedding after every layer: best answer minus best "
        "wrong answer. Bands are 95 % intervals over prompts.",
    )
    run.figure(
        "said",
        viz.line(
            {label: one.right.mean(0) for label, one in views.items()},
            title="Logit lens: is the most likely token an answer?",
            x="After layer",
            y="Fraction of prompts",
        ),
    )
    run.figure(
        "direct",
        viz.heatmaps(
            {
                label: np.asarray(one.direct.heads.mean(0))
                for label, one in views.items()
            },
            title="Direct logit attribution of heads",
            x="Head",
            y="Layer",
            label="Logit difference (nats)",
        ),
        caption="What each head writes directly to the logit difference.",
    )
    columns = ["behaviour", "part", "direct effect (nats)"]
    run.table("Parts that write the answer", columns, rows)


def direct_error(one: View) -> float:
    """Returns how far the parts are from the logit difference, in the worst prompt."""
    return float(np.abs(np.asarray(one.direct.total()) - one.model).max())


def settled(low: Float[np.ndarray, " layer"]) -> int:
    """Returns the first layer from which on all intervals are above 0."""
    below = np.flatnonzero(low <= 0)
    return int(below[-1]) + 1 if len(below) else 0


def written(one: View, top: int) -> list[list[object]]:
    """Lists the parts with the largest direct effect, with their intervals."""
    heads = one.direct.heads
    values = jnp.concatenate([heads.reshape(len(heads), -1), one.direct.mlps], axis=1)
    names = [f"head {i}.{j}" for i, j in np.ndindex(*heads.shape[1:])]
    names += [f"MLP {i}" for i in range(one.direct.mlps.shape[1])]
    within = mijax.interval(values)
    order = np.argsort(-np.abs(np.asarray(within.mean)))[:top]
    ends = (np.asarray(part)[order] for part in (within.mean, within.low, within.high))
    cells = (f"{m:+.2f} ({a:+.2f} to {b:+.2f})" for m, a, b in zip(*ends, strict=True))
    return [[names[i], cell] for i, cell in zip(order, cells, strict=True)]
