"""Argument parsers whose errors are one line."""

import argparse
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from mijax._errors import ConfigError, nearest

Commands = Any
"""What `ArgumentParser.add_subparsers` gives; argparse has no public name for it."""


class Parser(argparse.ArgumentParser):
    """An argument parser that raises `ConfigError`, and keeps the lines of examples."""

    def __init__(self, **options: Any):
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Raises instead of printing the usage."""
        raise ConfigError(f"{message}. See `{self.prog} --help`.")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Answers a wrong command or choice with the nearest one."""
        if action.choices is not None and value not in action.choices:
            what = " or ".join(action.option_strings) or action.metavar
            names = [str(choice) for choice in action.choices]
            raise ConfigError(
                f"{str(value)!r} is no {what}." + nearest(str(value), names)
            )


def command(
    commands: Commands,
    name: str,
    call: Callable[[argparse.Namespace, Sequence[str]], int],
    *,
    summary: str,
    example: str,
    overrides: bool = False,
) -> Parser:
    """Adds a command.

    Args:
        commands: the commands of the main parser.
        name: its name.
        call: takes the parsed arguments and the words that are left.
        summary: one line on what it does.
        example: lines to paste.
        overrides: whether words that the parser does not know are for the command.

    Returns:
        The parser of the command.
    """
    parser: Parser = commands.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=f"example:\n{example}",
        add_help=not overrides,
    )
    add_debug(parser)
    parser.set_defaults(call=call, parser=parser, takes_overrides=overrides)
    return parser


def add_debug(parser: argparse.ArgumentParser) -> None:
    """Adds --debug, which may stand before or after the command."""
    parser.add_argument(
        "--debug",
        action="store_true",
        default=argparse.SUPPRESS,
        help="show the traceback of an error",
    )


def refuse_unknown(parser: argparse.ArgumentParser, rest: Sequence[str]) -> None:
    """Raises on words that no option took, with the nearest option."""
    if not rest:
        return
    word = rest[0].split("=", 1)[0]
    options = [o for a in parser._actions for o in a.option_strings]
    hint = nearest(word, options) if word.startswith("-") else ""
    raise ConfigError(f"{parser.prog} does not take {word!r}.{hint}")
