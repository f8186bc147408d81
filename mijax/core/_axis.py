"""A swept axis of a sweep."""

from typing import NamedTuple


class Axis(NamedTuple):
    """A swept axis: its name and the label of each value."""

    name: str
    labels: tuple[str, ...]
