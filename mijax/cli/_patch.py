"""`mijax patch`."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mijax._errors import ConfigError, PositionError
from mijax.cli._console import bars, output
from mijax.cli._model import encode, load_model, pieces
from mijax.cli._parser import Commands, command

_EXAMPLE = """\
  mijax patch smollm2-135m-instruct \\
    --clean "When Mary and John went to the store, John gave a drink to" \\
    --corrupt "When Mary and John went to the store, Mary gave a drink to" \\
    --answer " Mary" --wrong " John" --site resid_pre --over layer,position
"""


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = command(
        commands,
        "patch",
        _call,
        summary="Patch clean activations into a corrupt run, one place at a time, and "
        "show the fraction of the logit difference that each run recovers.",
        example=_EXAMPLE,
    )
    parser.add_argument("model", metavar="MODEL", help="name or folder of a model")
    for name, text in (
        ("clean", "prompt whose activations are patched in"),
        ("corrupt", "prompt that is run, of as many tokens"),
        ("answer", "the one token that the clean prompt asks for, space included"),
        ("wrong", "the one token to compare it with"),
    ):
        parser.add_argument(f"--{name}", metavar="TEXT", required=True, help=text)
    parser.add_argument(
        "--site", default="resid_pre", help="activation (default: resid_pre)"
    )
    parser.add_argument(
        "--over",
        default="layer,position",
        help="one or two of layer, position, head, feature (default: layer,position)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--png", metavar="FILE", help="also draw the grid")


def _call(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    over = tuple(name.strip() for name in arguments.over.split(",") if name.strip())
    png = _png(arguments.png) if arguments.png else None
    if (not arguments.json and len(over) > 2) or (png and len(over) > 2):
        raise ConfigError(
            f"a grid has at most two axes, got --over {arguments.over}. Give two, or "
            "--json without --png."
        )
    loaded = load_model(arguments.model)
    clean, corrupt = _aligned(loaded, arguments.clean, arguments.corrupt)
    found, clean_value = _sweep(loaded, arguments, clean, corrupt, over)
    values = np.asarray(found.values, dtype=np.float64)
    corrupt_value = float(found.base)
    names = pieces(loaded, clean)
    axes = [
        {"name": a.name, "labels": names if a.name == "position" else list(a.labels)}
        for a in found.axes
    ]
    shown, measure = _recovered(values, clean_value, corrupt_value)
    if png:
        _draw(shown, axes, arguments, measure, png)
    if arguments.json:
        report = {
            "values": values.tolist(),
            "axes": [axis["name"] for axis in axes],
            "clean": clean_value,
            "corrupt": corrupt_value,
        }
        print(json.dumps(report, ensure_ascii=False))
        return 0
    _show(shown, axes, arguments, measure, (clean_value, corrupt_value))
    if png:
        output().print(f"Picture: {png}", soft_wrap=True)
    return 0


def _aligned(loaded: Any, clean: str, corrupt: str) -> tuple[list[int], list[int]]:
    """Both prompts as tokens, position by position."""
    first, second = encode(loaded, clean), encode(loaded, corrupt)
    if len(first) != len(second):
        raise PositionError(
            f"--clean has {len(first)} tokens and --corrupt {len(second)}; patching "
            f"needs as many of each. Clean: {pieces(loaded, first)}. Corrupt: "
            f"{pieces(loaded, second)}."
        )
    return first, second


def _sweep(
    loaded: Any,
    arguments: argparse.Namespace,
    clean: list[int],
    corrupt: list[int],
    over: tuple[str, ...],
) -> tuple[Any, float]:
    """The sweep, and the metric of the clean run."""
    from jax import numpy as jnp  # noqa: PLC0415

    from mijax import core  # noqa: PLC0415

    metric = core.logit_difference(
        loaded.tokenizer.token(arguments.answer),
        loaded.tokenizer.token(arguments.wrong),
    )
    tokens = jnp.asarray(clean)
    clean_value = float(metric(core.run(loaded.model, tokens)))
    acts = core.capture(loaded.model, tokens, core.Site(arguments.site))
    with bars() as progress:
        task = progress.add_task(f"patching {arguments.site}", total=None)
        found = core.sweep(
            loaded.model,
            jnp.asarray(corrupt),
            core.Patch(acts).at(arguments.site),
            over=over,
            metric=metric,
            progress=lambda done, total: progress.update(
                task, completed=done, total=total
            ),
        )
    return found, clean_value


def _recovered(
    values: np.ndarray, clean: float, corrupt: float
) -> tuple[np.ndarray, str]:
    """Return the values to show (fractions if the ends differ) and their name."""
    # Equal prompts give equal ends up to rounding, and a fraction of that is noise.
    if np.isclose(clean, corrupt, rtol=1e-4, atol=1e-4):
        return values, "Logit difference (nats)"
    return (values - corrupt) / (clean - corrupt), "Fraction recovered"


def _show(
    values: np.ndarray,
    axes: list[dict[str, Any]],
    arguments: argparse.Namespace,
    measure: str,
    ends: tuple[float, float],
) -> None:
    from mijax import viz  # noqa: PLC0415

    console = output()
    console.print(
        f"Logit difference {arguments.answer!r} - {arguments.wrong!r}: clean "
        f"{ends[0]:.3f}, corrupt {ends[1]:.3f}. Clean {arguments.site} patched into "
        "the corrupt run:",
        soft_wrap=True,
    )
    grid, rows, columns = _grid(values, axes)
    title = f"{measure}, " + " by ".join(axis["name"] for axis in axes)
    console.print(
        viz.terminal_heatmap(grid, row_labels=rows, col_labels=columns, title=title)
    )


def _draw(
    values: np.ndarray,
    axes: list[dict[str, Any]],
    arguments: argparse.Namespace,
    measure: str,
    png: Path,
) -> None:
    from mijax import viz  # noqa: PLC0415

    grid, rows, columns = _grid(values, axes)
    figure = viz.heatmap(
        grid,
        x_labels=columns,
        y_labels=rows,
        title=f"Clean {arguments.site} patched into the corrupt run",
        x=axes[-1]["name"].capitalize(),
        y=axes[0]["name"].capitalize() if len(axes) > 1 else "",
        label=measure,
    )
    viz.save_png(figure, png)


def _grid(
    values: np.ndarray, axes: list[dict[str, Any]]
) -> tuple[np.ndarray, list[Any], list[Any]]:
    """The grid with its labels; a single axis is one row."""
    rows = axes[0]["labels"] if len(axes) > 1 else [""]
    return np.atleast_2d(values), rows, axes[-1]["labels"]


def _png(name: str) -> Path:
    path = Path(name)
    if path.suffix != ".png":
        raise ConfigError(f"--png {name} must end in .png.")
    return path
