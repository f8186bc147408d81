"""What steering did: to the next word, to the text, and at what cost."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

import mijax
import mijax.experiment
from mijax import viz
from mijax.models import Loaded

from ._sentences import NEUTRAL
from ._steering import Steered, tone

# Prompts whose continuations are printed.
SHOWN = 4

Values = Float[np.ndarray, " prompt"]


def report(
    loaded: Loaded,
    found: Steered,
    random: list[Steered],
    *,
    strengths: tuple[float, ...],
    step: float,
    run: mijax.experiment.Run,
) -> None:
    """Reports numbers at one strength, curves over all, and texts."""
    up, down = strengths.index(step), strengths.index(-step)
    effect, others = (
        [one.odds[:, up] - one.odds[:, down] for one in some]
        for some in ([found], random)
    )
    compare("steering", effect[0], others, "log odds of words, nats", run)
    text, texts = (
        [
            tone(loaded.tokenizer, one.tokens[step])
            - tone(loaded.tokenizer, one.tokens[-step])
            for one in some
        ]
        for some in ([found], [one for one in random if one.tokens])
    )
    compare("tone", text[0], texts, "good minus bad words in the text", run)
    plain = found.surprise[0.0]
    cost, costs = (
        [(one.surprise[step] + one.surprise[-step]) / 2 - plain for one in some]
        for some in ([found], [one for one in random if one.tokens])
    )
    run.number("cost", mijax.interval(jnp.asarray(cost[0])), note="nats per token")
    largest = np.max([one.mean() for one in costs])
    run.number("cost_random", largest, note="nats per token, the largest")
    run.number("surprise", mijax.interval(jnp.asarray(plain)), note="not steered")
    curves(loaded, found, random, strengths, run)
    rows = [
        [f"{strength:+g}", *(texts_of(loaded, found, strength)[:SHOWN])]
        for strength in sorted(found.tokens)
    ]
    run.table("What the model writes", ["strength", *NEUTRAL[:SHOWN]], rows)
    rows = [
        [f"{strength:+g}", *(texts_of(loaded, one, strength)[:SHOWN])]
        for one in [one for one in random if one.tokens][:1]
        for strength in sorted(one.tokens)
    ]
    run.table("The same with a random direction", ["strength", *NEUTRAL[:SHOWN]], rows)


def compare(
    name: str,
    effect: Values,
    random: list[Values],
    note: str,
    run: mijax.experiment.Run,
) -> None:
    """Reports an effect, and how far it is above the strongest random direction's."""
    run.number(f"{name}_effect", mijax.interval(jnp.asarray(effect)), note=note)
    means = [float(one.mean()) for one in random]
    run.number(f"{name}_random", np.abs(means).max(), note="the largest, any sign")
    strongest = int(np.argmax(np.abs(means)))
    other = random[strongest] * np.sign(means[strongest])
    gap = mijax.interval(jnp.asarray(effect - other))
    run.number(f"{name}_over_random", gap, note="paired, over prompts")
    run.number(f"{name}_low", float(gap.low), note="lower end of that")


def texts_of(loaded: Loaded, one: Steered, strength: float) -> list[str]:
    """Decodes continuations into one line each."""
    return [
        " ".join(loaded.tokenizer.decode(row.tolist()).split())
        for row in one.tokens[strength]
    ]


def curves(
    loaded: Loaded,
    found: Steered,
    random: list[Steered],
    strengths: tuple[float, ...],
    run: mijax.experiment.Run,
) -> None:
    """Draws the next word, the text and its cost by strength."""
    within = mijax.interval(jnp.asarray(found.odds))
    heights = np.stack([one.odds.mean(0) for one in random])
    run.figure(
        "steering",
        viz.line(
            {"sentiment": np.asarray(within.mean), "random": heights.mean(0)},
            points=np.array(strengths),
            bands={
                "sentiment": (np.asarray(within.low), np.asarray(within.high)),
                "random": (heights.min(0), heights.max(0)),
            },
            title="The next word, steered",
            x="Strength (differences of class means)",
            y="Log odds of good words (nats)",
        ),
        caption="Bands: 95 % interval over prompts; the range of random directions of "
        "the same norm.",
    )
    places = np.array(sorted(found.tokens))
    written = [one for one in random if one.tokens]
    cost = mijax.interval(jnp.asarray(np.stack([found.surprise[s] for s in places], 1)))
    others = np.array([[one.surprise[s].mean() for s in places] for one in written])
    run.figure(
        "cost",
        viz.line(
            {"sentiment": np.asarray(cost.mean), "random": others.mean(0)},
            points=places,
            bands={
                "sentiment": (np.asarray(cost.low), np.asarray(cost.high)),
                "random": (others.min(0), others.max(0)),
            },
            title="What the unedited model thinks of the steered text",
            x="Strength (differences of class means)",
            y="Loss (nats per token)",
        ),
        caption="Mean surprise at greedy continuations; bands as above.",
    )
    rows = [
        [
            f"{s:+g}",
            mijax.interval(jnp.asarray(tone(loaded.tokenizer, found.tokens[s]))),
            mijax.interval(jnp.asarray(found.surprise[s])),
        ]
        for s in places.tolist()
    ]
    columns = ["strength", "good minus bad words", "nats per token"]
    run.table("Continuations of 12 prompts", columns, rows)
