"""Compile methods for large models on simulated devices, without any weights.

For a Llama of 70 or 405 billion weights on a mesh of 64 or 256 devices: a
chunk of a patching sweep (layer x position, `resid_pre`), edge attribution patching of
one prompt, and an update of a dictionary on the residual stream. The compiler reports
what each device holds and needs, how much it computes, and which collectives it runs.

    python experiments/benchmarks/scaling.py --model llama-3-70b --data 8 --model-axis 8
    python experiments/benchmarks/scaling.py --model tiny --data 2 --model-axis 2

The numbers come from the CPU backend's compiler: sizes of arguments and of temporaries,
not times. It computes in float32 only, and would copy weights in bfloat16 to float32,
so weights are float32 here, and bfloat16 halves what the table says. FLOPs are those
of the products in the jaxpr, divided by the devices: XLA counts a loop once.
"""

import argparse
import json
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import mijax
from mijax import circuits, models, train
from mijax import dictionaries as d
from mijax.core._chunk import Tile, run_base, run_chunks_on
from mijax.core._mark import bodies, manual
from mijax.models._families import family_of
from mijax.train._shard import is_spec, layout
from mijax.train._update import apply, start

SPECS = {
    # Layers, embed, heads, kv heads, head_dim, mlp, vocab: Llama 3 (arXiv:2407.21783).
    "tiny": (2, 32, 4, 2, 8, 64, 64),
    "llama-3-70b": (80, 8192, 64, 8, 128, 28672, 128256),
    "llama-3-405b": (126, 16384, 128, 8, 128, 53248, 128256),
}
KINDS = r"\b(all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)\("


def main() -> None:
    """Compile what is asked for and print one line of JSON for each."""
    parser = argparse.ArgumentParser(
        description="Compile methods for large models, without weights."
    )
    parser.add_argument("--model", choices=SPECS, default="tiny")
    parser.add_argument("--data", type=int, default=2, help="devices along `data`")
    parser.add_argument("--model-axis", type=int, default=2, help="along `model`")
    parser.add_argument("--seq", type=int, default=64, help="tokens of a prompt")
    parser.add_argument("--lanes", type=int, default=16, help="lanes of a chunk")
    parser.add_argument("--latents", type=int, default=2**17)
    parser.add_argument("--batch", type=int, default=8192, help="rows of an update")
    parser.add_argument("--only", nargs="*", default=["sweep", "eap", "sae"])
    given = parser.parse_args()
    devices = given.data * given.model_axis
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
    for name in given.only:
        for label, lowered in PROGRAMS[name](given):
            row = {"model": given.model, "devices": devices, "program": label}
            row["tflop"] = round(lowered.flops / lowered.devices / 1e12, 3)
            print(json.dumps(row | compiled(lowered.program)), flush=True)


def compiled(lowered: Any) -> dict[str, Any]:
    """Compile a program; return what a device holds, needs and computes."""
    start = time.perf_counter()
    program = lowered.compile()
    seconds = time.perf_counter() - start
    needs = program.memory_analysis()
    text = program.as_text()
    return {
        "held_gb": round(needs.argument_size_in_bytes / 1e9, 2),
        "work_gb": round(needs.temp_size_in_bytes / 1e9, 2),
        "collectives": dict(Counter(re.findall(KINDS, text))),
        "compile_s": round(seconds, 1),
    }


def setting(given: argparse.Namespace) -> tuple[Any, Any]:
    """Return the mesh and the model, whose arrays are shapes with their places."""
    mesh = train.mesh(data=given.data, model=given.model_axis)
    layers, embed, heads, kv, head_dim, mlp, vocab = SPECS[given.model]
    spec = models.LlamaSpec(
        layers, embed, heads, kv, head_dim, mlp, vocab, 8192, tied=False
    )
    skeleton = family_of(spec).skeleton(spec, jnp.float32)
    sharding = models.Sharding()

    def place(path: Any, leaf: Any) -> Any:
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        split = NamedSharding(mesh, sharding.of(name, leaf.shape, mesh))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=split)

    return mesh, jax.tree_util.tree_map_with_path(place, skeleton)


def lower(fn: Callable[..., Any], *args: Any, devices: int) -> Any:
    """Lower a function of trees that hold shapes as well as other leaves."""

    def is_shape(leaf):
        return isinstance(leaf, jax.ShapeDtypeStruct) or eqx.is_array(leaf)

    shapes, static = eqx.partition(args, is_shape)

    def run(arrays):
        return eqx.filter(fn(*eqx.combine(arrays, static)), eqx.is_array)

    layers = next((a.n_layers for a in args if hasattr(a, "n_layers")), 1)
    traced = jax.jit(run).trace(shapes)
    flops = products(traced.jaxpr.jaxpr, layers)
    return Lowered(traced.lower(), flops, devices)


class Lowered(NamedTuple):
    """A lowered program, the FLOPs of its products, and how many devices share them."""

    program: Any
    flops: float
    devices: int


def products(jaxpr: Any, layers: int) -> float:
    """Count the FLOPs of all products.

    A loop of unknown length runs every layer, and one inside of it (over tiles) once.
    """
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (inner, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            out = math.prod(equation.outvars[0].aval.shape)
            total += 2 * out * math.prod(left[axis] for axis in inner)
        times = equation.params.get("length", 1)
        loop = equation.primitive.name == "while"
        times = layers if loop else times
        if equation.primitive.name == "shard_map":
            # The body runs once for each device along these axes.
            shape = equation.params["mesh"].shape
            times *= math.prod(shape[axis] for axis in manual(equation))
        for _, body in bodies(equation):
            total += times * products(body.jaxpr, 1 if loop else layers)
    return total


Programs = Iterator[tuple[str, Any]]


def sweep(given: argparse.Namespace) -> Programs:
    """The unedited run, and one chunk of lanes for each group of devices."""
    mesh, model = setting(given)
    metric = mijax.logit_difference(5, 6)
    everywhere = NamedSharding(mesh, P())
    tokens = jax.ShapeDtypeStruct((1, given.seq), jnp.int32, sharding=everywhere)

    def base(model, tokens):
        return run_base(model, tokens, "resid_pre", metric)

    yield "unedited run", lower(base, model, tokens, devices=given.model_axis)

    found = eqx.filter_eval_shape(base, model, tokens)
    held = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=everywhere), found
    )
    acts = jax.ShapeDtypeStruct(
        (1, *found.site.shape[:1], *found.site.shape[2:]), jnp.float32
    )
    groups, lanes = given.data, given.lanes
    rows = lanes * given.seq
    split = NamedSharding(mesh, P("data"))

    def ints(*shape):
        return jax.ShapeDtypeStruct((groups, 1, *shape), jnp.int32, sharding=split)

    each = {"layer": ints(lanes), "start": ints(lanes)}
    tiles = Tile(
        ints(),
        ints(lanes),
        ints(lanes),
        ints(lanes),
        ints(rows),
        ints(rows),
        each,
        given.seq,
    )

    def chunk(model: Any, source: Any, base: Any, tiles: Any) -> Any:
        placed = mijax.Patch(source).at("resid_pre").blocks.resid_pre
        shared = (model, metric, placed, base)
        return run_chunks_on(mesh, ("data",), shared, tiles)

    yield (
        f"sweep, {groups * lanes} lanes",
        lower(chunk, model, acts, held, tiles, devices=mesh.size),
    )


def eap(given: argparse.Namespace) -> Programs:
    """Scores of all edges for one prompt."""
    _, model = setting(given)
    metric = mijax.logit_difference(5, 6)
    tokens = jax.ShapeDtypeStruct((1, given.seq), jnp.int32)

    def scores(model: Any, clean: Any, corrupt: Any) -> Any:
        task = circuits.Task(clean, corrupt, metric=metric)
        graph = circuits.Graph.of(model)
        return circuits.EAP().attribute(model, graph, task, jnp.int32(0))

    yield (
        "EAP, one prompt",
        lower(scores, model, tokens, tokens, devices=given.model_axis),
    )


def sae(given: argparse.Namespace) -> Programs:
    """One update of a TopK dictionary."""
    mesh = train.mesh(data=given.data, model=given.model_axis)
    embed = SPECS[given.model][1]
    training = d.Training(d.TopK(32), d.SAE(embed), latents=given.latents, steps=10)
    shapes = eqx.filter_eval_shape(lambda: start(training, False, None))
    state = (shapes[0], shapes[2], shapes[1])

    def put(spec, leaf):
        return jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec)
        )

    specs = layout(state, training, several=False)
    params, optimizer, memory = jax.tree.map(put, specs, state, is_leaf=is_spec)
    rows = np.zeros((2, embed), np.float32)
    batch = mijax.data.Examples(rows, batch=2)
    _, batch = batch.batch(batch.start())
    batch = jax.tree.map(
        lambda a: put(P("data"), jax.ShapeDtypeStruct((given.batch, embed), a.dtype)),
        batch,
    )
    index = jax.ShapeDtypeStruct((), jnp.int32)

    def update(params: Any, memory: Any, optimizer: Any, index: Any, batch: Any) -> Any:
        return apply(training, (params, memory, optimizer, index), batch, False, mesh)

    label = f"SAE, {given.latents} latents, {given.batch} rows"
    yield (
        label,
        lower(update, params, memory, optimizer, index, batch, devices=mesh.size),
    )


PROGRAMS = {"sweep": sweep, "eap": eap, "sae": sae}

if __name__ == "__main__":
    main()
