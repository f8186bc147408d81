"""Array shapes and types are checked at run time; eight devices for mesh tests.

Programs are compiled without optimisation of their machine code: most of the time of
the tests is compilation, a third less of it so. `XLA_FLAGS` given from outside win.
"""

import os

os.environ["XLA_FLAGS"] = (
    "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count=8 "
    + os.environ.get("XLA_FLAGS", "")
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests of the command line leave the user's own cache alone.
os.environ.setdefault("MIJAX_CACHE", "0")

from jaxtyping import install_import_hook

with install_import_hook("mijax", "beartype.beartype"):
    import mijax.attribution
    import mijax.causal
    import mijax.circuits
    import mijax.core
    import mijax.data
    import mijax.dictionaries
    import mijax.features
    import mijax.io
    import mijax.models
    import mijax.nn
    import mijax.probes
    import mijax.testing
    import mijax.train  # noqa: F401

import jax
import jaxtyping
import pytest

jax.config.update("jax_default_matmul_precision", "highest")


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Drops compiled programs: a process may map so many only (`max_map_count`)."""
    yield
    jax.clear_caches()


@pytest.fixture
def unchecked():
    """Without run-time checks of types, as users run: bad input meets our errors."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def key():
    return jax.random.key(0)
