"""Edits of the run that a sweep starts from, in lanes of several prompts."""

from typing import Any

from jaxtyping import Array

from mijax.core._edits import AbstractEdit
from mijax.core._place import Place
from mijax.core._rows import Sequence
from mijax.core._sites import Sites, empty, filled, get, put


class Held(AbstractEdit):
    """An edit whose indices hold one entry per prompt, where lanes are cells."""

    edit: AbstractEdit

    def __call__(self, x: Array, place: Place) -> Array:
        """Apply the edit, with the prompt of each row for its lane."""
        rows = place.rows
        by_prompt = Sequence(rows.position, rows.prompt, rows.prompt)
        return self.edit(x, Place(by_prompt, place.layer))


def held(edits: Sites[Any]) -> Sites[Any]:
    """Return edits that stay in every lane of a sweep."""
    found = empty()
    for name in filled(edits):
        found = put(found, name, Held(get(edits, name)))
    return found
