"""The record of a run: what was used, and how long it took."""

import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import mijax

_COMPILE = "/jax/core/compile/backend_compile_duration"


@dataclass
class Compiles:
    """How often XLA compiled, and the seconds it took."""

    count: int = 0
    seconds: float = 0.0


@contextmanager
def counting_compiles() -> Iterator[Compiles]:
    """Counts the compilations inside the block.

    Yields:
        The counts, which grow as XLA compiles.
    """
    import jax  # noqa: PLC0415  (`mijax list` must not wait for it)

    compiles = Compiles()

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == _COMPILE:
            compiles.count += 1
            compiles.seconds += duration_secs

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield compiles
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def environment() -> dict[str, object]:
    """Versions, machine, devices and git state, as plain JSON values."""
    import jax  # noqa: PLC0415

    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": list(sys.argv),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": _packages(),
        "devices": [
            {"id": d.id, "platform": d.platform, "kind": d.device_kind}
            for d in jax.devices()
        ],
        "git": {
            "working_folder": _git(Path.cwd()),
            "mijax": _git(Path(mijax.__file__).resolve().parent, "__init__.py"),
        },
    }


def _packages() -> dict[str, str]:
    """Version of every distribution that this process has imported from."""
    imported = {name.partition(".")[0] for name in list(sys.modules)}
    distributions = metadata.packages_distributions()
    used = {d for name in imported for d in distributions.get(name, ())}
    versions = {name.lower(): metadata.version(name) for name in used}
    versions["mijax"] = mijax.__version__
    return dict(sorted(versions.items()))


def _git(folder: Path, tracked: str | None = None) -> dict[str, object] | None:
    """Commit of the repository around a folder, and whether files differ from it.

    With `tracked`, only when that file of the folder belongs to the repository: an
    installed package may lie inside somebody else's.
    """

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *words],
                capture_output=True,
                text=True,
                check=False,
                timeout=20,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if tracked is not None and git("ls-files", "--error-unmatch", tracked) is None:
        return None
    sha = git("rev-parse", "HEAD")
    if sha is None:
        return None
    return {"sha": sha, "dirty": git("status", "--porcelain") != ""}
