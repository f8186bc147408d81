"""Results as they lie on disk."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mijax._errors import ConfigError
from mijax.experiment._observer import Number, Table
from mijax.experiment._run import Picture
from mijax.experiment._verdict import Verdict


@dataclass(frozen=True)
class Result:
    """What a finished run gave.

    Attributes:
        folder: the run folder.
        name: what `mijax list` calls the config.
        description: one line on what it shows.
        numbers: the reported numbers.
        verdicts: how each published number fared.
        tables: the reported tables.
        pictures: pictures, as files in the folder.
        pages: pages, as files in the folder.
        seconds: wall time of the last attempt.
    """

    folder: Path
    name: str
    description: str
    numbers: tuple[Number, ...]
    verdicts: tuple[Verdict, ...]
    tables: tuple[Table, ...]
    pictures: tuple[Picture, ...]
    pages: tuple[Picture, ...]
    seconds: float

    @property
    def passed(self) -> bool:
        """True if every published number was met."""
        return all(verdict.verdict == "PASS" for verdict in self.verdicts)

    def as_json(self) -> dict[str, object]:
        """Plain values for `result.json`; NaN and infinities become words."""
        values = asdict(self)
        del values["folder"]
        return _finite(values)


def read_result(folder: str | Path) -> Result:
    """Reads the results of a finished run.

    Args:
        folder: the run folder.

    Returns:
        The results.

    Raises:
        ConfigError: when the folder is no finished run.
    """
    folder = Path(folder)
    file = folder / "result.json"
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        return Result(
            folder=folder,
            name=values["name"],
            description=values["description"],
            numbers=tuple(_number(number) for number in values["numbers"]),
            verdicts=tuple(Verdict(**verdict) for verdict in values["verdicts"]),
            tables=tuple(_table(table) for table in values["tables"]),
            pictures=tuple(_picture(picture) for picture in values["pictures"]),
            pages=tuple(_picture(page) for page in values["pages"]),
            seconds=values["seconds"],
        )
    except OSError as error:
        unfinished = Path(f"{folder}.partial").is_dir()
        hint = (
            " It is unfinished: repeat its `mijax run` to resume it."
            if unfinished
            else " Give the folder that `mijax run` named."
        )
        raise ConfigError(f"{folder} is not a finished run.{hint}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{file} is not a result of mijax ({error}). Run the experiment again."
        ) from error


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _number(values: dict[str, Any]) -> Number:
    value = values["value"]
    if isinstance(value, list):
        value = tuple(value)
    elif value in ("nan", "inf", "-inf"):
        value = float(value)
    return Number(
        name=values["name"],
        value=value,
        low=_end(values["low"]),
        high=_end(values["high"]),
        count=values["count"],
        note=values["note"],
    )


def _end(value: float | str | None) -> float | None:
    return None if value is None else float(value)


def _table(values: dict[str, Any]) -> Table:
    rows = tuple(tuple(row) for row in values["rows"])
    return Table(values["title"], tuple(values["columns"]), rows)


def _picture(values: dict[str, Any]) -> Picture:
    return Picture(values["name"], tuple(values["files"]), values["caption"])
