"""The circuits of heads, read off the weights (Elhage et al. 2021)."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from mijax import lens, viz
from mijax.experiment import Run
from mijax.nn import Transformer

from ._heads import Head, Roles

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = ("K", "Q", "V")


def compose_heads(model: Transformer, *, roles: Roles, run: Run, seed: int) -> None:
    """Scores every head of layer 0 with every head of layer 1 and reports it."""
    with run.progress("composition of heads") as progress:
        scores = lens.composition(model)
        random = lens.random_composition(model, draws=256, seed=seed)
        progress(1, 1)
    found, mean, spread = (
        np.stack([getattr(of, kind.lower())[0, :, 1] for kind in KINDS])
        for of in (scores, *random)
    )
    excess = found - mean
    before, best = roles.previous[0], roles.induction[0]
    names = [str(Head(0, head)) for head in range(excess.shape[1])]
    order = np.argsort(-excess[0], axis=None)
    rows = [
        [f"{names[one]} → {Head(1, two)}", *map(float, excess[:, one, two])]
        for one, two in (np.unravel_index(i, excess.shape[1:]) for i in order[:8])
    ]
    columns = ("heads", *(f"{kind}-composition" for kind in KINDS))
    run.table("Composition above random matrices, most K first", columns, rows)
    for which, kind in enumerate(KINDS):
        value = float(excess[which, before.head, best.head])
        above = value / float(spread[which, 0, 0])
        note = f"{before} → {best}, {above:.1f} standard deviations above random"
        run.number(f"{kind.lower()}_composition", value, note=note)
    figure = viz.heatmaps(
        {f"{kind}-composition": v for kind, v in zip(KINDS, excess, strict=True)},
        x_labels=[str(Head(1, head)) for head in range(excess.shape[2])],
        y_labels=names,
        title="Composition of heads above random matrices",
        x="Reads",
        y="Writes",
        label="Score minus baseline",
    )
    caption = (
        "Frobenius norm of the product of the circuits over the product of their norms,"
        " minus the mean for random matrices, whose standard deviation is "
        f"{spread.min():.3f} to {spread.max():.3f}."
    )
    run.figure("composition", figure, caption=caption)
    match_and_copy(model, roles=roles, run=run)


def match_and_copy(model: Transformer, *, roles: Roles, run: Run) -> None:
    """Reports how positive the eigenvalues of the heads' circuits are.

    Of the heads of layer 1 the QK circuit has the best previous-token head in its keys,
    if that is in layer 0: an induction head matches tokens through it and copies.
    """
    before, best = roles.previous[0], roles.induction[0]
    copying = lens.positivity(lens.ov_eigenvalues(model))
    matching = lens.positivity(lens.qk_eigenvalues(model))
    if before.layer == 0:
        through = lens.qk_eigenvalues(model, through=before)
        matching = np.stack([matching[0], lens.positivity(through)[1]])
    note = f"Σλ/Σ|λ| of the QK circuit, {best} with {before} in its keys"
    run.number("matching_eigenvalues", float(matching[best]), note=note)
    figure = scatter(copying, matching, roles)
    caption = (
        "Σλ/Σ|λ| of the circuits of every head between tokens; the keys of layer 1 are "
        f"read through {before}. Induction heads match and copy: the corner on top."
    )
    run.figure("eigenvalues", figure, caption=caption)


def scatter(
    copying: Float[np.ndarray, "layer heads"],
    matching: Float[np.ndarray, "layer heads"],
    roles: Roles,
) -> "Figure":
    """Draws QK against OV positivity, a point for each head."""
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(4.6, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.axhline(0, color="#bbbbbb", linewidth=0.8)
    axes.axvline(0, color="#bbbbbb", linewidth=0.8)
    kinds = {
        "induction": (roles.induction, "#D55E00"),
        "previous token": (roles.previous, "#0072B2"),
    }
    heads = [Head(*cell) for cell in np.ndindex(*copying.shape)]
    named = {head for of_kind, _ in kinds.values() for head in of_kind}
    kinds["other"] = (tuple(h for h in heads if h not in named), "#888888")
    for label, (of_kind, colour) in kinds.items():
        x, y = ([values[head] for head in of_kind] for values in (copying, matching))
        names = f"{label}: {', '.join(map(str, of_kind))}"
        axes.scatter(x, y, color=colour, label=names, zorder=2)
    # Induction heads crowd one corner: the legend names them.
    for head in (head for head in heads if head not in roles.induction):
        place = (float(copying[head]), float(matching[head]))
        axes.annotate(str(head), place, (5, -3), textcoords="offset points", fontsize=8)
    axes.set(xlim=(-1.1, 1.3), ylim=(-1.1, 1.1))
    axes.set_xlabel("OV circuit: copying")
    axes.set_ylabel("QK circuit: matching")
    axes.set_title("Positivity of eigenvalues", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="lower left")
    return figure
