"""Run an experiment into a folder that appears complete or not at all."""

import hashlib
import re
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from mijax._errors import OutputError
from mijax.experiment._files import writable, write, write_json
from mijax.experiment._observer import Observer, Silent
from mijax.experiment._plan import Plan, load
from mijax.experiment._processes import meet, other_process
from mijax.experiment._record import Compiles, counting_compiles, environment
from mijax.experiment._report import report_page
from mijax.experiment._result import Result
from mijax.experiment._run import Run
from mijax.experiment._verdict import judge
from mijax.io import locked, publish
from mijax.io.internal import foreign

_STATE, _SCRATCH = "unfinished.json", "scratch"
_FILES = re.compile(r"files-[0-9a-f]{16}")


def execute(
    source: str | Path | Plan,
    overrides: Sequence[str] | Mapping[str, object] = (),
    *,
    out: str | Path | None = None,
    observer: Observer | None = None,
) -> Result:
    """Run an experiment, resuming an interrupted run of the same config.

    Work happens in `<out>.partial`; a finished run moves its files to `out`, where it
    replaces an older run if mijax wrote everything in it. A killed run leaves
    `<out>.partial` behind; the next call with the same config, and the same Python
    files, finds its scratch folder there. Of several processes (`jax.distributed`) all
    run the experiment, with one scratch folder, and the first writes everything else.

    Args:
        source: a name from `mijax list`, a YAML file, a folder with an `experiment.py`,
            or a loaded plan.
        overrides: changes of the config: command-line words, or values by name.
        out: the run folder; `runs/<name>` without one.
        observer: receives progress and messages; none by default.

    Returns:
        The results, which are also stored in the folder.

    Raises:
        ConfigError: when the experiment or its config is wrong.
        OutputError: when the folder cannot be written, holds anything that mijax did
            not write, or another process is running in it.
    """
    plan = source if isinstance(source, Plan) else load(source)
    plan = plan.override(overrides) if overrides else plan
    folder = Path(out) if out is not None else default_folder(plan)
    partial = Path(f"{folder}.partial")
    if other_process():
        return _followed(plan, folder, partial)
    watcher = observer or Silent()
    _check_replaceable(folder)
    with writable(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(partial):
        work, resumed = _prepare(partial, plan, watcher)
        scratch = partial / _SCRATCH
        run = Run(work, expected=plan.expected, observer=watcher, scratch=scratch)
        meet("the working folder is ready")
        start = time.perf_counter()
        with counting_compiles() as compiles:
            plan.function(plan.config, run)
        seconds = time.perf_counter() - start
        # The scratch folder stays until no process needs it.
        meet("the experiment has run")
        result = _write_up(plan, run, folder=folder, seconds=seconds)
        record = _record(plan, run, compiles, seconds=seconds, resumed=resumed)
        write_json(work / "record.json", record)
        write(work / "report.html", report_page(result, record, folder=work))
        publish(work, folder)
        _remove(partial, watcher)
    return result


def _followed(plan: Plan, folder: Path, partial: Path) -> Result:
    """Run as one of the other processes, whose files nobody keeps."""
    meet("the working folder is ready")
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as own:
        run = Run(Path(own), expected=plan.expected, scratch=partial / _SCRATCH)
        plan.function(plan.config, run)
        seconds = time.perf_counter() - start
        meet("the experiment has run")
        return _write_up(plan, run, folder=folder, seconds=seconds)


def default_folder(plan: Plan) -> Path:
    """Return the default run folder, `runs/<name>` with `-` for `/`."""
    return Path("runs") / plan.name.replace("/", "-")


def _check_replaceable(folder: Path) -> None:
    """Refuse to replace anything but a run that mijax wrote."""
    with writable(folder):
        reason = foreign(folder)
        empty = not folder.is_dir() or not any(folder.iterdir())
    if not reason and not empty and not (folder / "record.json").is_file():
        reason = "is a folder that mijax wrote for something else"
    if reason:
        raise OutputError(
            f"{folder} is not a run of mijax that can be replaced: it {reason}. "
            "Nothing was changed: move it away, or choose another place with --out."
        )


# Locks the working folder; the lock dies with its process.
_locked = locked


def _prepare(partial: Path, plan: Plan, observer: Observer) -> tuple[Path, bool]:
    """Prepare the working folder of a plan.

    The name of its folder for files tells which config and code the scratch folder
    belongs to: a name is never half-written.

    Returns:
        The folder for files, and whether the scratch folder can be resumed from.
    """
    _check_working_folder(partial)
    signature = f"{plan.digest} {plan.code}"
    name = f"files-{hashlib.sha256(signature.encode()).hexdigest()[:16]}"
    work = partial / name
    with writable(partial):
        partial.mkdir(exist_ok=True)
        resumed = work.is_dir()
        others = [path for path in _entries(partial) if _FILES.fullmatch(path.name)]
    if resumed:
        observer.message(f"Resuming the unfinished run in {partial}.")
    elif others:
        observer.message(
            f"The unfinished run in {partial} has another config, or another version "
            "of the script or of mijax: starting afresh."
        )
    write_json(partial / _STATE, {"name": plan.name, "digest": signature})
    with writable(partial):
        for path in others if not resumed else _entries(work):
            _delete(path)
        if not resumed:
            _delete(partial / _SCRATCH)
            work.mkdir()
    write(work / "config.yaml", plan.yaml())
    return work, resumed


def _check_working_folder(partial: Path) -> None:
    """Refuse a working folder with anything that a run of mijax does not put there."""
    reason = ""
    with writable(partial):
        if partial.is_symlink():
            reason = "is a link, and mijax does not write through links"
        elif partial.exists() and not partial.is_dir():
            reason = "is a file"
        else:
            names = [path.name for path in _entries(partial)]
            strange = [path.name for path in _entries(partial) if not _is_own(path)]
            if strange:
                reason = f"holds '{strange[0]}', which mijax did not write"
            elif _SCRATCH in names and _STATE not in names:
                reason = f"holds a folder '{_SCRATCH}' but no {_STATE}"
    if reason:
        raise OutputError(
            f"{partial} is not an unfinished run of mijax: it {reason}. Nothing was "
            "changed: move it away, or choose another place with --out."
        )


def _is_own(path: Path) -> bool:
    """Return True if an entry of a working folder is one that a run makes."""
    if path.is_symlink():
        return False
    if path.is_dir():
        writing = path.name.startswith(f".{_STATE}.mijax-")
        return path.name == _SCRATCH or writing or bool(_FILES.fullmatch(path.name))
    # Version 0.1.0 kept an empty file for its lock here.
    return path.name == _STATE or (path.name == "lock" and not path.stat().st_size)


def _remove(partial: Path, observer: Observer) -> None:
    """Remove the working folder of a finished run, the mark of its owner last."""
    with writable(partial):
        own = [path for path in _entries(partial) if _is_own(path)]
        for path in sorted(own, key=lambda path: path.name == _STATE):
            _delete(path)
        if not _entries(partial):
            partial.rmdir()
            return
    observer.message(f"{partial} holds files that mijax did not write; it stays.")


def _delete(path: Path) -> None:
    """Delete a file or folder; a link itself, never what it points to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


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
