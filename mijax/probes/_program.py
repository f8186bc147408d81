"""The one compiled program: every probe, fold and strength."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from mijax._progress import Progress
from mijax.probes._frame import Frame
from mijax.probes._probe import AbstractProbe, Data, Solved
from mijax.probes._solve import losses


class Batch(eqx.Module):
    """Examples to fit; `weight` is 0 for those that only fill up a mesh.

    Attributes:
        x: inputs `[chunk, lane, example, ...]`.
        y: class indices or values `[example]`.
        weight: of every example in the loss.
        folds: which examples are set aside, `[fold, example]`.
        x_held: held-out inputs `[chunk, lane, example, ...]`.
        y_held: their labels.
    """

    x: Any
    y: Array
    weight: Float[Array, " example"]
    folds: Float[Array, "fold example"]
    x_held: Any
    y_held: Array


class Fitted(NamedTuple):
    """Results of every probe.

    Attributes:
        params: parameters of the probe.
        frame: what inputs are standardised with.
        strength: the chosen one.
        selection: loss of every strength on the examples that were set aside.
        train: accuracy, or mean squared error.
        values: right or wrong `[example]`, or squared error.
        gradient: relative norm.
        steps: iterations.
    """

    params: Any
    frame: Frame
    strength: Float[Array, "*probe"]
    selection: Float[Array, "*probe strength"]
    train: Float[Array, "*probe"]
    values: Float[Array, "*probe example"]
    gradient: Float[Array, "*probe"]
    steps: Int[Array, "*probe"]


def fit_all(
    probe: AbstractProbe,
    batch: Batch,
    key: PRNGKeyArray,
    *,
    classes: int,
    progress: Progress = None,
) -> Fitted:
    """Fits every probe: chunks in turn, lanes of a chunk at once.

    Args:
        probe: the kind.
        batch: examples.
        key: for random starts, the same for all probes.
        classes: number of classes; 1 for values.
        progress: called with chunks done and their number.

    Returns:
        Results `[chunk, lane, ...]`.
    """
    chunks = jax.tree.leaves(batch.x)[0].shape[0]
    found = []
    for i in range(chunks):
        found.append(_fit_chunk(probe, batch, key, jnp.int32(i), classes))
        if progress:
            found[-1].steps.block_until_ready()
            progress(i + 1, chunks)
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *found)


@eqx.filter_jit
def _fit_chunk(
    probe: AbstractProbe,
    batch: Batch,
    key: PRNGKeyArray,
    chunk: Int[Array, ""],
    classes: int,
) -> Fitted:
    """Fit the lanes of one chunk at once."""

    def one(x: Any, x_held: Any) -> Fitted:
        return _fit_one(probe, x, x_held, batch, key, classes)

    inputs = jax.tree.map(lambda leaf: leaf[chunk], (batch.x, batch.x_held))
    with jax.default_matmul_precision("highest"):
        return jax.vmap(one)(*inputs)


def _fit_one(
    probe: AbstractProbe,
    x: Any,
    x_held: Any,
    batch: Batch,
    key: PRNGKeyArray,
    classes: int,
) -> Fitted:
    strengths = jnp.array(probe.strengths, jnp.float32)
    grid, aside = len(strengths), len(batch.folds) * len(strengths)
    weight = batch.weight / batch.weight.sum()
    # Standardized as unweighted examples, and measured on them.
    real = (batch.weight > 0) / (batch.weight > 0).sum()
    frame = probe.frame(x, real)
    data = Data(frame.enter(x), batch.y, weight, classes)

    def chosen(each: Array) -> tuple[Array, Array]:
        selection = each.reshape(-1, grid).mean(0)
        selection = jnp.where(jnp.isfinite(selection), selection, jnp.inf)
        return selection, strengths[jnp.argmin(selection)]

    def job(i: Array, state: tuple[Array, Any]) -> tuple[Array, Any]:
        before, _ = state
        fold = jnp.where(i < aside, batch.folds[jnp.minimum(i, aside - 1) // grid], 0.0)
        strength = jnp.where(i < aside, strengths[i % grid], chosen(before)[1])
        found = solve(probe, data, batch.weight * (1 - fold), strength, key)
        test = batch.weight * jnp.where(i < aside, fold, 1.0)
        loss = test @ example_losses(probe, found.params, data) / test.sum()
        return jnp.where(jnp.arange(aside) == i, loss, before), found

    # The fits that choose and the last one share one loop, so they compile once.
    begin = (jnp.zeros(aside), _empty(job, aside))
    each, solved = jax.lax.fori_loop(0 if grid > 1 else aside, aside + 1, job, begin)
    selection, strength = chosen(each)
    train = real @ _values(probe.outputs(solved.params, data.x), batch.y, classes)
    outputs = probe.outputs(solved.params, frame.enter(x_held))
    values = _values(outputs, batch.y_held, classes)
    return Fitted(
        params=solved.params,
        frame=frame,
        strength=strength,
        selection=selection if grid > 1 else jnp.full(1, jnp.nan),
        train=train,
        values=values,
        gradient=solved.gradient,
        steps=solved.steps,
    )


def _empty(job: Callable[..., Any], aside: int) -> Any:
    """Zeros in the shape of what a job finds."""
    shapes = jax.eval_shape(lambda: job(jnp.array(0), (jnp.zeros(aside), None))[1])
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def solve(
    probe: AbstractProbe,
    data: Data,
    weight: Float[Array, " example"],
    strength: Float[Array, ""],
    key: PRNGKeyArray,
) -> Solved:
    """Fits one probe to some examples.

    Args:
        probe: the kind.
        data: all examples, standardised.
        weight: of those to fit, in any unit.
        strength: of the regularisation.
        key: for random starts.

    Returns:
        The parameters.
    """
    inside = data._replace(weight=weight / weight.sum())
    return probe.solve(inside, strength, key)


def example_losses(
    probe: AbstractProbe, params: Any, data: Data
) -> Float[Array, " example"]:
    """Returns the cross-entropy in nats, or squared error, of every example.

    Args:
        probe: the kind.
        params: its parameters.
        data: examples, standardised.

    Returns:
        A loss per example.
    """
    outputs = probe.outputs(params, data.x)
    if data.classes == 1:
        return _values(outputs, data.y, 1)
    return losses(outputs, jax.nn.one_hot(data.y, data.classes))


def _values(
    outputs: Float[Array, "example output"], y: Array, classes: int
) -> Float[Array, " example"]:
    """True if each example is right, or its squared error."""
    if classes == 1:
        return (outputs[:, 0] - y) ** 2
    return (jnp.argmax(outputs, axis=-1) == y).astype(jnp.float32)


@eqx.filter_jit
def outputs_of(
    probe: AbstractProbe, params: Any, frame: Frame, x: Any
) -> Float[Array, "probe example output"]:
    """Returns outputs of every probe.

    Args:
        probe: the kind.
        params: `[probe, ...]`.
        frame: `[probe, feature]`.
        x: inputs `[probe, example, ...]`.

    Returns:
        Logits or values.
    """
    with jax.default_matmul_precision("highest"):
        return jax.vmap(lambda p, f, one: probe.outputs(p, f.enter(one)))(
            params, frame, x
        )
