"""Linear probes for every square, by layer."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from mijax.core import Site, capture
from mijax.nn import Transformer
from mijax.probes import Fit, Logistic, fit

from ._rules import Othello, OthelloGames

MINE, YOURS, EMPTY = 1, -1, 0


class Positions(NamedTuple):
    """What probes read and are asked, at positions that a move follows.

    Attributes:
        x: the residual stream after each block, `[seed, layer, example, embed]`.
        relative: +1 mine, -1 yours, 0 empty, as who moves next sees it.
        absolute: +1 black, -1 white, 0 empty.
    """

    x: Float[np.ndarray, "seed layer example embed"]
    relative: Int[np.ndarray, "example square"]
    absolute: Int[np.ndarray, "example square"]


class Directions(NamedTuple):
    """Where a probe for {mine, yours, empty} points, and how far classes lie there.

    Attributes:
        unit: mine against yours, and empty against both, `[kind, seed, layer, square,
            embed]`, of length 1.
        means: mean of the stream along it, of yours, empty and mine, `[kind, seed,
            layer, square, class]`; NaN where a square is never empty.
    """

    unit: Float[np.ndarray, "kind seed layer square embed"]
    means: Float[np.ndarray, "kind seed layer square class"]


class Probed(NamedTuple):
    """Held-out accuracy of linear probes, `[seed, layer, square]`.

    Attributes:
        relative: for {mine, yours, empty}.
        absolute: for {black, white, empty}.
        untrained: for {mine, yours, empty}, of the model before training.
        prior: of the most frequent class of each square, `[square]`.
        directions: of the probes for {mine, yours, empty}.
        converged: share of the fits that did.
    """

    relative: Float[np.ndarray, "seed layer square"]
    absolute: Float[np.ndarray, "seed layer square"]
    untrained: Float[np.ndarray, "seed layer square"]
    prior: Float[np.ndarray, " square"]
    directions: Directions
    converged: float


def unstacked(stacked: Transformer) -> list[Transformer]:
    """Takes models apart that were trained side by side."""
    arrays = jax.tree.map(np.asarray, stacked)
    count = len(jax.tree.leaves(arrays)[0])
    return [
        jax.tree.map(lambda leaf, i=i: jnp.asarray(leaf[i]), arrays)
        for i in range(count)
    ]


def positions(stacked: Transformer, games: OthelloGames) -> Positions:
    """Captures the residual stream of all models."""
    mask = np.asarray(games.mask[:, :-1])
    tokens = games.tokens[:, :-1]
    read = []
    for model in unstacked(stacked):
        acts = np.asarray(capture(model, tokens, Site("resid_post")))
        read.append(acts.swapaxes(1, 2)[mask].swapaxes(0, 1))
    relative, absolute = (
        np.asarray(discs)[:, :-1][mask]
        for discs in (games.boards.relative, games.boards.discs)
    )
    return Positions(np.stack(read), relative, absolute)


def probed(
    train: Sequence[Positions],
    held_out: Sequence[Positions],
    *,
    rules: Othello,
    l2: float,
    steps: int,
    progress: Callable[[int, int], None],
) -> Probed:
    """Fits probes for every square, coding, layer and seed.

    Args:
        train: of the trained and of the untrained models.
        held_out: likewise, of other games.
        rules: of the board.
        l2: strength of the penalty.
        steps: iterations at most.
        progress: takes squares done and all.

    Returns:
        Accuracies and directions.
    """
    kind = Logistic(l2, steps=steps, tolerance=1e-4)
    after, before = zip(train, held_out, strict=True)
    accuracy, priors, units, means, converged = [], [], [], [], []
    for square in range(rules.squares):
        sides = ((after, "relative"), (after, "absolute"), (before, "relative"))
        fits = [
            of_square(kind, *pair, name=name, square=square) for pair, name in sides
        ]
        accuracy.append([np.asarray(found.held_out.mean) for found in fits])
        converged += [np.asarray(found.gradient) <= 1e-3 for found in fits]
        priors.append(float(fits[0].baseline))
        unit, mean = directions(fits[0], train[0], square)
        units.append(unit)
        means.append(mean)
        progress(square + 1, rules.squares)
    relative, absolute, untrained = np.moveaxis(np.array(accuracy), 0, -1)
    # From [square, kind, seed, layer, ...] to what `Directions` holds.
    unit, mean = (np.moveaxis(np.array(part), 0, 3) for part in (units, means))
    return Probed(
        relative=relative,
        absolute=absolute,
        untrained=untrained,
        prior=np.array(priors),
        directions=Directions(unit, mean),
        converged=float(np.mean(converged)),
    )


def of_square(
    kind: Logistic, train: Positions, held_out: Positions, *, name: str, square: int
) -> Fit:
    """Fits probes of one square, of all layers and seeds."""
    labels = [np.asarray(getattr(part, name))[:, square] for part in (train, held_out)]
    return fit(kind, train.x, labels[0], held_out.x, labels[1])


def directions(
    found: Fit, train: Positions, square: int
) -> tuple[Float[np.ndarray, "kind ..."], Float[np.ndarray, "kind ..."]]:
    """Returns unit vectors `[kind, seed, layer, embed]` and means of the classes."""
    turn = found.direction(MINE, against=YOURS)
    # A square of the centre is never empty.
    clear = found.direction(EMPTY) if EMPTY in found.classes else 0 * turn
    unit = np.stack([np.asarray(turn), np.asarray(clear)])
    along = np.einsum("slne,ksle->ksln", train.x, unit)
    labels = train.relative[:, square]
    means = [
        along[..., labels == value].mean(-1)
        if (labels == value).any()
        else np.full(along.shape[:-1], np.nan)
        for value in (YOURS, EMPTY, MINE)
    ]
    return unit, np.stack(means, -1)


def shares(
    accuracy: Float[np.ndarray, "seed layer square"],
) -> Float[np.ndarray, "seed layer"]:
    """Returns the mean over squares."""
    return accuracy.mean(-1)
