"""Concepts as data: texts that show a concept and texts that do not."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import equinox as eqx

from mijax._errors import LoadError, quoted

LABELS = ("positive", "negative", "hard negative")
KEYS = ("concept", "split", "label", "text")


class Concept(eqx.Module):
    """Texts with and without one concept.

    Attributes:
        name: name of the concept.
        positive: training texts that show it.
        negative: training texts that do not.
        test: test texts.
        labels: label of each test text: `"positive"`, `"negative"` or
            `"hard negative"`, a similar text without the concept.

    Raises:
        LoadError: no training texts of either kind, or no positive or negative test
            text.
    """

    name: str = eqx.field(static=True)
    positive: tuple[Any, ...] = eqx.field(static=True)
    negative: tuple[Any, ...] = eqx.field(static=True)
    test: tuple[Any, ...] = eqx.field(static=True)
    labels: tuple[str, ...] = eqx.field(static=True)

    def __check_init__(self):
        """Raise if the concept cannot be learned or tested."""
        wrong = sorted(set(self.labels) - set(LABELS))
        if wrong or len(self.labels) != len(self.test):
            raise LoadError(
                f"Concept {quoted(self.name)} needs one of the labels "
                f"{', '.join(LABELS)} for each of {len(self.test)} test texts, got "
                f"{wrong or len(self.labels)}."
            )
        both = {"positive", "negative"} <= set(self.labels)
        if not self.positive or not self.negative or not both:
            raise LoadError(
                f"Concept {quoted(self.name)} needs positive and negative texts, "
                "both in training and in test."
            )


def read_concepts(path: str | os.PathLike[str]) -> list[Concept]:
    r"""Read concepts from a file with one JSON object per line.

    Each line has the keys `concept`, `split` (`"train"` or `"test"`), `label`
    (`"positive"`, `"negative"`, in test also `"hard negative"`) and `text`.

    Args:
        path: the file.

    Returns:
        The concepts, in the order of their first lines.

    Raises:
        LoadError: a line is not such an object, or a concept lacks one kind of text.

    Examples:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "concepts.jsonl"
        >>> line = '{{"concept": "rain", "split": "{}", "label": "{}", "text": "{}"}}'
        >>> labels = [("positive", "It pours."), ("negative", "It shines.")]
        >>> rows = [line.format(s, *row) for s in ("train", "test") for row in labels]
        >>> _ = path.write_text("\n".join(rows))
        >>> read_concepts(path)[0].labels
        ('positive', 'negative')
    """
    found: dict[str, dict[str, list[str]]] = {}
    if not Path(path).is_file():
        raise LoadError(f"{path} does not exist. Give a file of concepts.")
    for number, line in enumerate(Path(path).read_text("utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        row = _row(path, number, line)
        parts = ("positive", "negative", "test", "labels")
        kinds = found.setdefault(row["concept"], {part: [] for part in parts})
        if row["split"] == "test":
            kinds["test"].append(row["text"])
            kinds["labels"].append(row["label"])
        else:
            kinds[row["label"]].append(row["text"])
    if not found:
        raise LoadError(f"{path} has no concepts: expected one JSON object per line.")
    return [
        Concept(name, **{part: tuple(texts) for part, texts in kinds.items()})
        for name, kinds in found.items()
    ]


def _row(path: Any, number: int, line: str) -> dict[str, str]:
    """Return one line, checked."""
    row: Any = None
    with contextlib.suppress(ValueError):
        row = json.loads(line)
    texts = isinstance(row, dict) and all(isinstance(v, str) for v in row.values())
    if not texts or set(row) != set(KEYS):
        raise LoadError(
            f"{path}, line {number}: expected a JSON object of strings with the keys "
            f"{', '.join(KEYS)}, got {quoted(line)}."
        )
    allowed = LABELS if row["split"] == "test" else LABELS[:2]
    if row["split"] not in ("train", "test") or row["label"] not in allowed:
        raise LoadError(
            f"{path}, line {number}: split must be train or test, and label one of "
            f"{', '.join(LABELS)} (hard negatives in test only), got split "
            f"{quoted(row['split'])} and label {quoted(row['label'])}."
        )
    return row
