"""Settings of every test: programs kept on disk, eight devices, checks by request.

Programs are compiled without optimization of their machine code, and kept in
`.cache/jax`, so that the processes of one run share them, and the next run finds them.
`XLA_FLAGS` and `JAX_COMPILATION_CACHE_DIR` given from outside win.
`MIJAX_TYPECHECK=1` checks array shapes and types at run time.
"""

import gc
import os
from importlib.metadata import version
from pathlib import Path

# XLA ends the process at a flag that it does not know, and later ones dropped this one.
OLDER = version("jaxlib").startswith("0.10.")
FLAGS = (
    "--xla_backend_optimization_level=0",
    *(["--xla_cpu_use_fusion_emitters=false"] if OLDER else []),
    "--xla_cpu_parallel_codegen_split_count=1",
    "--xla_force_host_platform_device_count=8",
)
# Workers inherit the variable: set it once, since programs are kept by its value.
GIVEN = os.environ.get("XLA_FLAGS", "").split()
os.environ["XLA_FLAGS"] = " ".join([*(f for f in FLAGS if f not in GIVEN), *GIVEN])
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests of the command line leave the user's own cache alone.
os.environ.setdefault("MIJAX_CACHE", "0")
# Variables and not `jax.config`, so that programs that tests start share the cache.
CACHE = Path(__file__).parent.parent / ".cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax
import jaxtyping
import pytest

# Packages whose annotations are checked with `MIJAX_TYPECHECK=1`.
CHECKED = (
    *("attribution", "causal", "circuits", "core", "data", "dictionaries", "editing"),
    *("features", "graphs", "interop", "io", "lens", "models", "nn", "probes"),
    *("steering", "testing", "train"),
)
if os.environ.get("MIJAX_TYPECHECK") == "1":
    jaxtyping.install_import_hook([f"mijax.{p}" for p in CHECKED], "beartype.beartype")

pytest_plugins = ["slowest"]

jax.config.update("jax_default_matmul_precision", "highest")

# Traces leave many small objects behind: collecting took 8 % of the processor time.
gc.set_threshold(50_000, 20, 20)

# Slowest tests, by the start of their names; `-m "not slow"` leaves them out.
SLOW = (
    "circuits/test_laws.py::test_bfloat16",
    "circuits/test_laws.py::test_every_method_runs_in_bfloat16",
    "circuits/test_laws.py::test_exact_scores",
    "circuits/test_laws.py::test_integrated_gradients_are_complete",
    "circuits/test_laws.py::test_order_of_prompts",
    "circuits/test_learned.py::test_optimal_ablation",
    "circuits/test_learned.py::test_the_circuit_is_found",
    "circuits/test_learned.py::test_the_mask_is_the_planted_circuit",
    "circuits/test_paths.py::test_paths_are_those_of_frozen_activations",
    "circuits/test_verify.py::test_verified_effects_are_exact",
    "core/test_compilation_cache.py",
    "core/test_laws.py::test_gradient",
    "core/test_sweep.py::test_every_metric",
    "core/test_sweep.py::test_memory_budget",
    "core/test_sweep.py::test_mesh",
    "dictionaries/test_strengths.py",
    "dictionaries/test_training.py",
    "experiment/test_distributed.py",
    "experiments/",
    "reliability/",
    "test_docs.py::test_python_blocks",
    "test_public_api.py::test_examples",
    "testing/test_planted.py",
    "testing/test_siit.py",
    "testing/test_tracr.py",
    "train/test_processes.py",
)
# The inner loop runs laws over the other kinds of models only.
KINDS = ("parallel", "attention_only", "attention only", "sandwich")
SLOW_MODELS = {*KINDS, "tiny_parallel", "tiny_attention_only"}


def pytest_collection_modifyitems(items):
    """Mark slow tests by these tables, so that they are listed in one place."""
    tests = f"{Path(__file__).parent.name}/"
    for item in items:
        values = getattr(item, "callspec", None)
        models = (
            {v for v in values.params.values() if isinstance(v, str)} if values else ()
        )
        slow = item.nodeid.removeprefix(tests).startswith(SLOW)
        if slow or SLOW_MODELS.intersection(models):
            item.add_marker(pytest.mark.slow)


MAPS = Path("/proc/self/maps")


def maps():
    """Number of memory maps of this process: compiled programs take several each."""
    return MAPS.read_bytes().count(b"\n") if MAPS.exists() else 0


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Drop compiled programs before a process has too many (`max_map_count`)."""
    yield
    if maps() > 8_000:
        jax.clear_caches()


@pytest.fixture
def no_programs():
    """Without programs of earlier tests, for tests that count traces."""
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
