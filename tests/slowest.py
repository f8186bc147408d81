"""Pytest plugin that prints the slowest test files and their costs.

Processor seconds are those of the process that runs the tests and of the processes that
it started. Compile, trace and lower seconds come from `jax.monitoring`, where nested
traces count more than once. Of the `programs`, `compiled` were not found on disk.
"""

import os
import time
from collections import Counter, defaultdict

import jax.monitoring
import pytest

FILES = 10
EVENTS = {
    "/jax/core/compile/backend_compile_duration": "compile",
    "/jax/core/compile/jaxpr_trace_duration": "trace",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lower",
}
COLUMNS = ("wall", "cpu", "compile", "trace", "lower", "programs", "compiled")


class Slowest:
    """Adds the costs of each phase of a test to its report, and sums them by file."""

    def __init__(self):
        self.now = Counter()
        self.files = defaultdict(Counter)
        jax.monitoring.register_event_duration_secs_listener(self.add)
        jax.monitoring.register_event_listener(self.count)

    def add(self, event, seconds, **_):
        column = EVENTS.get(event)
        if column is not None:
            self.now[column] += seconds
        if column == "compile":
            self.now["programs"] += 1
            self.now["compiled"] += 1

    def count(self, event, **_):
        if event == "/jax/compilation_cache/cache_hits":
            self.now["compiled"] -= 1

    def costs(self):
        clocks = {"wall": time.perf_counter(), "cpu": sum(os.times()[:4])}
        return Counter(self.now | clocks)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item):
        item.stash[BEFORE] = self.costs()
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item):
        report = yield
        after = self.costs()
        # Workers of xdist send attributes of reports on as JSON.
        report.costs = {k: after[k] - item.stash[BEFORE][k] for k in COLUMNS}
        item.stash[BEFORE] = after
        return report

    def pytest_runtest_logreport(self, report):
        self.files[report.location[0]].update(getattr(report, "costs", {}))

    def pytest_terminal_summary(self, terminalreporter):
        if not self.files:
            return
        self.files["all"] = sum(self.files.values(), Counter())
        slowest = sorted(self.files, key=lambda f: -self.files[f]["wall"])
        terminalreporter.section(f"{FILES} slowest files, seconds and counts")
        terminalreporter.write_line("".join(f"{c:>9}" for c in COLUMNS))
        for file in slowest[: FILES + 1]:
            cells = "".join(f"{self.files[file][c]:9.0f}" for c in COLUMNS)
            terminalreporter.write_line(f"{cells}  {file}")


BEFORE = pytest.StashKey[Counter]()


def pytest_configure(config):
    config.pluginmanager.register(Slowest())
