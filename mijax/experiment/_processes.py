"""Several processes that run one experiment together."""

import sys


def other_process() -> bool:
    """Return True in all but the first process."""
    return _together() and _jax().process_index() > 0


def meet(what: str) -> None:
    """Wait until every process has come this far."""
    if _together():
        from jax.experimental import multihost_utils  # noqa: PLC0415

        multihost_utils.sync_global_devices(what)


def _together() -> bool:
    # Not to start a backend, and not to import JAX, where nobody asked for processes.
    return "jax" in sys.modules and _jax().distributed.is_initialized()


def _jax():
    return sys.modules["jax"]
