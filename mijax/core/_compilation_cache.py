"""`compilation_cache`: compiled programs kept on disk for later processes."""

import hashlib
import os
import platform
import re
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import platformdirs
from filelock import FileLock, Timeout
from jax.experimental.compilation_cache import compilation_cache as of_jax

SIZE = 2**29
# JAX reads every entry's date before each write, about 20 ms for a thousand.
ENTRIES = 1000
UNUSED_DAYS = 30
ENTRY = re.compile(r"(?P<key>.+-[0-9a-f]{64})-(?P<part>cache|atime)")


def compilation_cache(
    folder: str | os.PathLike[str] | None = None, *, size: int = SIZE
) -> Path | None:
    """Keep compiled programs on disk, so that later processes load them.

    Turns on JAX's persistent compilation cache for this process. Call it once, before
    the first call that should profit; the command line does so by itself. Programs
    are still traced and lowered in every process, only their compilation is saved.

    Several processes may share a folder. Each version of JAX and each kind of CPU has
    its own subfolder; subfolders that no process has used for 30 days are emptied. The
    least recently used programs go first when a subfolder exceeds its size. An entry
    that cannot be read costs a warning from JAX, and the program is compiled again.

    Args:
        folder: where programs are kept. By default the environment variable
            `MIJAX_CACHE_DIR`, else the folder that JAX already uses
            (`JAX_COMPILATION_CACHE_DIR`; its settings are left as they are), else
            `mijax` in the user's cache folder.
        size: largest size of a subfolder, bytes.

    Returns:
        The folder that JAX uses, or `None` without a cache: where `MIJAX_CACHE=0` or
        `JAX_ENABLE_COMPILATION_CACHE=0` turns it off, or the folder cannot be written,
        which is one warning.

    Examples:
        >>> import mijax
        >>> folder = mijax.compilation_cache()
    """
    if os.environ.get("MIJAX_CACHE") == "0" or not _setting("enable_compilation_cache"):
        return None
    given = folder or os.environ.get("MIJAX_CACHE_DIR")
    used = _setting("compilation_cache_dir")
    if not given and used:
        return Path(used)
    root = Path(given or platformdirs.user_cache_dir("mijax", appauthor=False))
    own = root.expanduser().absolute() / f"jax-{jax.__version__}-{_machine()}"
    try:
        _prepare(own)
    except OSError as error:
        warnings.warn(
            f"No compilation cache: cannot write to {own} ({error.strerror}).",
            stacklevel=2,
        )
        return None
    _use(own, size)
    return own


def _machine() -> str:
    """Return a digest of the CPU's instructions, which compiled programs rely on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        found = [line for line in lines if line.lower().startswith(("flags", "feat"))]
        features = " ".join(sorted(found[0].split()))
    except (OSError, IndexError):
        features = platform.processor()
    text = f"{platform.machine()} {features}"
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _prepare(folder: Path) -> None:
    """Make the folder, check that it can be written, and tidy it and its siblings.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(13, "Permission denied")
    os.utime(folder)
    _tidy(folder, ENTRIES)
    oldest = time.time() - UNUSED_DAYS * 24 * 3600
    for other in folder.parent.glob("jax-*"):
        if other.is_dir() and not other.is_symlink() and _date(other) < oldest:
            _tidy(other, 0)


def _tidy(folder: Path, most: int) -> None:
    """Remove torn entries and all but the most recently used ones.

    A process that is killed in a write leaves an entry without its date, which JAX
    would neither replace nor evict. The lock is JAX's own.
    """
    try:
        with FileLock(folder / ".lockfile", timeout=1):
            parts: dict[str, dict[str, Path]] = {}
            for path in folder.iterdir():
                if match := ENTRY.fullmatch(path.name):
                    parts.setdefault(match["key"], {})[match["part"]] = path
            whole = [
                entry
                for entry in parts.values()
                if len(entry) == 2
                and all(path.stat().st_size for path in entry.values())
            ]
            whole.sort(key=lambda entry: _date(entry["atime"]), reverse=True)
            keep = {path for entry in whole[:most] for path in entry.values()}
            _remove(
                path
                for entry in parts.values()
                for path in entry.values()
                if path not in keep
            )
    except Timeout:
        return


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _date(path: Path) -> float:
    return path.stat().st_mtime


def _use(folder: Path, size: int) -> None:
    """Point JAX at the folder, and have it keep small programs too."""
    settings = {
        "compilation_cache_dir": str(folder),
        "compilation_cache_max_size": size,
        "persistent_cache_min_compile_time_secs": 0.0,
        "persistent_cache_min_entry_size_bytes": -1,
    }
    if all(_setting(name) == value for name, value in settings.items()):
        return
    of_jax.reset_cache()
    for name, value in settings.items():
        jax.config.update(f"jax_{name}", value)


def _setting(name: str) -> Any:
    return getattr(jax.config, f"jax_{name}")
