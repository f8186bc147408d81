"""`mijax run`."""

import argparse
from collections.abc import Sequence

from mijax._errors import ConfigError
from mijax.cli._console import Watcher, bars, output, print_numbers, print_verdicts
from mijax.cli._distributed import add_distributed_arguments, join
from mijax.cli._parser import Commands, command
from mijax.experiment import Plan, Result, execute, load, option_help

_EXAMPLE = """\
  mijax run induction --prompts 8 --seed 3 --out runs/quick
  mijax run induction --help      # the options of its config
  mijax run runs/quick/config.yaml
"""


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = command(
        commands,
        "run",
        _call,
        summary="Run an experiment; repeat the command to resume an interrupted run.",
        example=_EXAMPLE,
        overrides=True,
    )
    add_run_arguments(parser)


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what `run` and `reproduce` share."""
    parser.usage = f"{parser.prog} NAME [--out DIR] [options of its config]"
    parser.add_argument(
        "name",
        metavar="NAME",
        nargs="?",
        help="a name from `mijax list`, a YAML file, or a folder with experiment.py",
    )
    parser.add_argument("--out", metavar="DIR", help="run folder (default: runs/NAME)")
    parser.add_argument(
        "-h",
        "--help",
        action="store_true",
        help="show this; with NAME, the options of its config as well",
    )
    add_distributed_arguments(parser)


def prepared(arguments: argparse.Namespace, rest: Sequence[str]) -> Plan | None:
    """The experiment with its overrides; None once the help was printed."""
    parser = arguments.parser
    if arguments.name is None:
        if arguments.help:
            parser.print_help()
            return None
        raise ConfigError(f"give an experiment first. See `{parser.prog} --help`.")
    plan = load(arguments.name)
    if not arguments.help:
        return plan.override(list(rest))
    about = "\n\n".join(part for part in (plan.description, plan.about) if part)
    program = f"{parser.prog} {arguments.name}"
    example = f"\nexample:\n  {program} --out runs/quick\n"
    text = option_help(plan.config, program=program, about=about)
    output().print(text + example, soft_wrap=True)
    return None


def executed(
    plan: Plan, arguments: argparse.Namespace, *, quiet: bool
) -> Result | None:
    """Runs the experiment under progress bars.

    Returns:
        The result; `None` in all but the first of several processes.
    """
    if not join(arguments):
        execute(plan, out=arguments.out)
        return None
    with bars() as progress:
        watcher = Watcher(progress, quiet=quiet)
        return execute(plan, out=arguments.out, observer=watcher)


def _call(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    plan = prepared(arguments, rest)
    if plan is None:
        return 0
    result = executed(plan, arguments, quiet=False)
    if result is None:
        return 0
    if result.numbers:
        print_numbers(result.numbers)
    if result.verdicts:
        print_verdicts(result.verdicts)
    print_place(result)
    return 0


def print_place(result: Result) -> None:
    """Says where the report lies."""
    report = result.folder / "report.html"
    output().print(f"{result.seconds:.1f} s; report: {report}", soft_wrap=True)
