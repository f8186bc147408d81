"""Numbers, tables and pictures."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

import mijax.experiment
from mijax import viz
from mijax.core import Interval, interval

from ._intervening import Intervened
from ._probing import Probed, shares
from ._rules import Othello
from ._training import Legality, Trained

Seeds = Float[np.ndarray, " seed"]
CODINGS = {
    "mine, yours, empty": "relative",
    "black, white, empty": "absolute",
    "before training": "untrained",
}


def over(values: Any) -> Interval:
    """Mean over seeds, from the least to the greatest (on the first axis)."""
    return interval(jnp.asarray(values), method="range")


def report_legality(
    found: Trained, frequency: Legality, run: mijax.experiment.Run
) -> None:
    """Reports how legal moves are, and draws how that came."""
    first, last = (jax.tree.map(lambda c, i=i: c[i], found.history) for i in (0, -1))
    note = "of seeds, from the least to the greatest"
    run.number("illegal", over(last.illegal), note=f"most likely move; {note}")
    run.number("illegal_mass", over(last.mass), note=f"probability; {note}")
    run.number("excess_loss", over(last.excess), note=f"nats above the least; {note}")
    rows = [
        [name, *(over(np.atleast_1d(column)) for column in row)]
        for name, row in (
            ("trained", last),
            ("before training", first),
            ("frequency at each turn", frequency),
        )
    ]
    run.number("illegal_untrained", over(first.illegal), note="most likely move")
    run.number("illegal_by_frequency", float(frequency.illegal), note="at each turn")
    ratio = last.illegal / float(frequency.illegal)
    run.number("illegal_over_frequency", over(ratio), note=note)
    columns = ["prediction", "illegal moves", "illegal probability", "excess / nats"]
    run.table("Predictions on held-out games", columns, rows)
    curves = {
        "most likely move": over(found.history.illegal.T),
        "probability": over(found.history.mass.T),
    }
    picture = viz.line(
        {name: np.asarray(c.mean) for name, c in curves.items()},
        points=found.updates,
        bands={n: (np.asarray(c.low), np.asarray(c.high)) for n, c in curves.items()},
        title="Illegal predictions on held-out games",
        x="Update",
        y="Fraction",
    )
    run.figure("training", picture, caption="Mean of all seeds, least and greatest.")


def report_probes(found: Probed, run: mijax.experiment.Run) -> None:
    """Reports accuracy by layer."""
    tables = {name: shares(getattr(found, field)) for name, field in CODINGS.items()}
    best = {name: table.max(1) for name, table in tables.items()}
    relative, absolute, untrained = best.values()
    prior = float(found.prior.mean())
    note = "best layer, mean over squares"
    run.number("probe_mine_yours", over(relative), note=note)
    run.number("probe_black_white", over(absolute), note=note)
    run.number("probe_untrained", over(untrained), note=f"mine or yours; {note}")
    run.number("probe_prior", prior, note="most frequent class of each square")
    run.number("probe_margin", over(relative - absolute), note="mine or yours more")
    run.number("probe_gain", over(relative - untrained), note="by training")
    run.number("probes_converged", found.converged, note="share of the fits")
    layers = [f"x{layer}" for layer in range(found.relative.shape[1])]
    rows = [
        [name, *(over(column) for column in table.T)] for name, table in tables.items()
    ]
    run.table("Held-out accuracy of linear probes by layer", ["probe", *layers], rows)
    picture = viz.accuracy_bands(
        {name: over(table) for name, table in tables.items()},
        layers=layers,
        lines={"most frequent class": prior},
        title="What linear probes read of the board",
        x="Residual stream after block",
    )
    run.figure("probes", picture, caption="Mean of all seeds, least and greatest.")
    size = round(found.relative.shape[2] ** 0.5)
    panels = {
        name: getattr(found, field).mean(0)[tables[name].mean(0).argmax()]
        for name, field in CODINGS.items()
    }
    picture = viz.heatmaps(
        {name: values.reshape(size, size) for name, values in panels.items()},
        x_labels=columns(size),
        y_labels=[*range(1, size + 1)],
        title="Accuracy of probes by square, best layer",
        centre=None,
        label="Held-out accuracy",
    )
    run.figure("squares", picture, caption="Mean over seeds.")


def softmax(logits: Float[np.ndarray, " token"]) -> Float[np.ndarray, " token"]:
    """Returns probabilities."""
    chances = np.exp(logits - logits.max())
    return chances / chances.sum()


def columns(size: int) -> list[str]:
    """Names of the columns of a board."""
    return [chr(ord("A") + i) for i in range(size)]


def report_changes(found: dict[str, Intervened], run: mijax.experiment.Run) -> None:
    """Reports errors of both kinds of change."""
    rows, by_layer = [], []
    for kind, one in found.items():
        null, probe = one.null.mean(1), one.probe.mean(1)
        where = ", ".join(f"x{at}" for at in one.first)
        scale = ", ".join(f"{c:g}" for c in one.scale)
        note = f"errors of {len(one.cases.at)} cases, seeds least to greatest"
        run.number(f"{kind}_null", over(null), note=f"{note}; without a change")
        run.number(
            f"{kind}_probe",
            over(probe),
            note=f"{note}; from {where} on, scale {scale}",
        )
        run.number(f"{kind}_ratio", over(probe / null), note="of these")
        errors = (one.null, one.probe, one.control, one.own)
        rows.append([kind, *(over(some.mean(1)) for some in errors)])
        for name, some in (("only", one.at), ("onwards", one.onwards)):
            means = some.mean(-1)
            by_layer.append([f"{kind}, {name}", *(over(row) for row in means)])
    header = ["change", "none", "by the probe", "of another square", "true board"]
    run.table("Errors against the edited board", header, rows)
    layers = [f"x{at}" for at in range(len(found["flip"].at))]
    run.table("Errors by the block after which it is", ["change", *layers], by_layer)
    draw_errors(found, run)


def draw_errors(found: dict[str, Intervened], run: mijax.experiment.Run) -> None:
    """Draws mean errors, and how they are spread over cases."""
    bars = {
        f"{kind}: {name}": over(values.mean(1))
        for kind, one in found.items()
        for name, values in (
            ("none", one.null),
            ("other", one.control),
            ("probe", one.probe),
        )
    }
    picture = viz.bars(
        *(np.array([float(one.mean) for one in bars.values()]),),
        labels=list(bars),
        low=np.array([float(one.low) for one in bars.values()]),
        high=np.array([float(one.high) for one in bars.values()]),
        title="Errors against the edited board",
        y="Wrong and missing moves",
    )
    caption = (
        "Mean of all seeds, least and greatest. Without a change, with that of another "
        "square, and with that of the square."
    )
    run.figure("errors", picture, caption=caption)
    one = found["flip"]
    most = int(max(one.null.max(), one.probe.max()))
    counts = {
        name: np.bincount(values.ravel(), minlength=most + 1) / values.size
        for name, values in (("none", one.null), ("probe", one.probe))
    }
    # Errors come in pairs, see `errors`.
    even = np.arange(0, most + 1, 2)
    picture = viz.line(
        {name: part[even] for name, part in counts.items()},
        points=even,
        title="Cases by their errors, one square flipped",
        x="Wrong and missing moves",
        y="Fraction of cases, all seeds",
    )
    picture.axes[0].set_xticks(even)
    run.figure("histogram", picture)


def draw_case(rules: Othello, one: Intervened, run: mijax.experiment.Run) -> None:
    """Draws a case of the first seed: the boards, and probabilities of the moves."""
    # Where most should change, among those that went as well as any.
    gain = np.where(
        one.probe[0] == one.probe[0].min(),
        (one.cases.wanted ^ one.cases.legal).sum(1),
        -1,
    )
    case = int(gain.argmax())
    size, square = rules.size, one.cases.square[case]
    axes: dict[str, Any] = {
        "x_labels": columns(size),
        "y_labels": [*range(1, size + 1)],
    }
    name = f"{columns(size)[square % size]}{square // size + 1}"
    boards = {
        "the game": one.cases.board[case],
        f"{name} flipped": one.cases.edited[case],
    }
    picture = viz.category_maps(
        {label: (board % 3).reshape(size, size) for label, board in boards.items()},
        names=["empty", "mine", "yours"],
        title=f"A position and its change, seed 0, move {one.cases.at[case] + 1}",
        **axes,
    )
    run.figure("boards", picture)

    def placed(chances: Float[np.ndarray, " token"]) -> Float[np.ndarray, "row column"]:
        grid = np.full(rules.squares, np.nan)
        grid[rules.square] = chances
        return grid.reshape(size, size)

    legal, wanted = one.cases.legal[case], one.cases.wanted[case]
    picture = viz.heatmaps(
        {
            "legal in the game": placed(legal / legal.sum()),
            "predicted": placed(softmax(one.before[0, case])),
            f"legal with {name} flipped": placed(wanted / wanted.sum()),
            "predicted with it flipped": placed(softmax(one.after[0, case])),
        },
        title="Moves before and after one square is changed in the residual stream",
        centre=None,
        label="Probability",
        **axes,
    )
    caption = "Of the first seed, a case with the fewest errors; the centre is taken."
    run.figure("case", picture, caption=caption)
