"""Othello: the rules on arrays against rules on lists, written apart."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mijax
from mijax.experiment import load

PACKAGE = load("othello").function.__module__
Othello = importlib.import_module(f"{PACKAGE}._rules").Othello
OthelloSource = importlib.import_module(f"{PACKAGE}._source").OthelloSource
MANY = 4000


class Plain:
    """Rules that walk along lines of a dictionary of discs."""

    def __init__(self, size):
        low, high = size // 2 - 1, size // 2
        self.size, self.player = size, "black"
        self.discs = {(low, low): "white", (high, high): "white"}
        self.discs |= {(low, high): "black", (high, low): "black"}

    def captured(self, row, column, player):
        if (row, column) in self.discs:
            return []
        found = []
        for down, right in [(0, 1), (1, 1), (1, 0), (1, -1)]:
            for sign in (1, -1):
                line, at = [], (row + sign * down, column + sign * right)
                while self.discs.get(at, player) != player:
                    line.append(at)
                    at = at[0] + sign * down, at[1] + sign * right
                found += line if at in self.discs else []
        return found

    def legal(self, player=None):
        player = player or self.player
        every = [(r, c) for r in range(self.size) for c in range(self.size)]
        return [at for at in every if player and self.captured(*at, player)]

    def play(self, row, column):
        flips = self.captured(row, column, self.player)
        assert flips
        self.discs |= dict.fromkeys([(row, column), *flips], self.player)
        other = {"black": "white", "white": "black"}[self.player]
        if self.legal(other):
            self.player = other
        elif not self.legal():
            self.player = None

    def numbers(self):
        sign = {"black": 1, "white": -1, None: 0}
        every = [(r, c) for r in range(self.size) for c in range(self.size)]
        return [sign[self.discs.get(at)] for at in every], sign[self.player]


@pytest.mark.parametrize(("size", "count"), [(4, 40), (6, 30), (8, 12)])
def test_games_are_those_of_plain_rules(size, count):
    rules = Othello(size)
    games = rules.games(jax.random.key(size), MANY if size == 4 else count)
    games = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)[:count]), games)
    tokens, legal, lengths = (
        np.asarray(x) for x in (games.tokens, games.legal, games.lengths)
    )
    discs, players = np.asarray(games.boards.discs), np.asarray(games.boards.player)
    passes = ends = 0
    for game in range(count):
        plain = Plain(size)
        for move in range(lengths[game]):
            mover = plain.numbers()[1]
            plain.play(*divmod(int(rules.square[tokens[game, move]]), size))
            board, player = plain.numbers()
            assert discs[game, move].tolist() == board
            assert players[game, move] == player
            passes += player == mover
            squares = {row * size + column for row, column in plain.legal()}
            assert {int(rules.square[i]) for i in legal[game, move].nonzero()[0]} == (
                squares
            )
        assert plain.player is None
        ends += lengths[game] < rules.moves
        assert (tokens[game, lengths[game] :] == rules.pad).all()
        assert (discs[game, lengths[game] :] == discs[game, lengths[game] - 1]).all()
    assert passes
    assert ends or size > 4
    mask = np.asarray(games.mask)
    assert mask.sum() == (lengths - 1).sum()
    # Where a move follows, it is a legal one.
    following = np.take_along_axis(
        legal,
        np.r_["1", tokens[:, 1:], tokens[:, :1]][..., None].clip(max=rules.moves - 1),
        2,
    )[..., 0]
    assert following[mask].all()
    if size == 6:
        again = rules.replay(jnp.asarray(games.tokens))
        for one, two in zip(*map(jax.tree.leaves, (games, again)), strict=True):
            np.testing.assert_array_equal(one, two)
    relative = np.asarray(games.boards.relative)
    np.testing.assert_array_equal(relative, discs * players[..., None])


def test_positions_are_as_many_as_published():
    rules = Othello(8)
    room = 1400
    start = rules.start()
    counts = []

    @jax.jit
    def advance(boards, parents, squares):
        boards = jax.tree.map(lambda x: x[parents], boards)
        boards = jax.vmap(rules.play)(boards, squares)
        return boards, jax.vmap(rules.legal)(boards)

    boards = jax.tree.map(lambda x: np.repeat(np.asarray(x)[None], room, 0), start)
    legal = np.asarray(jax.jit(rules.legal)(start))[None]
    for _ in range(6):
        parents, squares = legal.nonzero()
        counts.append(len(parents))
        if len(parents) > room:
            break
        fill = (0, room - len(parents))
        boards, legal = advance(boards, np.pad(parents, fill), np.pad(squares, fill))
        legal = np.asarray(legal)[: len(parents)]
    # Leaves of the game tree by ply, as every engine's perft gives them.
    assert counts == [4, 12, 56, 244, 1396, 8200]


def test_moves_are_uniform_over_the_legal_ones():
    games = Othello(4).games(jax.random.key(1), MANY)
    assert np.allclose(np.bincount(games.tokens[:, 0])[[1, 4, 7, 10]], 1000, atol=120)
    third = np.asarray(games.tokens[np.asarray(games.tokens[:, 0]) == 1, 1])
    assert np.allclose(
        np.bincount(third)[np.unique(third)] / len(third), 1 / 3, atol=0.06
    )


def test_what_is_not_legal_changes_nothing():
    rules = Othello(4)
    start = rules.start()
    boards = jax.jit(jax.vmap(rules.play, (None, 0)))(
        start, jnp.array([0, 5, -1, 16, 99])
    )
    assert (boards.discs == start.discs).all()
    assert (boards.player == 1).all()
    with pytest.raises(mijax.MijaxError, match="4, 6 or 8"):
        Othello(5)
    with pytest.raises(mijax.MijaxError, match="1 game"):
        OthelloSource(rules, batch_size=0)


def test_the_source_goes_on_from_its_state():
    source = OthelloSource(Othello(4), batch_size=2, seed=3)
    state, first = source.batch(source.start())
    _, second = source.batch(state)
    _, again = source.batch(jnp.int32(1))
    np.testing.assert_array_equal(second.tokens, again.tokens)
    assert (first.tokens != second.tokens).any()
