"""YAML that remembers its lines, and reads numbers as people write them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from mijax._errors import ConfigError

Place = tuple[str | int, ...]
"""Keys and list indices from the top of a document to one of its values."""

# YAML 1.1 wants a dot and a signed exponent in a float: it reads 1e-3 as a string.
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


@dataclass(frozen=True)
class Document:
    """A YAML mapping together with the line of each of its keys.

    Attributes:
        path: the file.
        value: the mapping.
        lines: the line, from 1, of every key and list item.
    """

    path: Path
    value: dict[str, object]
    lines: dict[Place, int]

    def known(self, place: Place) -> Place:
        """The longest beginning of `place` that the file has."""
        while place and place not in self.lines:
            place = place[:-1]
        return place

    def error(self, place: Place, message: str) -> ConfigError:
        """An error that points at the line of `place`, or of what encloses it."""
        line = self.lines.get(self.known(place), 1)
        return ConfigError(f"{shown(self.path)}:{line}: {message}")


def read_yaml(path: Path) -> Document:
    """Reads one YAML mapping.

    Args:
        path: the file.

    Returns:
        Its values, with the line of each.

    Raises:
        ConfigError: when the file is missing or not UTF-8, is not YAML, is not a
            mapping, or gives a key twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ConfigError(f"cannot read the config {shown(path)}: {reason}.") from error
    lines: dict[Place, int] = {}
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        value = _Reader(loader, path, lines).read(node, (), ()) if node else {}
    except yaml.YAMLError as error:
        raise _malformed(path, error) from error
    except RecursionError as error:
        raise ConfigError(f"{shown(path)}:1: it is nested too deeply.") from error
    if not isinstance(value, dict):
        raise ConfigError(
            f"{shown(path)}:1: expected a mapping with the keys experiment, "
            f"description, config and expected; got a {type(value).__name__}."
        )
    return Document(path, value, lines)


def dump_yaml(value: Mapping[str, object]) -> str:
    """Writes YAML that `read_yaml` reads back to the same values."""
    return yaml.dump(
        dict(value), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=88
    )


def shown(path: Path) -> str:
    """A path as people would type it: relative when it lies below this folder."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


@dataclass(frozen=True)
class _Reader:
    loader: yaml.SafeLoader
    path: Path
    lines: dict[Place, int]

    def read(self, node: yaml.Node, place: Place, above: tuple[int, ...]) -> object:
        if id(node) in above:
            raise ConfigError(
                f"{shown(self.path)}:{_line(node)}: an alias that contains itself."
            )
        above = (*above, id(node))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, place, above)
        if isinstance(node, yaml.SequenceNode):
            return [
                self.read(item, self._mark((*place, index), item), above)
                for index, item in enumerate(node.value)
            ]
        plain = isinstance(node, yaml.ScalarNode) and node.style is None
        if plain and _NUMBER.fullmatch(node.value):
            return float(node.value)
        try:
            return self.loader.construct_object(node)
        except ValueError as error:
            raise ConfigError(f"{shown(self.path)}:{_line(node)}: {error}.") from error

    def _mapping(
        self, node: yaml.MappingNode, place: Place, above: tuple[int, ...]
    ) -> dict[str, object]:
        result: dict[str, object] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            if key in result:
                raise ConfigError(
                    f"{shown(self.path)}:{_line(key_node)}: the key {key!r} is given "
                    "twice. Keep one."
                )
            inner = self._mark((*place, key), key_node)
            result[key] = self.read(value_node, inner, above)
        return result

    def _mark(self, place: Place, node: yaml.Node) -> Place:
        self.lines[place] = _line(node)
        return place


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


def _malformed(path: Path, error: yaml.YAMLError) -> ConfigError:
    mark = getattr(error, "problem_mark", None)
    line = mark.line + 1 if mark is not None else 1
    problem = getattr(error, "problem", None) or str(error)
    problem = " ".join(str(problem).split())
    context = getattr(error, "context_mark", None)
    if context is not None and context.line + 1 < line:
        problem += f", in what begins on line {context.line + 1}"
    return ConfigError(f"{shown(path)}:{line}: not valid YAML: {problem}.")


class _Dumper(yaml.SafeDumper):
    """Quotes the strings that `read_yaml` would take for numbers."""


def _represent_str(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = "'" if _NUMBER.fullmatch(text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_str)
