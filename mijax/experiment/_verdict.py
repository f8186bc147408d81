"""Published against ours."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mijax.experiment._config import Expected
from mijax.experiment._observer import Number


@dataclass(frozen=True)
class Verdict:
    """How one published number fared.

    Attributes:
        name: the number.
        published: what was published, with its tolerance.
        ours: what this run gave; empty when it gave none.
        verdict: `PASS`, `FAIL`, or `missing` when the run never reported the number.
        source: where it was published.
    """

    name: str
    published: str
    ours: str
    verdict: Literal["PASS", "FAIL", "missing"]
    source: str


def judge(
    expected: Mapping[str, Expected], numbers: Sequence[Number]
) -> tuple[Verdict, ...]:
    """Compares what a run reported with what was published.

    Args:
        expected: published numbers by name.
        numbers: what the run reported.

    Returns:
        One verdict per published number, in the order of the config.

    Examples:
        >>> claim = {"accuracy": Expected(at_least=0.9, source="Table 1")}
        >>> judge(claim, [Number("accuracy", 0.95)])[0].verdict
        'PASS'
    """
    ours = {number.name: number for number in numbers}
    return tuple(_one(name, entry, ours.get(name)) for name, entry in expected.items())


def _one(name: str, expected: Expected, number: Number | None) -> Verdict:
    if number is None:
        return Verdict(name, expected.published, "", "missing", expected.source)
    passed = expected.accepts(number.value)
    return Verdict(
        name,
        expected.published,
        number.text,
        "PASS" if passed else "FAIL",
        expected.source,
    )
