"""Changing what the model believes of a square, and what it then says is legal."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mijax.core import AbstractEdit, Place, compose
from mijax.nn import Transformer

from ._probing import EMPTY, Directions, unstacked
from ._rules import Othello, OthelloBoard, OthelloGames

KINDS = ("flip", "erase")
FEWEST = 3


class Along(AbstractEdit):
    r"""Moves the activation along a direction until its coordinate has a value.

    $x \mapsto x + c \, (t - v^\top x) \, v$; with $c = 1$, twice is as good as once.

    Attributes:
        direction: `v`, of length 1.
        value: `t`.
        strength: `c`, 0 for no change.
    """

    direction: Float[Array, " embed"]
    value: Float[Array, ""]
    strength: Float[Array, ""]

    def __call__(self, x: Float[Array, "rows embed"], place: Place) -> Array:
        """Moves every row."""
        step = self.strength * (self.value - x @ self.direction)
        return x + step[:, None] * self.direction


class Cases(NamedTuple):
    """Positions of which one square is changed.

    Attributes:
        tokens: the game, `[case, move]`.
        at: the last move that counts.
        square: which is changed.
        was: what it held, +1 mine or -1 yours.
        board: the relative board before, `[case, square]`.
        edited: after.
        legal: tokens that were legal, `[case, token]`.
        wanted: those that are legal on the edited board, at least one.
    """

    tokens: Int[np.ndarray, "case move"]
    at: Int[np.ndarray, " case"]
    square: Int[np.ndarray, " case"]
    was: Int[np.ndarray, " case"]
    board: Int[np.ndarray, "case square"]
    edited: Int[np.ndarray, "case square"]
    legal: Bool[np.ndarray, "case token"]
    wanted: Bool[np.ndarray, "case token"]


def draw(
    rules: Othello, games: OthelloGames, kind: str, count: int, *, seed: int
) -> Cases:
    """Draws positions and squares whose change changes what is legal.

    Args:
        rules: of the board.
        games: to take positions from.
        kind: `flip` turns a disc over, `erase` takes it away.
        count: how many, or fewer if there are not as many.
        seed: of the draw.

    Returns:
        The cases; no position comes twice. Discs in the centre are not erased: no game
        has an empty square there.
    """
    mask = np.asarray(games.mask).copy()
    mask[:, :FEWEST] = False
    random = np.random.default_rng(seed)
    game, at = random.permutation(np.argwhere(mask)).T[:, : 8 * count]
    board = np.asarray(games.boards.relative)[game, at]
    may = board != EMPTY
    if kind == "erase":
        may &= np.isin(np.arange(rules.squares), rules.square)
    square = (random.random(may.shape) * may).argmax(1)
    rows = np.arange(len(board))
    was = board[rows, square].astype(int)
    edited = board.copy()
    edited[rows, square] = -was if kind == "flip" else EMPTY
    players = jnp.ones(len(edited), jnp.int8)
    after = jax.vmap(rules.legal)(OthelloBoard(jnp.asarray(edited), players))
    wanted = np.asarray(after)[:, rules.square]
    legal = np.asarray(games.legal)[game, at]
    good = (wanted != legal).any(1) & wanted.any(1) & (was != EMPTY)
    tokens = np.asarray(games.tokens)[game, :-1]
    every = (tokens, at, square, was, board, edited, legal, wanted)
    return Cases(*(np.asarray(part)[good][:count] for part in every))


def moved(
    stacked: Transformer,
    cases: Cases,
    directions: Directions,
    *,
    kind: str,
    scale: float,
    layers: Bool[np.ndarray, " layer"],
    square: Int[np.ndarray, " case"] | None = None,
) -> Float[np.ndarray, "seed case token"]:
    """Predicts with the square moved along its probe's direction at some layers.

    Args:
        stacked: models of several seeds.
        cases: the positions.
        directions: of the probes.
        kind: `flip` or `erase`.
        scale: how far: 0 is the middle between the two classes, 1 the mean of the
            wanted one, and -1 that of the other.
        layers: after which blocks.
        square: another square to move along the direction of, for control.

    Returns:
        Logits of all tokens but `pad` at the last move.
    """
    k, square = KINDS.index(kind), cases.square if square is None else square
    means = directions.means[k][:, :, square]
    rows = np.arange(len(square))
    classes = cases.was + 1
    wanted = -cases.was + 1 if kind == "flip" else np.ones_like(classes)
    old, new = (means[:, :, rows, c].swapaxes(1, 2) for c in (classes, wanted))
    goal = (old + new) / 2 + scale * (new - old) / 2
    unit = directions.unit[k][:, :, square].swapaxes(1, 2)
    strength = jnp.asarray(layers, jnp.float32)
    found = [
        np.asarray(
            _logits(
                *(model, cases.tokens, cases.at),
                *(jnp.asarray(unit[i]), jnp.asarray(goal[i]), strength),
            )
        )
        for i, model in enumerate(unstacked(stacked))
    ]
    return np.stack(found)[..., :-1]


def unmoved(stacked: Transformer, cases: Cases) -> Float[np.ndarray, "seed case token"]:
    """Predicts without a change, `[seed, case, token]`."""
    models = unstacked(stacked)
    n_layers, embed = models[0].n_layers, models[0].embedding.weight.shape[1]
    unit = jnp.zeros((len(cases.at), n_layers, embed))
    found = [
        np.asarray(
            _logits(
                *(model, cases.tokens, cases.at, unit, unit[..., 0]),
                jnp.zeros(n_layers),
            )
        )
        for model in models
    ]
    return np.stack(found)[..., :-1]


@eqx.filter_jit
def _logits(
    model: Transformer,
    tokens: Int[Array | np.ndarray, "case move"],
    at: Int[Array | np.ndarray, " case"],
    unit: Float[Array, "case layer embed"],
    goal: Float[Array, "case layer"],
    strength: Float[Array, " layer"],
) -> Float[Array, "case vocab"]:
    def one(tokens: Array, at: Array, unit: Array, goal: Array) -> Array:
        edits = compose(
            [
                Along(unit[layer], goal[layer], strength[layer]).at(
                    "resid_post", layer=layer, position=at
                )
                for layer in range(len(strength))
            ]
        )
        return model(tokens, edits)[0][at]

    return jax.vmap(one)(jnp.asarray(tokens), jnp.asarray(at), unit, goal)


def errors(
    logits: Float[np.ndarray, "... case token"], legal: Bool[np.ndarray, "case token"]
) -> Int[np.ndarray, "... case"]:
    """Counts tokens in which predicted and legal moves differ.

    As many of the most likely moves count as predicted as there are legal ones (Li et
    al. 2022): a wrong one and the one that it displaces make two errors.

    Args:
        logits: of all moves.
        legal: those that should be predicted.

    Returns:
        The size of the symmetric difference.
    """
    rank = (-logits).argsort(-1).argsort(-1)
    predicted = rank < legal.sum(-1, keepdims=True)
    return (predicted ^ legal).sum(-1)


class Intervened(NamedTuple):
    """Errors against the edited board, of one kind of change.

    Attributes:
        cases: that they are of; none of those that choose layers and scale.
        null: without a change, `[seed, case]`.
        own: of the same predictions against the true board: what the model gets wrong.
        at: with a change after one block, at its best scale, `[layer, seed, case]`.
        onwards: with a change after this block and all later ones.
        first: the first block of the best `onwards`, by seed.
        scale: its scale.
        probe: errors of that, `[seed, case]`.
        control: of the same with the direction of another square.
        before: logits without a change.
        after: logits of `probe`.
    """

    cases: Cases
    null: Int[np.ndarray, "seed case"]
    own: Int[np.ndarray, "seed case"]
    at: Int[np.ndarray, "layer seed case"]
    onwards: Int[np.ndarray, "layer seed case"]
    first: Int[np.ndarray, " seed"]
    scale: Float[np.ndarray, " seed"]
    probe: Int[np.ndarray, "seed case"]
    control: Int[np.ndarray, "seed case"]
    before: Float[np.ndarray, "seed case token"]
    after: Float[np.ndarray, "seed case token"]


def intervened(
    stacked: Transformer,
    choosing: Cases,
    cases: Cases,
    directions: Directions,
    *,
    kind: str,
    scales: tuple[float, ...],
    seed: int,
) -> Intervened:
    """Changes squares, with layers and scale chosen on other cases.

    Args:
        stacked: models of several seeds.
        choosing: cases that choose.
        cases: cases that are reported.
        directions: of the probes.
        kind: `flip` or `erase`.
        scales: to choose from.
        seed: of the control.
    """
    n_layers = directions.unit.shape[2]
    run = functools.partial(moved, stacked, directions=directions, kind=kind)
    layers = np.arange(n_layers)
    found, first, scale = searched(run, choosing, cases, scales, n_layers)
    other = np.random.default_rng(seed).permutation(cases.square)

    def chosen(square: Int[np.ndarray, " case"]) -> Float[np.ndarray, "seed ..."]:
        pairs = enumerate(zip(scale.tolist(), first, strict=True))
        each = [
            run(cases, scale=c, layers=layers >= at, square=square)[i]
            for i, (c, at) in pairs
        ]
        return np.stack(each)

    before = unmoved(stacked, cases)
    after, control = chosen(cases.square), chosen(other)
    return Intervened(
        cases=cases,
        null=errors(before, cases.wanted),
        own=errors(before, cases.legal),
        at=found[:n_layers],
        onwards=found[n_layers:],
        first=first,
        scale=scale,
        probe=errors(after, cases.wanted),
        control=errors(control, cases.wanted),
        before=before,
        after=after,
    )


def searched(
    run: Callable[..., Float[np.ndarray, "seed case token"]],
    choosing: Cases,
    cases: Cases,
    scales: tuple[float, ...],
    n_layers: int,
) -> tuple[
    Int[np.ndarray, "place seed case"],
    Int[np.ndarray, " seed"],
    Float[np.ndarray, " seed"],
]:
    """Changes after each block, then after each and all later ones.

    Returns:
        Errors of `cases` at the scale that is best for `choosing`; the first block of
        the best change that goes on to the end, and its scale.
    """
    layers = np.arange(n_layers)
    places = [*np.eye(n_layers, dtype=bool), *(layers >= at for at in layers)]
    tried = tries(run, choosing, places, scales).mean(-1)
    best, seeds = tried.argmin(1), np.arange(tried.shape[2])
    each = np.arange(len(places))[:, None]
    found = tries(run, cases, places, scales)[each, best, seeds]
    first = tried.min(1)[n_layers:].argmin(0)
    return found, first, np.array(scales)[best[n_layers + first, seeds]]


def tries(
    run: Callable[..., Float[np.ndarray, "seed case token"]],
    cases: Cases,
    places: list[Bool[np.ndarray, " layer"]],
    scales: tuple[float, ...],
) -> Int[np.ndarray, "place scale seed case"]:
    """Counts errors of changes at all places and scales."""
    rows = [
        [run(cases, scale=scale, layers=place) for scale in scales] for place in places
    ]
    return errors(np.array(rows), cases.wanted)
