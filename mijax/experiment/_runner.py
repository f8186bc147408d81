"""Runs an experiment into a folder that appears whole or not at all."""

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from mijax._errors import OutputError
from mijax.experiment._files import writable, write, write_json
from mijax.experiment._observer import Observer, Silent
from mijax.experiment._plan import Plan, load
from mijax.experiment._record import Compiles, counting_compiles, environment
from mijax.experiment._report import report_page
from mijax.experiment._result import Result
from mijax.experiment._run import Run
from mijax.experiment._verdict import judge

_STATE = "unfinished.json"


def execute(
    source: str | Path | Plan,
    overrides: Sequence[str] | Mapping[str, object] = (),
    *,
    out: str | Path | None = None,
    observer: Observer | None = None,
) -> Result:
    """Runs an experiment, resuming an interrupted run of the same config.

    Work happens in `<out>.partial`, which a finished run renames to `out`. A killed run
    leaves it behind; the next call with the same config, and the same Python files,
    finds its scratch folder there.

    Args:
        source: a name from `mijax list`, a YAML file, a folder with an `experiment.py`,
            or a loaded plan.
        overrides: changes of the config: command-line words, or values by name.
        out: the run folder; `runs/<name>` without one.
        observer: who watches; nobody without one.

    Returns:
        The results, which also lie in the folder.

    Raises:
        ConfigError: when the experiment or its config is wrong.
        OutputError: when the folder cannot be written.
    """
    plan = source if isinstance(source, Plan) else load(source)
    plan = plan.override(overrides) if overrides else plan
    folder = Path(out) if out is not None else default_folder(plan)
    watcher = observer or Silent()
    partial = Path(f"{folder}.partial")
    _check_replaceable(folder)
    resumed = _resumes(partial, plan, watcher)
    with writable(partial):
        partial.mkdir(parents=True, exist_ok=True)
    with _locked(partial):
        _clear(partial, plan, keep_scratch=resumed)
        run = Run(partial, expected=plan.expected, observer=watcher)
        start = time.perf_counter()
        with counting_compiles() as compiles:
            plan.function(plan.config, run)
        seconds = time.perf_counter() - start
        result = _write_up(plan, run, folder=folder, seconds=seconds)
        record = _record(plan, run, compiles, seconds=seconds, resumed=resumed)
        write_json(partial / "record.json", record)
        write(partial / "report.html", report_page(result, record, folder=partial))
        _publish(partial, folder)
    return result


def default_folder(plan: Plan) -> Path:
    """Where a run goes when nobody says: `runs/<name>`, with `-` for `/`."""
    return Path("runs") / plan.name.replace("/", "-")


def _check_replaceable(folder: Path) -> None:
    """Refuses to replace a folder that is no run of mijax."""
    previous = _previous(folder)
    with writable(folder):
        if not folder.exists() and previous.is_dir():
            previous.rename(folder)
        taken = folder.exists() and not folder.is_dir()
        strange = folder.is_dir() and any(folder.iterdir())
    if taken or (strange and not (folder / "record.json").is_file()):
        raise OutputError(
            f"{folder} exists and is not a run of mijax. Choose another place with "
            "--out."
        )


def _resumes(partial: Path, plan: Plan, observer: Observer) -> bool:
    """Whether the working folder holds an interrupted run of this config and code."""
    if not partial.exists():
        return False
    digest = _digest(partial / _STATE)
    if digest is None and any(_entries(partial)):
        raise OutputError(
            f"{partial} exists and is not an unfinished run of mijax. Remove it, or "
            "choose another place with --out."
        )
    if digest == _signature(plan):
        observer.message(f"Resuming the unfinished run in {partial}.")
        return True
    if digest is not None:
        observer.message(
            f"The unfinished run in {partial} has another config, or is of "
            "another version of the script or of mijax: starting afresh."
        )
    return False


def _clear(partial: Path, plan: Plan, *, keep_scratch: bool) -> None:
    """Empties the working folder, but for what a resume needs, and signs it."""
    kept = {_STATE, "lock"} | ({"scratch"} if keep_scratch else set())
    with writable(partial):
        for path in _entries(partial):
            if path.name not in kept:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    write_json(partial / _STATE, {"name": plan.name, "digest": _signature(plan)})
    write(partial / "config.yaml", plan.yaml())


def _signature(plan: Plan) -> str:
    """What decides if a run resumes."""
    return f"{plan.digest} {plan.code}"


def _entries(folder: Path) -> list[Path]:
    with writable(folder):
        return list(folder.iterdir())


def _digest(state: Path) -> str | None:
    try:
        return str(json.loads(state.read_text(encoding="utf-8"))["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def _locked(partial: Path) -> Iterator[None]:
    """Keeps a second process out of the folder; the lock dies with its process."""
    try:
        import fcntl  # noqa: PLC0415  (POSIX only)
    except ImportError:
        yield
        return
    with writable(partial):
        file = os.open(partial / "lock", os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(file)
        raise OutputError(
            f"another process is running in {partial}. Wait for it, or choose another "
            "place with --out."
        ) from error
    try:
        yield
    finally:
        os.close(file)


def _write_up(plan: Plan, run: Run, *, folder: Path, seconds: float) -> Result:
    notes = run.notes
    result = Result(
        folder=folder,
        name=plan.name,
        description=plan.description,
        numbers=tuple(notes.numbers),
        verdicts=judge(plan.expected, notes.numbers),
        tables=tuple(notes.tables),
        pictures=tuple(notes.pictures),
        pages=tuple(notes.pages),
        seconds=seconds,
    )
    write_json(run.folder / "result.json", result.as_json())
    return result


def _record(
    plan: Plan, run: Run, compiles: Compiles, *, seconds: float, resumed: bool
) -> dict[str, object]:
    notes = run.notes
    return {
        "name": plan.name,
        "about": plan.about,
        "config_digest": plan.digest,
        "resumed": resumed,
        "seeds": notes.seeds,
        "weights": notes.weights,
        "data": notes.data,
        "timings": {
            "total_seconds": seconds,
            "stages_seconds": notes.stages,
            "compile_seconds": compiles.seconds,
            "compile_count": compiles.count,
        },
        **environment(),
    }


def _previous(folder: Path) -> Path:
    return Path(f"{folder}.previous")


def _publish(partial: Path, folder: Path) -> None:
    """Puts the finished folder in its place, then clears what only a resume needs."""
    previous = _previous(folder)
    with writable(folder):
        if folder.exists():
            shutil.rmtree(previous, ignore_errors=True)
            folder.rename(previous)
        partial.rename(folder)
        shutil.rmtree(previous, ignore_errors=True)
        shutil.rmtree(folder / "scratch", ignore_errors=True)
        for name in (_STATE, "lock"):
            (folder / name).unlink(missing_ok=True)
