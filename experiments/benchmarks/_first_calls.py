"""First and second calls of one verb in a fresh process; see `first_call.py`.

Prints one line of JSON: seconds of the import, of loading, and of two calls of a verb,
or of the whole of the README's example up to its picture.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import mijax
from mijax import circuits

TEXT = "When Mary and John went to the store, {} gave a drink to"


def main() -> None:
    """Times one verb."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("verb", choices=VERBS)
    parser.add_argument("--picture", help="where the picture goes, without a suffix")
    parser.add_argument("--grid", help="npy for the values of the sweep")
    parser.add_argument("--began", type=float, required=True, help="in Unix time")
    arguments = parser.parse_args()
    imported = time.time()
    # An older mijax has no cache of its own, but JAX reads the same folder.
    if os.environ.get("MIJAX_CACHE_DIR") and hasattr(mijax, "compilation_cache"):
        mijax.compilation_cache()
    loaded = mijax.models.load("smollm2-135m-instruct")
    found = {"import": imported - arguments.began, "load": time.time() - imported}
    call = VERBS[arguments.verb](loaded, arguments)
    for name in ("first", "second"):
        start = time.perf_counter()
        jax.block_until_ready(call())
        found[name] = time.perf_counter() - start
        found.setdefault("whole", time.time() - arguments.began)
    print(json.dumps({key: round(value, 3) for key, value in found.items()}))


def prompts(loaded: Any) -> tuple[list[int], list[int], Any]:
    """Returns the clean and the corrupt prompt of the README and its metric."""
    tokenizer = loaded.tokenizer
    pair = [tokenizer.encode(TEXT.format(name)) for name in ("John", "Mary")]
    ids = tokenizer.token(" Mary"), tokenizer.token(" John")
    return pair[0], pair[1], mijax.logit_difference(*ids)


def run(loaded: Any, arguments: Any) -> Callable[[], Any]:
    """Runs one prompt."""
    return lambda: mijax.run(loaded.model, prompts(loaded)[0])


def capture(loaded: Any, arguments: Any) -> Callable[[], Any]:
    """Captures the residual stream of one prompt."""
    clean, _, _ = prompts(loaded)
    return lambda: mijax.capture(loaded.model, clean, mijax.Site("resid_pre"))


def sweep(loaded: Any, arguments: Any) -> Callable[[], Any]:
    """Captures, then patches every layer and position."""
    clean, corrupt, metric = prompts(loaded)

    def call() -> Any:
        acts = mijax.capture(loaded.model, clean, mijax.Site("resid_pre"))
        patch = mijax.Patch(acts).at("resid_pre")
        over = ("layer", "position")
        return mijax.sweep(loaded.model, corrupt, patch, over=over, metric=metric)

    return call


def heatmap(loaded: Any, arguments: Any) -> Callable[[], Any]:
    """Runs the README's example, to its picture."""
    clean, corrupt, metric = prompts(loaded)
    swept = sweep(loaded, arguments)

    def call() -> None:
        grid = swept()
        clean_run = metric(mijax.run(loaded.model, clean))
        share = mijax.recovered(grid.values, clean_run, grid.base)
        labels = loaded.tokenizer.pieces(corrupt)
        picture = mijax.viz.heatmap(share, x_labels=labels)
        mijax.viz.save(picture, arguments.picture)
        if arguments.grid:
            np.save(arguments.grid, np.asarray(grid.values))

    return call


def generate(loaded: Any, arguments: Any) -> Callable[[], Any]:
    """Continues a prompt by 20 tokens."""
    clean, _, _ = prompts(loaded)
    return lambda: mijax.generate(loaded.model, clean, steps=20)


def gradients(loaded: Any, arguments: Any) -> Callable[[], Any]:
    """Computes gradients at the outputs of all heads."""
    clean, _, metric = prompts(loaded)
    return lambda: mijax.gradients(loaded.model, clean, metric, mijax.Site("z"))


def eap(loaded: Any, arguments: Any) -> Callable[[], Any]:
    """Scores all edges by EAP."""
    clean, corrupt, metric = prompts(loaded)
    given = [np.array([ids], np.int32) for ids in (clean, corrupt)]
    task = circuits.Task(*given, metric=metric)
    method = circuits.EAP()
    return lambda: circuits.discover(loaded.model, task, method).values


VERBS: dict[str, Callable[[Any, Any], Callable[[], Any]]] = {
    "run": run,
    "capture": capture,
    "sweep": sweep,
    "generate": generate,
    "gradients": gradients,
    "eap": eap,
    "heatmap": heatmap,
}

if __name__ == "__main__":
    main()
