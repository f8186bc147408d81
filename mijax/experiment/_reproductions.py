"""Many experiments, one after the other, and one page of what came out."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic_core import to_jsonable_python

from mijax._errors import ConfigError, MijaxError, nearest
from mijax.experiment._discover import SIZES, Entry, entries
from mijax.experiment._observer import Observer
from mijax.experiment._plan import Plan, load
from mijax.experiment._result import Result, read_result
from mijax.experiment._runner import default_folder, execute
from mijax.experiment._verdict import judge
from mijax.experiment._yaml import read_yaml


@dataclass(frozen=True)
class Reproduction:
    """One config: what it gave, or why it was not run.

    Attributes:
        name: what `mijax list` calls it.
        description: one line on what it shows.
        result: what it gave, or `None`.
        reason: why it was not run, or nothing.
        when: day of the run.
        where: processors and versions.
    """

    name: str
    description: str
    result: Result | None = None
    reason: str = ""
    when: str = ""
    where: str = ""


def of_size(size: str) -> list[Entry]:
    """Lists the configs of a size.

    Args:
        size: `tiny` (for tests), `small` (minutes to an hour on two cores) or `full`
            (as published; may want a GPU, or weights).

    Returns:
        The configs that `mijax list` shows with it.

    Raises:
        ConfigError: no such size.
    """
    if size not in SIZES:
        raise ConfigError(f"{size!r} is no size.{nearest(size, SIZES)}")
    return [entry for entry in entries() if entry.size == size]


def reproduce(
    names: Sequence[str],
    *,
    out: str | Path = "runs",
    which: Literal["missing", "all", "none"] = "missing",
    observer: Observer | None = None,
) -> Iterator[Reproduction]:
    """Runs experiments one after the other.

    A finished run of the same config is read, not run again, so that what was stopped
    goes on where it was. A text that a config leaves open (`--data`) may have been
    given in that run.

    Args:
        names: of the configs; those without published numbers are left out.
        out: folder of the run folders.
        which: what is run: what there is no finished run of, everything, or nothing.
        observer: who watches.

    Yields:
        What each gave, as soon as it has. One that cannot be run says why.
    """
    for name in names:
        plan = load(name)
        if not plan.expected:
            continue
        folder = Path(out) / default_folder(plan).name
        try:
            there = _is_run_of(folder, plan)
            if which == "none" and not there:
                raise ConfigError("There is no finished run of it.")
            if which == "all" or not there:
                execute(plan, out=folder, observer=observer)
            yield _read(folder, plan)
        except MijaxError as error:
            yield Reproduction(plan.name, plan.description, reason=str(error))


def reproductions_page(
    found: Sequence[Reproduction], *, full: Sequence[Reproduction] = ()
) -> str:
    """Writes what experiments gave as a Markdown page.

    Args:
        found: what each gave.
        full: configs of full size, of which the page says whether they were run.

    Returns:
        A table of all published numbers, then what was not run and why, then what was
        run at full size, where and when.
    """
    lines = [
        *("# Reproductions", ""),
        "Published numbers and what mijax gives, written by `mijax reproduce --all`.",
        "`ours` has an interval where there is one: 95 % over prompts, or the range",
        "of seeds, as the experiment says; a FAIL is a number that is not met, and",
        "stays here. Sources are in the configs. Seconds are the wall time of the",
        "last attempt, whatever else the machine did.",
        *("", "| config | number | published | ours | verdict | seconds | run |"),
        "|---|---|---|---|---|---|---|",
    ]
    for one in found:
        if one.result is None:
            continue
        for i, v in enumerate(one.result.verdicts):
            first = [f"`{one.name}`"] if i == 0 else [""]
            last = [f"{one.result.seconds:,.0f}", one.when] if i == 0 else ["", ""]
            cells = [*first, f"`{v.name}`", v.published, v.ours, v.verdict, *last]
            lines.append("| " + " | ".join(map(_cell, cells)) + " |")
    places = dict.fromkeys(one.where for one in found if one.result is not None)
    lines += ["", *(f"Run on {place}." for place in places)]
    skipped = [one for one in found if one.result is None]
    if skipped:
        lines += ["", "## Not run", "", "| config | why |", "|---|---|"]
        lines += [f"| `{one.name}` | {_cell(one.reason)} |" for one in skipped]
    if full:
        lines += [
            *("", "## At full size", ""),
            "As published; such a run wants a GPU, or weights that are not at hand.",
            *("", "| config | run | where |", "|---|---|---|"),
        ]
        lines += [
            f"| `{one.name}` | {one.when or 'not run'} | {one.where} |" for one in full
        ]
    return "\n".join(lines) + "\n"


def _is_run_of(folder: Path, plan: Plan) -> bool:
    """True if there is a finished run of a config.

    Where the config leaves a text open (`--data`), the run may have been given one; any
    other value that is null is a choice (such as all edges). An option that came after
    the run is as the run was where it is at its default.
    """
    file = folder / "config.yaml"
    if not file.is_file() or not (folder / "result.json").is_file():
        return False
    kept = read_yaml(file).value.get("config") or {}
    wanted = plan.config.model_dump(mode="json")
    if not isinstance(kept, dict) or not kept.keys() <= wanted.keys():
        return False
    fields = type(plan.config).model_fields
    later = {name: fields[name] for name in wanted.keys() - kept.keys()}
    if any(field.is_required() for field in later.values()):
        return False
    later = {
        name: to_jsonable_python(field.get_default(call_default_factory=True))
        for name, field in later.items()
    }
    there = later | kept
    return all(
        value == there[name] or (value is None and isinstance(there[name], str))
        for name, value in wanted.items()
    )


def _read(folder: Path, plan: Plan) -> Reproduction:
    """Reads a finished run, and compares it with what the plan expects."""
    record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    devices = record["devices"]
    kinds = ", ".join(dict.fromkeys(device["kind"] for device in devices))
    jax = record["packages"].get("jax", "?")
    where = f"{len(devices)} x {kinds}, Python {record['python']}, jax {jax}"
    when = record["time"][:10]
    result = read_result(folder)
    # The published numbers may have changed since.
    result = replace(result, verdicts=judge(plan.expected, result.numbers))
    return Reproduction(plan.name, plan.description, result, "", when, where)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
