"""Call public verbs with malformed arguments; each call ends in a documented error.

    python tests/reliability/fuzz_verbs.py --calls 3000 --seed 1

A call takes a valid one and replaces one or two of its arguments. It may return, raise
a `MijaxError` of one line, or raise a `TypeError` or `ValueError` from a line of mijax.
An error raised inside another library is a failure, and so is one of several lines.
"""

import argparse
import collections
import functools
import json
import random
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import mijax
from mijax import attribution, causal, circuits, lens, probes
from mijax.data import Prompts

PACKAGE = str(Path(mijax.__file__).parent)
SLOW = ("sweep", "sweep(position)", "generate", "align", "iia", "agreement")
SLOW += ("discover", "evaluate", "run_circuits", "path_patch", "probes.fit")
SLOW += ("attribute", "gradients", "Counterfactuals", "direct")


class Verb(NamedTuple):
    """A public function and arguments that it takes."""

    name: str
    call: Callable[..., Any]
    given: dict[str, Any]


@functools.cache
def verbs() -> list[Verb]:
    """Return every verb with valid arguments, on one model and one shape of prompts."""
    model = mijax.testing.tiny_gpt2(jax.random.key(0))
    tokens = jnp.array([[5, 9, 2, 7], [5, 8, 2, 7]])
    other = jnp.array([[5, 3, 2, 7], [5, 4, 2, 7]])
    prompts = Prompts.from_ids([[5, 9, 2, 7], [5, 8, 2]])
    metric = mijax.logit_difference(10, 20)
    site, key = mijax.Site("z", layer=1), jax.random.key(1)
    edit = mijax.Zero().at("z", layer=1, head=2)
    acts = mijax.capture(model, other, mijax.Site("resid_pre"))
    run = {"model": model, "tokens": tokens, "edits": edit}
    place = {"layer": 1, "position": 2, "head": 0, "feature": 3}
    logits = mijax.run(model, tokens)
    task = circuits.Task(tokens, other, metric=metric)
    graph = circuits.Graph.of(model)
    scores = circuits.discover(model, task, circuits.EAP())
    circuit = circuits.top(scores, 5)
    on_task = {"model": model, "task": task}
    subspaces, on = causal.blocks(32, (32,)), jnp.ones((2, 1), bool)
    at = mijax.Site("resid_post", layer=1, position=2)
    data = causal.Counterfactuals(tokens, other[:, None], on, jnp.array([3, 4]), 4)
    stated = causal.stated(subspaces, at)
    source = causal.Drawn(lambda _: jax.tree.map(lambda x: x[0], data), batch=2)
    x = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    y = (x[:, 0] > 0).astype(int)
    direct = {"answer": 3, "wrong": 4, "position": jnp.array([3, 3])}
    found = {"values": jnp.ones((3, 2)), "level": 0.9, "resamples": 50, "key": key}
    fit = {"x_train": x, "y_train": y, "x_held_out": x, "y_held_out": y, "folds": 1}
    searches = [causal.Search(causal.DAS((4,)), at)]
    learn = {"models": model, "searches": searches, "source": source, "steps": 1}
    swap = {"base": tokens, "sources": other[:, None], "swapped": on, "lengths": 4}
    both = {"position": None, "answer": [3, 4]}
    ids = {"ids": [[3, 4], [5, 6]], "spans": {"name": [(0, 1), (1, 2)]}, "pad": 0}
    shown = {"model": model, "tokens": prompts, "position": prompts.last, "top": 2}

    def placed(kind: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that makes an edit, places it and runs it."""

        def made(value: Any, site: Any = "resid_pre", **place: Any) -> Any:
            return mijax.run(model, tokens, kind(value).at(site, **place))

        return made

    here = {"site": "resid_pre", "layer": 1}
    return [
        Verb("run", mijax.run, run),
        Verb("run(Prompts)", mijax.run, run | {"tokens": prompts}),
        Verb("capture", mijax.capture, run | {"sites": {"a": site}}),
        Verb("gradients", mijax.gradients, run | {"sites": site, "metric": metric}),
        Verb(
            "generate",
            mijax.generate,
            run | {"steps": 2, "lengths": [4, 3], "key": key, "stop": 3},
        ),
        Verb(
            "sweep",
            mijax.sweep,
            {"model": model, "tokens": tokens, "metric": metric}
            | {"edit": mijax.Zero().at("z"), "over": {"layer": [0, 1], "head": [0]}}
            | {"progress": None, "chunks": None},
        ),
        Verb(
            "sweep(position)",
            mijax.sweep,
            {
                "model": model,
                "tokens": prompts,
                "metric": mijax.probability(3, position=prompts.last),
            }
            | {
                "edit": mijax.Patch(acts).at("resid_pre"),
                "over": {"position": ["last", 1]},
            },
        ),
        Verb("Site", mijax.Site, {"name": "z"} | place),
        Verb("at", mijax.Zero().at, {"site": "z"} | place),
        Verb("PerPrompt", mijax.PerPrompt, {"values": [1, 2]}),
        Verb("Set", placed(mijax.Set), {"value": jnp.ones(32)} | here),
        Verb("Add", placed(mijax.Add), {"value": jnp.ones(32)} | here),
        Verb("Scale", placed(mijax.Scale), {"value": 2.0} | here),
        Verb("Noise", placed(mijax.Noise), {"value": key} | here),
        Verb("Project", placed(mijax.Project), {"value": jnp.ones(32)} | here),
        Verb("Patch", placed(mijax.Patch), {"value": acts} | here),
        Verb("Mean", placed(mijax.Mean), {"value": acts} | here),
        Verb("compose", lambda given: mijax.compose(given, edit), {"given": [edit]}),
        Verb("logit_difference", mijax.logit_difference, both | {"wrong": 4}),
        Verb("probability", mijax.probability, both),
        Verb("accuracy", mijax.accuracy, both),
        Verb("cross_entropy", mijax.cross_entropy, {"labels": [3, 4], "position": 2}),
        Verb(
            "probability_difference",
            mijax.probability_difference,
            {"answers": [[3, -1]], "wrong": 4, "position": 2},
        ),
        Verb("kl", mijax.kl, {"reference_logits": logits, "position": 2}),
        Verb("l2", mijax.l2, {"reference_logits": logits, "position": 2}),
        Verb("negative", mijax.negative, {"metric": metric}),
        Verb("metric(logits)", metric, {"logits": logits}),
        Verb("recovered", mijax.recovered, {"value": 1.0, "clean": 2, "corrupt": 0}),
        Verb("interval", mijax.interval, found),
        Verb("Prompts.from_ids", Prompts.from_ids, ids),
        Verb(
            "attribute",
            attribution.attribute,
            {"model": model, "clean": tokens, "corrupt": other, "metric": metric}
            | {"sites": site, "method": attribution.AtP()},
        ),
        Verb(
            "Task", circuits.Task, {"clean": tokens, "corrupt": other, "metric": metric}
        ),
        Verb(
            "discover",
            circuits.discover,
            on_task | {"method": circuits.EAP(), "graph": graph},
        ),
        Verb(
            "evaluate",
            circuits.evaluate,
            on_task | {"scores": scores, "fractions": [0.1]},
        ),
        Verb("run_circuits", circuits.run_circuits, on_task | {"circuits": circuit}),
        Verb(
            "path_patch",
            circuits.path_patch,
            on_task | {"receivers": "logits", "senders": ["a0.h1"]},
        ),
        Verb("top", circuits.top, {"scores": scores, "n": 4}),
        Verb("threshold", circuits.threshold, {"scores": scores, "at": 0.1}),
        Verb("Graph.of", circuits.Graph.of, {"model": model}),
        Verb("logit_lens", lens.logit_lens, shown),
        Verb("direct", lens.direct_logit_attribution, run | direct),
        Verb("composition", lens.composition, {"model": model}),
        Verb("ov_eigenvalues", lens.ov_eigenvalues, {"model": model}),
        Verb(
            "Counterfactuals",
            lambda **given: causal.agreement(
                model, stated, causal.Counterfactuals(**given)
            ),
            swap | {"label": jnp.array([3, 4])},
        ),
        Verb(
            "agreement",
            causal.agreement,
            {"models": model, "alignment": stated, "data": data},
        ),
        Verb("iia", causal.iia, {"models": model, "alignment": stated, "data": data}),
        Verb("align", causal.align, learn),
        Verb("blocks", causal.blocks, {"width": 4, "sizes": (2, 2)}),
        Verb("stated", causal.stated, {"subspaces": subspaces, "site": at, "task": 0}),
        Verb("probes.fit", probes.fit, {"probe": probes.Ridge()} | fit),
    ]


def values() -> list[Any]:
    """Return values that are wrong for most arguments."""
    return [
        *(None, True, False, np.True_, 0, 1, -1, 7, 10**6, 2**31, 2**40, -(2**40)),
        *(np.int64(2**32), np.int64(2**32 + 1), 0.5, -0.5, float("nan"), float("inf")),
        *(1 + 2j, "", "z", "resid_pre", "nothing", "last", b"z", object(), Ellipsis),
        *([], [[]], [0], [1, 2], [1, 2, 3], [[0, 1], [2, 3]], [[0], [1, 2]], [None]),
        *(["a", "b"], [True, False], [1.5, 2.5], [2**40, 1], (), (1, 2), {}, {"a": 1}),
        *(
            {1, 2},
            range(3),
            range(0),
            slice(0, 2),
            slice(-1, None),
            slice(None, None, 2),
        ),
        *({"layer": 3}, {"layer": [[0, 1]]}, {"head": "a"}, {"position": [[9, 9]]}),
        *({"layer": None, "nothing": None}, ("layer", "layer"), {"feature": [0, 99]}),
        *(np.zeros(0), np.zeros(3), np.zeros((2, 4)), np.ones((2, 4), bool)),
        *(np.full((2, 4), np.nan), np.zeros((2, 2, 2, 2, 2, 2)), np.array("text")),
        *(np.array([object()]), np.full((2, 4), 2**40), np.array([1, 2], np.uint8)),
        *(jnp.zeros((2, 4, 64)), jnp.ones((2, 4), int), jnp.ones(32, complex)),
        *(jnp.ones((3, 4), int), jnp.zeros((), int), jnp.full((2, 4), -1)),
        *(jnp.full((2, 3, 4, 32), jnp.nan), jnp.ones((2, 3, 4, 32), jnp.bfloat16)),
        *(jax.random.key(0), jax.random.split(jax.random.key(0), 2), lambda *_: None),
        *(
            int,
            ValueError,
            mijax.Zero(),
            mijax.Zero().at("z"),
            mijax.Scale(2.0).at("embed"),
        ),
        *([mijax.Zero().at("z"), mijax.Zero().at("mlp_out")], mijax.Site("embed")),
        *(mijax.Site("z", layer=99), mijax.Site("scores"), mijax.PerPrompt([0, 1])),
        *(mijax.PerPrompt([0, 1, 2]), mijax.logit_difference([3, 4, 5], 6)),
        *(mijax.probability(3, position=9), mijax.accuracy(99), mijax.core.Chunks(-1)),
        *(
            mijax.core.Chunks("1"),
            Prompts.from_ids([[1, 2], [3]]),
            Prompts.from_ids([[1]]),
        ),
        *(np.datetime64("2020-01-01"), np.array(["a"]), iter([1, 2]), Path("none")),
    ]


def failure(verb: Verb, given: dict[str, Any]) -> str | None:
    """Call a verb and return a description of a failure, `None` for a fair end."""
    try:
        jax.block_until_ready(verb.call(**given))
    except mijax.MijaxError as error:
        if "\n" in str(error):
            return f"several lines: {str(error)[:200]!r}"
        return None
    except Exception as error:  # every other kind is judged by where it was raised
        last = traceback.extract_tb(error.__traceback__)[-1]
        ours = last.filename.startswith(PACKAGE) and "raise" in (last.line or "")
        if isinstance(error, TypeError | ValueError) and ours:
            return None
        near = [
            f
            for f in traceback.extract_tb(error.__traceback__)
            if PACKAGE in f.filename
        ]
        place = f"{Path(near[-1].filename).name}:{near[-1].lineno}" if near else "?"
        text = " ".join(str(error).split())[:100]
        return f"{type(error).__name__} at {place}: {text}"
    return None


def fuzz(calls: int, seed: int, *, slow: bool = True) -> dict[str, Any]:
    """Make calls and return their number and the failures by verb.

    Args:
        calls: number of calls.
        seed: seed of the draws.
        slow: also call the verbs that compile large programs.
    """
    draw = random.Random(seed)
    pool, failures, ends = values(), collections.Counter(), collections.Counter()
    every = [verb for verb in verbs() if slow or verb.name not in SLOW]
    for _ in range(calls):
        verb = draw.choice(every)
        names = draw.sample(
            sorted(verb.given), min(len(verb.given), draw.choice([1, 1, 2]))
        )
        given = verb.given | {name: draw.choice(pool) for name in names}
        found = failure(verb, given)
        ends["failed" if found else "fair"] += 1
        if found:
            changed = {name: f"{given[name]!r:.50}" for name in names}
            failures[f"{verb.name} {changed}: {found}"] += 1
    return {"calls": calls, "seed": seed, **ends, "failures": failures}


def main() -> int:
    """Run the long form and print what failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    found = fuzz(options.calls, options.seed)
    for text, count in sorted(found.pop("failures").items()):
        print(f"{count} x {text}")
    print(json.dumps(found))
    return 1 if found.get("failed") else 0


if __name__ == "__main__":
    sys.exit(main())
