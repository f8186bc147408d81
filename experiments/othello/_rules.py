"""The rules of Othello on arrays: legal moves, flips, passes, random games."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int8, PRNGKeyArray

from mijax._errors import ConfigError

SIZES = (4, 6, 8)


class OthelloBoard(eqx.Module):
    """A position: the discs and who moves next.

    Attributes:
        discs: +1 black, -1 white, 0 empty, row by row.
        player: who moves next, +1 or -1; 0 once neither can move.
    """

    discs: Int8[Array, "*game square"]
    player: Int8[Array, "*game"]

    @property
    def relative(self) -> Int8[Array, "*game square"]:
        """Discs as who moves next sees them: +1 mine, -1 yours, 0 empty."""
        return self.discs * self.player[..., None]


class OthelloGames(eqx.Module):
    """Games, and what holds after each of their moves.

    A pass is no token: the other player moves twice. A game that ends before the board
    is full is padded with `Othello.pad`; its last position is repeated there.

    Attributes:
        tokens: the moves, `[game, move]`.
        boards: the position after each move, `[game, move]`.
        legal: which tokens are legal then, `[game, move, token]`; none once it is over.
        lengths: moves of each game.
    """

    tokens: Int[Array, "*game move"]
    boards: OthelloBoard
    legal: Bool[Array, "*game move token"]
    lengths: Int[Array, "*game"]

    @property
    def mask(self) -> Bool[Array, "*game move"]:
        """Which positions are followed by a move: where a loss counts."""
        at = jnp.arange(self.tokens.shape[-1])
        return at < self.lengths[..., None] - 1


class Othello(eqx.Module):
    """Othello on a board of `size` x `size` squares, as pure functions of arrays.

    Squares count row by row from 0. Tokens are the squares without the four in the
    centre, which are taken from the start, in the same order; `pad` is the token after
    them. Black moves first. Methods take one board, `jax.vmap` many.

    What every square sees in every direction is one gather from a table, and captures
    are a fixed number of steps along these rays: no loop over squares.

    Source: Li et al. 2022, arXiv:2210.13382, train on games of uniformly random moves.

    Args:
        size: squares along an edge: 4, 6 or 8.

    Raises:
        ConfigError: another size.
    """

    size: int = eqx.field(static=True, default=8)

    def __check_init__(self):
        """Refuses sizes that have no board."""
        if self.size not in SIZES:
            raise ConfigError(
                f"Othello has a board of 4, 6 or 8 squares an edge, got {self.size}."
            )

    @property
    def squares(self) -> int:
        """Squares of the board."""
        return self.size**2

    @property
    def moves(self) -> int:
        """Moves of a game at most, and tokens that stand for squares."""
        return self.squares - 4

    @property
    def pad(self) -> int:
        """The token after the end of a game."""
        return self.moves

    @property
    def vocab(self) -> int:
        """Tokens with `pad`."""
        return self.moves + 1

    @property
    def square(self) -> Int[np.ndarray, " token"]:
        """The square of every token but `pad`."""
        return _tables(self.size).square

    def start(self) -> OthelloBoard:
        """Returns the first position: white on one diagonal, black on the other."""
        half = self.size // 2
        discs = np.zeros((self.size, self.size), np.int8)
        discs[half - 1, half - 1] = discs[half, half] = -1
        discs[half - 1, half] = discs[half, half - 1] = 1
        return OthelloBoard(jnp.asarray(discs.reshape(-1)), jnp.int8(1))

    def legal(self, board: OthelloBoard) -> Bool[Array, " square"]:
        """Returns where the player may move; nowhere once the game is over."""
        return self._legal(board.discs, board.player)

    def play(self, board: OthelloBoard, square: Int[Array, ""]) -> OthelloBoard:
        """Places a disc, flips what it captures, and finds who moves next.

        Args:
            board: one position.
            square: where to move. What is not legal, and any number that is no square,
                changes nothing.

        Returns:
            The next position. Its player is the other one if it can move, else the
            same one if that one can, else 0.
        """
        return self._play(board, square)[0]

    def replay(self, tokens: Int[Array, "game move"]) -> OthelloGames:
        """Plays given moves.

        Args:
            tokens: moves of several games, `[game, move]`, padded with `pad`.

        Returns:
            The games. Moves that are not legal change nothing (see `play`).
        """
        return _replay(self, tokens)

    def games(self, key: PRNGKeyArray, count: int) -> OthelloGames:
        """Plays games in which every legal move is as likely as every other.

        Args:
            key: of the moves.
            count: how many games.

        Returns:
            The games, of `moves` moves, padded where they end earlier.
        """
        return _games(self, key, count)

    def _play(
        self, board: OthelloBoard, square: Int[Array, ""]
    ) -> tuple[OthelloBoard, Bool[Array, " square"]]:
        """Plays, and says what is legal then."""
        table = _tables(self.size)
        inside = (square >= 0) & (square < self.squares)
        at = jnp.where(inside, square, 0)
        seen = self._seen(board.discs, jnp.asarray(table.rays)[:, at]) * board.player
        # How many discs it captures in each direction; the last entry is of none.
        taken = jnp.append(_captures(seen), 0)
        flips = jnp.asarray(table.distance)[at] <= taken[jnp.asarray(table.way)[at]]
        valid = inside & (board.discs[at] == 0) & (taken.sum() > 0)
        placed = jnp.arange(self.squares) == at
        discs = jnp.where(valid & (flips | placed), board.player, board.discs)
        # With nothing placed the player stays; else the other one moves if it can.
        mine, yours = (
            self._legal(discs, player) for player in (board.player, -board.player)
        )
        turns = valid & yours.any()
        legal = jnp.where(turns, yours, mine)
        player = jnp.where(turns, -board.player, board.player) * legal.any()
        return OthelloBoard(discs, player.astype(jnp.int8)), legal

    def _legal(
        self, discs: Int8[Array, " square"], player: Int8[Array, ""]
    ) -> Bool[Array, " square"]:
        seen = self._seen(discs, jnp.asarray(_tables(self.size).rays)) * player
        return (discs == 0) & (_captures(seen) > 0).any(-1)

    def _seen(
        self, discs: Int8[Array, " square"], rays: Int[Array, "step ..."]
    ) -> Int8[Array, "step ..."]:
        """Reads discs along rays; beyond the edge there is an empty square."""
        return jnp.append(discs, jnp.int8(0))[rays]


def _captures(seen: Int8[Array, "step *rays"]) -> Int[Array, "*rays"]:
    """Counts discs between here and the first own one, along rays of what is seen."""
    open_, taken = jnp.ones(seen.shape[1:], bool), jnp.zeros(seen.shape[1:], jnp.int32)
    for step, disc in enumerate(seen):
        taken = jnp.where(open_ & (disc == 1), step, taken)
        open_ &= disc == -1
    return taken


@eqx.filter_jit
def _replay(rules: Othello, tokens: Int[Array, "game move"]) -> OthelloGames:
    return jax.vmap(lambda one: _unroll(rules, one, lambda token, _: token))(tokens)


@eqx.filter_jit
def _games(rules: Othello, key: PRNGKeyArray, count: int) -> OthelloGames:
    draws = jax.random.uniform(key, (count, rules.moves))

    def choose(draw: Float[Array, ""], legal: Bool[Array, " token"]) -> Array:
        """Takes the n-th legal move; without any, `argmax` of nothing is `pad`."""
        place = jnp.floor(draw * legal.sum())
        reached = jnp.append(jnp.cumsum(legal) > place, True)
        return jnp.argmax(reached).astype(jnp.int32)

    return jax.vmap(lambda one: _unroll(rules, one, choose))(draws)


def _unroll(
    rules: Othello, given: Array, choose: Callable[[Array, Array], Array]
) -> OthelloGames:
    """Plays one game; `choose` makes tokens of what is given and what is legal."""
    square = jnp.asarray(np.append(rules.square, rules.squares))
    start = rules.start()

    def step(now: tuple[OthelloBoard, Array], one: Array) -> tuple[Any, Any]:
        board, legal = now
        token = choose(one, legal)
        board, legal = rules._play(board, square[token])
        legal = legal[rules.square]
        return (board, legal), (token, board, legal)

    begin = (start, rules.legal(start)[rules.square])
    _, (tokens, boards, legal) = jax.lax.scan(step, begin, given)
    return OthelloGames(tokens, boards, legal, (tokens != rules.pad).sum(-1))


class _Tables(NamedTuple):
    """What depends on the size alone.

    Attributes:
        rays: squares seen from each square, `[step, square, direction]`; those beyond
            the edge are one past the last.
        way: in which direction a square lies from another, `[square, square]`; 8 if in
            none.
        distance: how far, in steps from 1.
        square: of every token.
    """

    rays: Int[np.ndarray, "step square direction"]
    way: Int[np.ndarray, "square other"]
    distance: Int[np.ndarray, "square other"]
    square: Int[np.ndarray, " token"]


@functools.cache
def _tables(size: int) -> _Tables:
    squares, half = size**2, size // 2
    ways = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j]
    rays = np.full((size - 1, squares, len(ways)), squares, np.int32)
    lies = np.full((squares, squares), len(ways), np.int32)
    distance = np.full((squares, squares), squares, np.int32)
    for way, (down, right) in enumerate(ways):
        for square in range(squares):
            for step in range(1, size):
                row, column = square // size + step * down, square % size + step * right
                if not (0 <= row < size and 0 <= column < size):
                    break
                other = row * size + column
                rays[step - 1, square, way] = other
                lies[square, other], distance[square, other] = way, step
    centre = {half * size + half, half * size + half - 1}
    centre |= {square - size for square in centre}
    square = np.array([s for s in range(squares) if s not in centre], np.int32)
    return _Tables(rays, lies, distance, square)
