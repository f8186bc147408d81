"""`mijax reproduce`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.text import Text

from mijax._errors import ConfigError
from mijax.cli._console import (
    VERDICT_STYLES,
    Watcher,
    bars,
    errors,
    output,
    print_table,
    print_verdicts,
)
from mijax.cli._parser import Commands, command
from mijax.cli._run import add_run_arguments, executed, prepared, print_place
from mijax.experiment import Reproduction, of_size, reproduce, reproductions_page
from mijax.io import replace_file

_EXAMPLE = """\
  mijax reproduce induction
  mijax reproduce --all --size small --page reproductions.md
"""


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = command(
        commands,
        "reproduce",
        _call,
        summary="Run an experiment and compare it with what was published; "
        "exit code 1 when a number is not met.",
        example=_EXAMPLE,
        overrides=True,
    )
    add_run_arguments(parser)
    parser.usage = (
        f"{parser.prog} NAME [--out DIR] [options of its config]\n"
        f"       {parser.prog} --all [--size SIZE] [--out DIR] [--page FILE]"
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="run every experiment of a size; a finished run is not run again",
    )
    parser.add_argument(
        "--size",
        help="with --all: tiny, small or full, as in `mijax list` (default: small)",
    )
    parser.add_argument(
        "--page",
        metavar="FILE",
        help="with --all: the page (default: reproductions.md in the run folder)",
    )
    parser.add_argument(
        "--which",
        choices=("missing", "all", "none"),
        help="with --all: run what has no finished run (default), everything, or "
        "nothing: the page alone, from the records",
    )


def _call(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    if arguments.all and not arguments.help:
        return _all(arguments, rest)
    _refuse_those_of_all(arguments)
    plan = prepared(arguments, rest)
    if plan is None:
        return 0
    if not plan.expected:
        raise ConfigError(
            f"{plan.name} has no published numbers (`expected:` in its config). Use "
            f"`mijax run {arguments.name}`."
        )
    result = executed(plan, arguments, quiet=True)
    if result is None:
        return 0
    print_verdicts(result.verdicts)
    print_place(result)
    return 0 if result.passed else 1


def _refuse_those_of_all(arguments: argparse.Namespace) -> None:
    """Raises on options that say nothing of a single experiment."""
    names = ("size", "page", "which")
    given = [f"--{name}" for name in names if getattr(arguments, name) is not None]
    if given and not arguments.help:
        raise ConfigError(
            f"{', '.join(given)} without --all: leave it out, or reproduce --all."
        )


def _all(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """Runs every experiment of a size; writes the page after each of them."""
    if rest or arguments.name is not None:
        given = " ".join([arguments.name or "", *rest]).strip()
        raise ConfigError(
            f"--all takes no experiment and no options of a config, got {given!r}: "
            "reproduce that one alone."
        )
    out = Path(arguments.out or "runs")
    page = Path(arguments.page) if arguments.page else out / "reproductions.md"
    names = [entry.name for entry in of_size(arguments.size or "small")]
    large = [entry.name for entry in of_size("full") if entry.name not in names]
    full = list(reproduce(large, out=out, which="none"))
    found: list[Reproduction] = []
    with bars() as progress:
        watcher = Watcher(progress, quiet=True)
        which = arguments.which or "missing"
        runs = reproduce(names, out=out, which=which, observer=watcher)
        for one in runs:
            found.append(one)
            _keep(reproductions_page(found, full=full), page)
            passed = one.result.passed if one.result else None
            word = {True: "PASS", False: "FAIL", None: f"not run: {one.reason}"}[passed]
            errors().print(Text(f"{one.name}: {word}"), soft_wrap=True)
    _print(found)
    output().print(f"page: {page}", soft_wrap=True)
    results = [one.result for one in found if one.result is not None]
    if not results:
        errors().print(Text(f"no finished run in {out}: nothing is reproduced"))
    return 0 if results and all(result.passed for result in results) else 1


def _keep(text: str, page: Path) -> None:
    page.parent.mkdir(parents=True, exist_ok=True)

    def write(path: Path) -> None:
        path.write_text(text, encoding="utf-8")

    replace_file(page, write)


def _print(found: Sequence[Reproduction]) -> None:
    """Prints one table of all published numbers."""
    rows: list[list[str | Text]] = []
    for one in found:
        if one.result is None:
            rows.append([one.name, "", "", one.reason, "not run", ""])
            continue
        for i, v in enumerate(one.result.verdicts):
            name, seconds = (
                (one.name, f"{one.result.seconds:.0f}") if i == 0 else ("", "")
            )
            style = VERDICT_STYLES[v.verdict]
            verdict = Text(v.verdict, style=style)
            rows.append([name, v.name, v.published, v.ours, verdict, seconds])
    print_table("", ["config", "claim", "published", "ours", "verdict", "s"], rows)
