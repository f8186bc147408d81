"""Entry point: reads the words, calls a command, turns errors into exit codes."""

import os
import sys
import warnings
from collections.abc import Sequence

from rich.text import Text

import mijax
from mijax._errors import ConfigError, MijaxError
from mijax.cli import (
    _attention,
    _check,
    _list,
    _logits,
    _models,
    _patch,
    _reproduce,
    _run,
    _show,
)
from mijax.cli._console import errors
from mijax.cli._parser import Parser, add_debug, refuse_unknown

_COMMANDS = (
    _list,
    _run,
    _reproduce,
    _show,
    _patch,
    _logits,
    _attention,
    _models,
    _check,
)
_EXAMPLES = """\
examples:
  mijax list
  mijax run induction --prompts 8 --out runs/quick
  mijax reproduce induction
  mijax logits smollm2-135m-instruct "The capital of France is"
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: the words after `mijax`; those of the process without them.

    Returns:
        Exit code: 0 done, 1 a published number was not met, 2 an error of the user's
        (one line on stderr), 130 interrupted.

    Examples:
        >>> main(["--version"])
        mijax 0.1.0
        0
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _dispatch(words)
        sys.stdout.flush()
    except MijaxError as error:
        if "--debug" in words:
            raise
        line = " ".join(str(error).split())
        errors().print(Text(f"mijax: {line}", style="red"), soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        resumes = words[:1] in (["run"], ["reproduce"])
        hint = " Repeat the same command to resume." if resumes else ""
        errors().print(Text(f"mijax: interrupted.{hint}", style="red"), soft_wrap=True)
        return 130
    except BrokenPipeError:
        # The reader (`| head`) has left; what Python still holds goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except SystemExit as end:
        # How argparse ends after --help and --version, and rich on a closed pipe.
        return end.code if isinstance(end.code, int) else 0
    return code


def _dispatch(words: Sequence[str]) -> int:
    parser = Parser(
        prog="mijax",
        description="Mechanistic interpretability in JAX, from the terminal.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("--version", action="version", version=_version())
    add_debug(parser)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for command in _COMMANDS:
        command.add(commands)
    if not words:
        parser.print_help()
        return 0
    arguments, rest = parser.parse_known_args(words)
    call = getattr(arguments, "call", None)
    if call is None:
        refuse_unknown(parser, rest)
        raise ConfigError("give a command. See them with `mijax --help`.")
    if not arguments.takes_overrides:
        refuse_unknown(arguments.parser, rest)
    _keep_programs()
    return call(arguments, rest)


def _keep_programs() -> None:
    """Turn on the compilation cache; without one a command is only slower."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        mijax.compilation_cache()
    for warning in caught:
        errors().print(Text(f"mijax: {warning.message}"), soft_wrap=True)


def _version() -> str:
    return f"mijax {mijax.__version__}"
