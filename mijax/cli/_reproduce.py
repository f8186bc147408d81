"""`mijax reproduce`."""

import argparse
from collections.abc import Sequence

from mijax._errors import ConfigError
from mijax.cli._console import print_verdicts
from mijax.cli._parser import Commands, command
from mijax.cli._run import add_run_arguments, executed, prepared, print_place


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = command(
        commands,
        "reproduce",
        _call,
        summary="Run an experiment and compare it with what was published; "
        "exit code 1 when a number is not met.",
        example="  mijax reproduce induction",
        overrides=True,
    )
    add_run_arguments(parser)


def _call(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    plan = prepared(arguments, rest)
    if plan is None:
        return 0
    if not plan.expected:
        raise ConfigError(
            f"{plan.name} has no published numbers (`expected:` in its config). Use "
            f"`mijax run {arguments.name}`."
        )
    result = executed(plan, arguments, quiet=True)
    print_verdicts(result.verdicts)
    print_place(result)
    return 0 if result.passed else 1
