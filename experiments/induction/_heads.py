"""What the heads do: scores, loss by position, attention patterns."""

from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mijax import viz
from mijax.core import Interval, Site, capture, interval
from mijax.data import Tokenizer
from mijax.experiment import Run
from mijax.lens import ov_eigenvalues, positivity
from mijax.nn import Transformer

from ._repeats import Repeats
from ._scores import attention_scores, copying, token_losses

# Published as the mark of an induction head in a small model.
THRESHOLD = 0.5


class Head(NamedTuple):
    """A head, and how it is called."""

    layer: int
    head: int

    def __str__(self) -> str:
        return f"L{self.layer}H{self.head}"


class Roles(NamedTuple):
    """Heads by what they do, best first.

    Attributes:
        previous: attend to the previous token (at least the best one).
        induction: attend to what followed the first copy (at least the best one).
    """

    previous: tuple[Head, ...]
    induction: tuple[Head, ...]


def score_heads(
    model: Transformer, prompts: Repeats, acts: Mapping[str, Array], *, run: Run
) -> Roles:
    """Scores every head, reports the table and names the roles."""
    with run.progress("score heads") as progress:
        scores = {**attention_scores(acts["pattern"], prompts)}
        progress(1, 2)
        scores["copying"] = copying(model, prompts, acts)
        found = {name: interval(values) for name, values in scores.items()}
        eigenvalues = positivity(ov_eigenvalues(model))
        progress(2, 2)
    roles = Roles(
        ranked(found["previous_token"].mean), ranked(found["prefix_matching"].mean)
    )
    rows = [
        [
            str(Head(layer, head)),
            *(at(found[name], (layer, head)) for name in found),
            float(eigenvalues[layer, head]),
        ]
        for layer, head in np.ndindex(*eigenvalues.shape)
    ]
    columns = (
        "head",
        "prefix matching",
        "previous token",
        "copying / logits",
        "Σλ/Σ|λ|",
    )
    run.table("Heads by score", columns, rows)
    best, before = roles.induction[0], roles.previous[0]
    matching, attending = found["prefix_matching"], found["previous_token"]
    run.number("prefix_matching", at(matching, best), note=f"best head, {best}")
    run.number("previous_token", at(attending, before), note=f"best head, {before}")
    run.number("copying", at(found["copying"], best), note=f"logits, {best}")
    run.number("copying_eigenvalues", eigenvalues[best], note=f"Σλ/Σ|λ|, {best}")
    run.number("induction_heads", [str(head) for head in roles.induction])
    run.number("previous_token_heads", [str(head) for head in roles.previous])
    panels = {
        "prefix matching": np.asarray(matching.mean),
        "previous token": np.asarray(attending.mean),
    }
    figure = viz.heatmaps(
        panels,
        title="Heads by what they attend to",
        x="Head",
        y="Layer",
        centre=None,
        label="Mean attention",
    )
    run.figure("scores", figure, caption="Mean attention of every head, over prompts.")
    return roles


def ranked(scores: Float[Array, "layer heads"]) -> tuple[Head, ...]:
    """Heads above the threshold, best first; the best one at least."""
    values = np.asarray(scores)
    order = np.argsort(-values, axis=None)
    heads = [Head(*map(int, np.unravel_index(i, values.shape))) for i in order]
    above = [head for head in heads if values[head] > THRESHOLD]
    return tuple(above or heads[:1])


def at(found: Interval, index: tuple[int, ...]) -> Interval:
    """One cell of an interval of arrays."""
    mean, low, high = (
        jnp.asarray(np.asarray(end)[index])
        for end in (found.mean, found.low, found.high)
    )
    return Interval(mean, low, high, found.n, found.level)


def loss_by_position(
    prompts: Repeats, logits: Float[Array, "prompt seq vocab"], *, run: Run
) -> None:
    """Reports how the loss falls on the second copy, token by token."""
    losses = np.asarray(token_losses(logits, prompts))
    # The loss at query q is that on token q + 1.
    steps = np.arange(int(prompts.length[0]))
    first, second = (
        jnp.asarray(
            np.take_along_axis(losses, np.asarray(start)[:, None] + steps - 1, 1)
        )
        for start in (prompts.first, prompts.second)
    )
    curves = {"first copy": interval(first), "second copy": interval(second)}
    figure = viz.line(
        {name: np.asarray(curve.mean) for name, curve in curves.items()},
        points=steps,
        bands={n: (np.asarray(c.low), np.asarray(c.high)) for n, c in curves.items()},
        title="The second copy is predicted from its second token on",
        x="Token of the segment",
        y="Loss (nats)",
    )
    figure.axes[0].set_xticks(steps[:: max(1, len(steps) // 10)])
    run.figure("loss", figure, caption="Mean over prompts with 95 % intervals.")
    gain = first[:, 1:].mean(1) - second[:, 1:].mean(1)
    run.number("icl", interval(gain), note="nats, first minus second copy")


def show_attention(
    model: Transformer,
    tokenizer: Tokenizer,
    tokens: Int[Array, " seq"],
    *,
    roles: Roles,
    run: Run,
) -> None:
    """Draws the attention of the best heads on one short prompt, and of all on a page.

    Args:
        model: the model.
        tokenizer: spells the tokens.
        tokens: one prompt.
        roles: which heads to draw.
        run: what to report to.
    """
    pattern = np.moveaxis(np.asarray(capture(model, tokens, Site("pattern"))), 1, 2)
    pieces = tokenizer.pieces(tokens.tolist())
    heads = (roles.previous[0], roles.induction[0])
    figure = viz.heatmaps(
        {
            f"{head} {role}": pattern[head]
            for head, role in zip(heads, ("previous token", "induction"), strict=True)
        },
        x_labels=pieces,
        y_labels=pieces,
        title="Attention on a segment that comes twice",
        x="Key",
        y="Query",
        centre=None,
        label="Attention",
    )
    caption = "Left of the diagonal: the token before. Right: what followed it before."
    run.figure("attention", figure, caption=caption)
    page = viz.attention_page(pattern, tokens=pieces, title="Attention of every head")
    run.page("attention-page", page, caption="Attention of every head, to explore.")
