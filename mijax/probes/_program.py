"""The one compiled program: every probe, fold and strength."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from mijax.probes._frame import Frame
from mijax.probes._probe import AbstractProbe, Data
from mijax.probes._solve import losses


class Batch(eqx.Module):
    """What is fitted; `weight` is 0 for examples that only fill up a mesh.

    Attributes:
        x: inputs `[chunk, lane, example, ...]`.
        y: class indices or values `[example]`.
        weight: 1 for every real example.
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


@eqx.filter_jit
def fit_all(
    probe: AbstractProbe, batch: Batch, key: PRNGKeyArray, *, classes: int
) -> Fitted:
    """Fits every probe: chunks in turn, lanes of a chunk at once.

    Args:
        probe: the kind.
        batch: examples.
        key: for random starts, the same for all probes.
        classes: number of classes; 1 for values.

    Returns:
        Results `[chunk, lane, ...]`.
    """

    def one(x: Any, x_held: Any) -> Fitted:
        return _fit_one(probe, x, x_held, batch, key, classes)

    with jax.default_matmul_precision("highest"):
        return jax.lax.map(lambda c: jax.vmap(one)(*c), (batch.x, batch.x_held))


def _fit_one(
    probe: AbstractProbe,
    x: Any,
    x_held: Any,
    batch: Batch,
    key: PRNGKeyArray,
    classes: int,
) -> Fitted:
    strengths = jnp.array(probe.strengths, jnp.float32)
    if len(strengths) == 1:
        selection, strength = jnp.full(1, jnp.nan), strengths[0]
    else:

        def aside(fold: Array) -> Array:
            return grid_losses(
                *(probe, x, batch.y, key),
                weight=batch.weight * (1 - fold),
                test=batch.weight * fold,
                classes=classes,
            )

        selection = jax.lax.map(aside, batch.folds).mean(0)
        selection = jnp.where(jnp.isfinite(selection), selection, jnp.inf)
        strength = strengths[jnp.argmin(selection)]
    weight = batch.weight / batch.weight.sum()
    frame = probe.frame(x, weight)
    inside = frame.enter(x)
    solved = probe.solve(Data(inside, batch.y, weight, classes), strength, key)
    train = weight @ _values(probe.outputs(solved.params, inside), batch.y, classes)
    outputs = probe.outputs(solved.params, frame.enter(x_held))
    values = _values(outputs, batch.y_held, classes)
    return Fitted(
        *(solved.params, frame, strength, selection, train, values),
        *(solved.gradient, solved.steps),
    )


def grid_losses(
    probe: AbstractProbe,
    x: Any,
    y: Array,
    key: PRNGKeyArray,
    *,
    weight: Float[Array, " example"],
    test: Float[Array, " example"],
    classes: int,
) -> Float[Array, " strength"]:
    """Fits one probe with every strength and returns losses on other examples.

    Args:
        probe: the kind.
        x: inputs `[example, ...]`.
        y: class indices or values.
        key: for random starts.
        weight: of the examples that are fitted.
        test: of the examples whose losses are averaged.
        classes: number of classes; 1 for values.

    Returns:
        Mean cross-entropy in nats, or mean squared error, of every strength.
    """
    weight, test = weight / weight.sum(), test / test.sum()
    frame = probe.frame(x, weight)
    inside = frame.enter(x)
    data = Data(inside, y, weight, classes)

    def one(strength: Array) -> Array:
        solved = probe.solve(data, strength, key)
        outputs = probe.outputs(solved.params, inside)
        if probe.targets == "values":
            return test @ _values(outputs, y, classes)
        return test @ losses(outputs, jax.nn.one_hot(y, classes))

    return jax.vmap(one)(jnp.array(probe.strengths, jnp.float32))


def _values(
    outputs: Float[Array, "example output"], y: Array, classes: int
) -> Float[Array, " example"]:
    """Whether each example is right, or its squared error."""
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
