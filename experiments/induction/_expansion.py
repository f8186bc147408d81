"""Path expansion: which paths the prediction of repeated tokens comes from."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mijax import viz
from mijax.core import interval
from mijax.experiment import Run
from mijax.lens import Paths, path_expansion
from mijax.nn import Transformer

from ._heads import Head, Roles, at
from ._repeats import Repeats
from ._scores import split_losses, token_losses

ORDERS = ("biases", "direct path", "heads", "virtual heads")


def expand_paths(
    model: Transformer, prompts: Repeats, *, roles: Roles, run: Run
) -> None:
    """Reports the loss as paths are added, and what each path does for the copy.

    Patterns and scales of norms are those of the whole model: this is about what heads
    write and read as values, not about how they come to attend.
    """
    with run.progress("path expansion") as progress:
        losses, gain, error = jax.device_get(expanded(model, prompts))
        progress(1, 1)
    run.number("path_expansion_error", float(error.max()), note="logits, largest")
    found = interval(jnp.asarray(losses))
    rows = [
        [name, *(at(found, (order, kind)) for kind in (0, 1))]
        for order, name in enumerate(ORDERS)
    ]
    columns = ("up to and with", "copied tokens / nats", "fresh tokens / nats")
    run.table("Loss as paths are added, patterns as they are", columns, rows)
    drop = losses[:, :-1, 0] - losses[:, 1:, 0]
    for order, name in enumerate(("direct", "heads", "virtual"), start=0):
        value = interval(jnp.asarray(drop[:, order]))
        note = "nats, copied tokens"
        run.number(f"loss_reduced_by_{name}", value, note=note)
    mean = interval(jnp.asarray(gain))
    side = int(np.sqrt(gain.shape[1]))
    best = roles.induction[0]
    alone = at(mean, (best.head + 1,))
    run.number("induction_head_alone", alone, note=f"logits, tokens through {best}")
    labels = lambda layer: ["none", *(str(Head(layer, h)) for h in range(side - 1))]  # noqa: E731
    figure = viz.heatmap(
        np.asarray(mean.mean).reshape(side, side),
        x_labels=labels(1),
        y_labels=labels(0),
        title="What each path adds to the token that is copied",
        x="Head of layer 1",
        y="Head of layer 0",
        label="Logit above the mean",
    )
    caption = (
        "Top left is the direct path, the first row and column are single heads, the "
        "others virtual heads: pairs that compose through values."
    )
    run.figure("path-expansion", figure, caption=caption)


@eqx.filter_jit
def expanded(
    model: Transformer, prompts: Repeats
) -> tuple[
    Float[Array, "prompt order kind"], Float[Array, "prompt path"], Float[Array, "_"]
]:
    """Expands every prompt.

    Returns:
        Losses on copied and on fresh tokens with the paths up to each order; what each
        path adds to the logit of the next token, above its mean over tokens, on copied
        tokens; and how far the sum of the paths is from the logits.
    """

    def one(prompt: Repeats) -> tuple[Array, Array, Array]:
        paths = path_expansion(model, prompt.tokens)
        error = jnp.abs(paths.total() - model(prompt.tokens)[0]).max()
        return sums(paths), path_gain(paths, prompt), error

    logits, gain, error = jax.lax.map(one, prompts, batch_size=8)
    losses = [
        jnp.stack(split_losses(token_losses(logits[:, order], prompts), prompts), -1)
        for order in range(len(ORDERS))
    ]
    return jnp.stack(losses, 1), gain, error


def sums(paths: Paths) -> Float[Array, "order seq vocab"]:
    """Logits of the biases alone, then with paths of one more head each time."""
    terms = [paths.bias, *(paths.of_order(order) for order in range(3))]
    return jnp.cumsum(jnp.stack(terms), axis=0)


def path_gain(paths: Paths, prompt: Repeats) -> Float[Array, " path"]:
    """What each path adds to the next token on the second copy, above the mean."""
    seq = len(prompt.tokens)
    ahead = jnp.roll(prompt.tokens, -1)
    right = paths.logits[:, jnp.arange(seq), ahead] - paths.logits.mean(-1)
    return (right * prompt.inside).sum(-1) / prompt.inside.sum()
