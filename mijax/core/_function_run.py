"""`run`, `capture` and `gradients` of a `FunctionModel`, on `harvest`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from mijax._errors import ShapeError, SiteError, quoted
from mijax.core._chunked import Chunked, filled
from mijax.core._edits import compose
from mijax.core._evaluate import At, Start
from mijax.core._function import FunctionModel, examples, traced_of
from mijax.core._harvest import harvest_parts
from mijax.core._resolve import axes_of, checked_index, resolved, size_of
from mijax.core._score import checked_scores, looks_of, scores
from mijax.core._site_table import SiteInfo, SiteTable, check_names, table
from mijax.core._sites import PerPrompt, Site, known
from mijax.core._spot import applied, spot_of
from mijax.core._trace import rebuild


class Door(eqx.Module):
    """Checked arguments of a verb.

    Attributes:
        fn: the function.
        inputs: one example, or a batch.
        edits: edits by site.
        batch: number of examples, `None` for one without a batch.
        sites: the sites of the model for such inputs.
        output: shape of the output for one example, if it is one array.
        prompts: which examples of a larger batch these are; all of one by default.
    """

    fn: Any
    inputs: Any
    edits: dict[str, Any]
    batch: int | None = eqx.field(static=True)
    sites: Any = eqx.field(static=True)
    output: tuple[int, ...] | None = eqx.field(static=True)
    prompts: Any = None

    def over(self, one: Any) -> Any:
        """Map `one(example, index)` over the batch, or call it for one example."""
        if self.batch is None:
            return one(self.inputs, None)
        prompts = self.prompts
        if prompts is None:
            prompts = jnp.arange(self.batch, dtype=jnp.int32)
        return jax.vmap(one)(self.inputs, prompts)


def opened_function(
    model: FunctionModel, inputs: Any, edits: Any, *, host: bool = False
) -> Door:
    """Check inputs and edits of a verb, and keep inputs on the host if asked to."""
    tree, batch, example = examples(model, inputs, host=host)
    traced = traced_of(model, example)
    sites, output = table(traced.marks), rebuild(traced, traced.output[0])
    edits = resolved(compose(edits), sites, batch)
    shape = getattr(output, "shape", None)
    return Door(model.fn, tree, edits, batch, sites, shape)


def over_examples(
    program: Any, args: tuple[Any, ...], model: FunctionModel, chunks: Chunked | None
) -> Any:
    """Call a program `(door, ...)` on all examples at once, or chunk by chunk."""
    if chunks is None:
        return program(*args)
    door, *rest = args
    if door.batch is None:
        raise ShapeError(
            "batch= goes through a batch of examples, got one: give every array one "
            "more axis in front, or leave out batch=."
        )
    leaves, structure = jax.tree.flatten(door.inputs)
    kinds = [kind for _, kind in model.ranks]

    def call(prompts: np.ndarray) -> Any:
        own = [
            leaf[prompts].astype(kind) for leaf, kind in zip(leaves, kinds, strict=True)
        ]
        tree, at = jax.device_put((jax.tree.unflatten(structure, own), prompts))
        own = dataclasses.replace(door, inputs=tree, batch=len(at), prompts=at)
        return program(own, *rest)

    return filled(call, door.batch, (program.__name__, args), chunks)


def run_function(
    model: FunctionModel, inputs: Any, edits: Any, chunks: Chunked | None
) -> Any:
    """See `mijax.run`."""
    door = opened_function(model, inputs, edits, host=chunks is not None)
    return over_examples(_run, (door,), model, chunks)


@eqx.filter_jit
def _run(door: Door) -> Any:
    def one(example: Any, prompt: Any) -> Any:
        edits = applied(door.edits, door.sites, prompt)
        return harvest_parts(door.fn, (), edits, {})(example)[0]

    return door.over(one)


def capture_function(
    model: FunctionModel, inputs: Any, sites: Any, edits: Any, chunks: Chunked | None
) -> Any:
    """See `mijax.capture`."""
    door = opened_function(model, inputs, edits, host=chunks is not None)
    args = (door, checked_sites(sites, door))
    return over_examples(_capture, args, model, chunks)


def checked_sites(sites: Any, door: Door) -> Any:
    """Return a tree of sites with indices as arrays; a name is its whole site.

    Raises:
        SiteError: a site, axis or index that the model does not have.
    """

    def one(site: Any) -> Site:
        site = Site(site) if isinstance(site, str) else site
        if not isinstance(site, Site):
            raise SiteError(f"Give sites, for instance Site('z'), got {quoted(site)}.")
        check_names([site.name], door.sites)
        info = door.sites[site.name]
        layer, found = site.layer, {}
        if layer is not None:
            if isinstance(layer, PerPrompt):
                raise SiteError("A captured layer is the same for every example.")
            size = info.layers or 0
            layer = checked_index("layer", layer, size, info, door.batch)
        for axis, given in axes_of(site, info).items():
            size = size_of(info, axis)
            index = checked_index(axis, given, size, info, door.batch)
            found[axis] = _data(index, axis, info)
        if layer is not None and info.scanned:
            layer = jnp.asarray(layer)
        # Under other names than a Site's own, so that all axes are treated alike.
        return Site(
            site.name, layer, **{f"axis_{axis}": i for axis, i in found.items()}
        )

    return jax.tree.map(one, sites, is_leaf=is_site)


def is_site(node: Any) -> bool:
    """Return True at a site in a tree."""
    return isinstance(node, Site | str)


def _data(index: Any, axis: str, info: SiteInfo) -> Any:
    """Return an index as data, a slice as the indices in it."""
    if isinstance(index, slice):
        if info.ragged and index.stop is None:
            raise SiteError(
                f"Layers of site {info.name!r} have different sizes of axis {axis!r}: "
                "give the slice an end."
            )
        return jnp.arange(size_of(info, axis))[index]
    return (
        PerPrompt(index.values) if isinstance(index, PerPrompt) else jnp.asarray(index)
    )


@eqx.filter_jit
def _capture(door: Door, sites: Any) -> Any:
    flat, structure = jax.tree.flatten(sites, is_leaf=is_site)

    def one(example: Any, prompt: Any) -> Any:
        edits = applied(door.edits, door.sites, prompt)
        return run_reading(door, flat, edits, example, prompt)[1]

    return jax.tree.unflatten(structure, door.over(one))


def run_reading(
    door: Door,
    sites: list[Site],
    edits: Any,
    example: Any,
    prompt: Any,
    start: Start | None = None,
) -> tuple[Any, list[Any]]:
    """Run one example, and return its output and the parts of its activations.

    Args:
        door: the model.
        sites: checked sites, the parts to keep.
        edits: functions that `harvest` applies.
        example: the example.
        prompt: which one of the batch it is.
        start: layer from which a scan runs.
    """
    names = list(dict.fromkeys(site.name for site in sites))
    parts = {name: _parts(name, sites, door.sites[name], prompt) for name in names}
    output, acts = harvest_parts(door.fn, names, edits, parts, start)(example)
    count = dict.fromkeys(names, 0)
    found = []
    for site in sites:
        value = acts[site.name][count[site.name]]
        count[site.name] += 1
        found.append(after_loops(value, site, door.sites[site.name], prompt))
    return output, found


def measured(
    door: Door,
    metrics: Any,
    edits: Any,
    example: Any,
    prompt: Any,
    start: Start | None = None,
) -> Any:
    """Run one example and return its metric, or each of several by name."""
    sites = [look.site for look in looks_of(metrics)]
    output, seen = run_reading(door, sites, edits, example, prompt, start)
    return scores(metrics, output, example, prompt, tuple(seen))


def checked_metrics(metrics: Any, door: Door) -> Any:
    """Return metrics that fit the outputs, with the indices of their sites as arrays.

    Raises:
        ShapeError: no metric, or operands for other examples or classes.
        PositionError: a position that the output does not have.
        SiteError: a site, axis or index that the model does not have.
    """
    if isinstance(metrics, Mapping):
        return {name: checked_metrics(one, door) for name, one in metrics.items()}
    metrics = checked_scores(metrics, door.output, door.batch)
    if not looks_of(metrics):
        return metrics
    site = checked_sites(metrics.site, door)
    return eqx.tree_at(lambda m: m.site, metrics, site, is_leaf=is_site)


def _parts(name: str, sites: list[Site], info: SiteInfo, prompt: Any) -> Any:
    """Return the function that selects each site's part of a value."""
    own = [site for site in sites if site.name == name]

    def parts(value: Array, at: At) -> list[Array]:
        spot = spot_of(at, info, prompt)
        return [select(value, site, spot.axes, prompt) for site in own]

    return parts


def select(value: Array, site: Site, axes: tuple[str, ...], prompt: Any) -> Array:
    """Select indices on the axes of a value; an integer drops its axis."""
    given = site.axes or {}
    # From the last axis on, so that a dropped axis does not move the others.
    for i in reversed(range(len(axes))):
        index = given.get(f"axis_{axes[i]}")
        if index is None:
            continue
        if isinstance(index, PerPrompt):
            index = index.values[0 if prompt is None else prompt]
        at = value.ndim - len(axes) + i
        value = jnp.take(value, jnp.asarray(index), axis=at)
        axes = axes if jnp.ndim(index) else (*axes[:i], *axes[i + 1 :])
    return value


def after_loops(value: Any, site: Site, info: SiteInfo, prompt: Any) -> Any:
    """Select the layer and indices on loops from stacked parts."""
    if site.layer is not None:
        if isinstance(value, tuple):
            at = np.asarray(known(site.layer))
            found = [value[i] for i in at.reshape(-1)]
            same = len({one.shape for one in found}) == 1
            value = jnp.stack(found) if same and at.ndim else tuple(found)
            value = value if at.ndim else found[0]
        else:
            value = jnp.take(value, jnp.asarray(site.layer), axis=0)
    loops = info.axes[: info.loops]
    if not loops:
        return value
    layered = info.layers is not None and (site.layer is None or jnp.ndim(site.layer))

    def pick(array: Array) -> Array:
        # The axes of a value count as one here.
        flat = array.reshape(*array.shape[: len(loops)], -1)
        return select(flat, site, (*loops, ""), prompt)

    def one(array: Array, lead: int) -> Array:
        first, rest = array.shape[:lead], array.shape[lead + len(loops) :]
        picked = jax.vmap(pick)(array.reshape(-1, *array.shape[lead:]))
        return picked.reshape(*first, *picked.shape[1:-1], *rest)

    if isinstance(value, tuple):
        return tuple(one(part, 0) for part in value)
    return one(value, int(bool(layered)))


def gradients_function(
    model: FunctionModel,
    inputs: Any,
    metric: Any,
    sites: Any,
    edits: Any,
    chunks: Chunked | None,
) -> Any:
    """See `mijax.gradients`."""
    door = opened_function(model, inputs, edits, host=chunks is not None)
    metric = checked_metrics(metric, door)
    args = (door, metric, checked_sites(sites, door))
    return over_examples(_gradients, args, model, chunks)


@eqx.filter_jit
def _gradients(door: Door, metric: Any, sites: Any) -> Any:
    flat, structure = jax.tree.flatten(sites, is_leaf=is_site)
    names = list(dict.fromkeys(site.name for site in flat))

    def one(example: Any, prompt: Any) -> Any:
        before = applied(door.edits, door.sites, prompt)

        def value(shifts: dict[str, Any]) -> Array:
            def shifted(name: str) -> Any:
                def edit(x: Array, at: At) -> Array:
                    x = before[name](x, at) if name in before else x
                    return x + spot_of(at, door.sites[name], prompt).part(
                        shifts[name], x.ndim
                    )

                return edit

            edits = before | {name: shifted(name) for name in names}
            return measured(door, metric, edits, example, prompt)

        grads = jax.grad(value)({name: _zeros(door.sites[name]) for name in names})
        return [_of(grads[s.name], s, door.sites[s.name], prompt) for s in flat]

    return jax.tree.unflatten(structure, door.over(one))


def _zeros(info: SiteInfo) -> Any:
    """Return zeros in the shape of a whole site's activations."""
    if info.ragged:
        return tuple(jnp.zeros(shape, info.dtype) for shape in info.shapes)
    layers = () if info.layers is None else (info.layers,)
    return jnp.zeros((*layers, *info.shapes[0]), info.dtype)


def _of(grad: Any, site: Site, info: SiteInfo, prompt: Any) -> Any:
    """Select what a site asks for from the gradient at the whole site."""

    def part(value: Array) -> Array:
        return select(value, site, info.axes[info.loops :], prompt)

    return after_loops(jax.tree.map(part, grad), site, info, prompt)


def site_table_of(model: FunctionModel, inputs: Any) -> SiteTable:
    """Return the sites for one example of some inputs."""
    return table(traced_of(model, examples(model, inputs)[2]).marks)
