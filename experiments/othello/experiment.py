r"""Othello-GPT: a model that predicts moves keeps the board, as mine, yours and empty.

Papers: Li, Hopkins, Bau, Viegas, Pfister and Wattenberg 2022, "Emergent World
Representations", arXiv:2210.13382; Nanda, Lee and Wattenberg 2023, "Emergent Linear
Representations in World Models of Self-Supervised Sequence Models", arXiv:2309.00941.

Claim: trained on nothing but the moves of random legal games, a transformer predicts
legal moves. Linear probes read every square from its residual stream once the question
is whose disc it is for the player that moves next (mine, yours, empty); asked for black
or white they fail, as the model does not keep it so. The direction of such a probe is
what the model uses: moving the stream along it makes the model predict what would be
legal on a board with that square flipped or erased.

Games are played on the device, new ones for every update, with a pass as no token.
Probes are logistic regressions for each square, layer and seed at all positions that a
move follows. A change puts the stream's coordinate along the unit direction of the
probe (of that layer and square) to a value, at the last move, after one block or after
it and all later ones: scale 1 is the mean of the wanted class, -1 that of the present
one. Layers and scale are chosen on other games. As many of the most likely moves as
there are legal ones on the edited board are compared with these; a wrong move and the
one that it displaces make two errors. Changes are those that alter what is legal.

Differences from the papers: they add the direction with a factor of their own, here its
coordinate is set; they probe after moves 5 to 54. In the small config the loss is the
mean over the move that is drawn next (that of a uniform distribution over legal moves),
which is what the loss of one drawn move is in expectation: the same gradient with less
noise. `full` has the loss of the move that was played, as published. Nonlinear probes
are left out.

What a change can do is bounded by what the model gets wrong on the true board, which is
reported beside it: after minutes on 6x6 that is much. On 4x4 minutes are enough, but
85 % of held-out games come up in training too: there only probes and changes, not legal
predictions, speak of more than memory.

Commands:
    mijax run othello                (6x6, three seeds, minutes)
    mijax run othello/quick          (4x4, three seeds, fewer minutes)
    mijax run othello/full           (8x8, 8 layers, as published; for a GPU)
    mijax run othello/tiny           (4x4, for tests)

Runtime: see experiments/README.md.
"""

from typing import Annotated

import jax
from pydantic import Field

import mijax.experiment
from mijax.models import GPT2Spec

from ._intervening import KINDS, Intervened, draw, intervened
from ._probing import Probed, positions, probed
from ._report import draw_case, report_changes, report_legality, report_probes
from ._rules import Othello, OthelloGames
from ._source import OthelloSource
from ._training import Predicts, Trained, by_frequency, trained

Positive = Annotated[int, Field(ge=1)]
# Keys of games that training never draws from.
HELD_OUT, PROBES, TESTS, CHOICES, CHANGES = range(5)


class Config(mijax.experiment.Config):
    """What is trained, probed and changed."""

    board: int = 8
    "Squares along an edge: 4, 6 or 8."
    layers: Positive = 8
    "Blocks."
    embed: Positive = 512
    "Width of the residual stream; the MLP is four times as wide."
    heads: Positive = 8
    "Attention heads."
    updates: Positive = 20_000
    "Of the weights."
    batch: Positive = 1024
    "Games of an update."
    learning_rate: float = 5e-4
    "The greatest one: a short rise, then a cosine to a tenth."
    expected_loss: bool = False
    "Whether the loss is its mean over the next move, instead of that of one draw."
    every: Positive = 1000
    "Updates between two measurements, and between two checkpoints."
    seeds: Positive = 1
    "Models, trained side by side on the same games."
    held_out: Positive = 1000
    "Games to measure predictions on."
    probe_games: Positive = 2000
    "Games that probes are fitted to."
    test_games: Positive = 500
    "Games that probes are measured on."
    l2: float = 1e-3
    "Penalty of the probes."
    probe_steps: Positive = 200
    "Iterations of the fit of a probe, at most."
    cases: Positive = 1000
    "Changes to report; a quarter as many others choose layers and scale."
    scales: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0, 3.0)
    "Of changes, to choose from."
    seed: int = 0
    "Of the games; weights are drawn with 0, 1, 2, ..."


def run(config: Config, run: mijax.experiment.Run) -> None:
    """Trains, probes and changes."""
    rules = Othello(config.board)
    run.seed("games", config.seed)
    held_out = apart(rules, config, HELD_OUT, config.held_out)
    found = learn(rules, config, held_out, run)
    games = [apart(rules, config, PROBES, config.probe_games)]
    games += [apart(rules, config, TESTS, config.test_games)]
    report_legality(found, by_frequency(games[0], held_out), run)
    with run.progress("probe") as progress:
        sides = [
            tuple(positions(models, some) for models in (found.models, found.untrained))
            for some in games
        ]
        probes = probed(
            *sides,
            rules=rules,
            l2=config.l2,
            steps=config.probe_steps,
            progress=progress,
        )
    report_probes(probes, run)
    changed = change(rules, config, found, probes, run)
    report_changes(changed, run)
    draw_case(rules, changed["flip"], run)


def learn(
    rules: Othello, config: Config, held_out: OthelloGames, run: mijax.experiment.Run
) -> Trained:
    """Trains models of all seeds."""
    spec = GPT2Spec(
        layers=config.layers,
        embed=config.embed,
        heads=config.heads,
        mlp=4 * config.embed,
        vocab=rules.vocab,
        context=rules.moves - 1,
        tied=False,
    )
    objectives = [
        Predicts(
            *(spec, config.updates, config.expected_loss),
            seed=seed,
            learning_rate=config.learning_rate,
        )
        for seed in range(config.seeds)
    ]
    with run.progress("train") as progress:
        found = trained(
            objectives,
            OthelloSource(rules, batch_size=config.batch, seed=config.seed),
            held_out,
            every=config.every,
            folder=run.scratch,
            progress=progress,
        )
    if found.done:
        rate = found.done / found.seconds
        run.number("updates_per_second", rate, note="all seeds at once, with compiling")
    return found


def change(
    rules: Othello,
    config: Config,
    found: Trained,
    probes: Probed,
    run: mijax.experiment.Run,
) -> dict[str, Intervened]:
    """Flips and erases squares in what the models believe."""
    changed = {}
    with run.progress("change") as progress:
        for i, kind in enumerate(KINDS):
            choosing, cases = (
                draw(rules, apart(rules, config, of, count), kind, count, seed=i)
                for of, count in (
                    (CHOICES, -(-config.cases // 4)),
                    (CHANGES, config.cases),
                )
            )
            changed[kind] = intervened(
                *(found.models, choosing, cases, probes.directions),
                kind=kind,
                scales=config.scales,
                seed=config.seed,
            )
            progress(i + 1, len(KINDS))
    return changed


def apart(rules: Othello, config: Config, of: int, count: int) -> OthelloGames:
    """Plays games that are for one purpose alone."""
    key = jax.random.fold_in(jax.random.key(config.seed), 2**31 + of)
    return rules.games(key, count)
