"""Causal models: small programs with named variables that can be set."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import equinox as eqx
import jax.numpy as jnp

from mijax._errors import ConfigError, nearest


@final
class CausalModel(eqx.Module):
    """A program of named variables, each a pure function of others.

    Parents are the names of a function's parameters. Variables are kept in topological
    order. One example is computed at a time: `jax.vmap` goes outside.

    Args:
        inputs: names of the variables that are given.
        functions: what computes each of the others, arrays in, array out. The last one
            is the output, if `output` does not say otherwise.
        output: name of the output.

    Raises:
        ConfigError: a parameter that is no variable, a variable that is given twice, or
            variables that depend on one another in a circle.

    Examples:
        >>> import jax.numpy as jnp
        >>> same = CausalModel(
        ...     ("w", "x", "y", "z"),
        ...     {
        ...         "left": lambda w, x: w == x,
        ...         "right": lambda y, z: y == z,
        ...         "label": lambda left, right: left == right,
        ...     },
        ... )
        >>> base = {"w": 1, "x": 1, "y": 2, "z": 3}
        >>> source = {"w": 1, "x": 4, "y": 5, "z": 5}
        >>> bool(same(base)["label"])
        False
        >>> bool(same.interchange(base, {"left": source})["label"])
        True
    """

    inputs: tuple[str, ...] = eqx.field(static=True)
    variables: tuple[str, ...] = eqx.field(static=True)
    output: str = eqx.field(static=True)
    parents: tuple[tuple[str, ...], ...] = eqx.field(static=True)
    functions: tuple[Callable[..., Any], ...] = eqx.field(static=True)

    def __init__(
        self,
        inputs: Sequence[str],
        functions: Mapping[str, Callable[..., Any]],
        *,
        output: str | None = None,
    ):
        if not functions:
            raise ConfigError("A causal model computes one variable at least.")
        names = (*inputs, *functions)
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"The variable {name!r} is given twice: rename one.")
        parents = {name: _parameters(of) for name, of in functions.items()}
        for name, of in parents.items():
            for parent in of:
                if parent not in names:
                    close = nearest(parent, names)
                    raise ConfigError(f"{name!r} reads {parent!r}, no variable.{close}")
        order = _sorted(inputs, parents)
        self.inputs = tuple(inputs)
        self.variables = order
        self.parents = tuple(parents[name] for name in order)
        self.functions = tuple(functions[name] for name in order)
        self.output = list(functions)[-1] if output is None else output
        self._known([self.output])

    def __call__(
        self, inputs: Mapping[str, Any], given: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Runs the program.

        Args:
            inputs: a value for every input.
            given: values that variables are set to, whatever their parents say.

        Returns:
            The value of every variable, inputs first.

        Raises:
            ConfigError: an input that is missing, or an unknown variable.
        """
        return self._run(inputs, {} if given is None else given, {})

    def interchange(
        self,
        base: Mapping[str, Any],
        sources: Mapping[str, Mapping[str, Any]],
        swapped: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Runs the program with variables set to what they are in other runs.

        Args:
            base: a value for every input.
            sources: for each variable that is set, the inputs of the run that it is
                read from.
            swapped: whether each of them is set, a boolean that may be traced; all
                are, if it is not said.

        Returns:
            The value of every variable, inputs first.

        Raises:
            ConfigError: an input that is missing, or an unknown variable.
        """
        self._known([*sources, *(swapped or {})])
        given = {name: self(inputs)[name] for name, inputs in sources.items()}
        return self._run(base, given, {} if swapped is None else swapped)

    def _run(
        self, inputs: Mapping[str, Any], given: Mapping[str, Any], where: Any
    ) -> dict[str, Any]:
        self._known([*inputs, *given])
        missing = [name for name in self.inputs if name not in {*inputs, *given}]
        if missing:
            raise ConfigError(
                f"No value for the input {missing[0]!r}: inputs are "
                f"{', '.join(self.inputs)}."
            )
        values: dict[str, Any] = {}

        def put(name: str, compute: Callable[[], Any]) -> None:
            if name not in given:
                values[name] = compute()
            elif name not in where:
                values[name] = jnp.asarray(given[name])
            else:
                values[name] = jnp.where(where[name], given[name], compute())

        for name in self.inputs:
            put(name, lambda name=name: jnp.asarray(inputs[name]))
        rest = zip(self.variables, self.parents, self.functions, strict=True)
        for name, of, function in rest:
            read = [values[parent] for parent in of]
            put(name, lambda f=function, read=read: jnp.asarray(f(*read)))
        return values

    def _known(self, names: Sequence[str]) -> None:
        every = (*self.inputs, *self.variables)
        for name in names:
            if name not in every:
                raise ConfigError(f"No variable {name!r}.{nearest(name, every)}")


def _parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters)


def _sorted(
    inputs: Sequence[str], parents: Mapping[str, tuple[str, ...]]
) -> tuple[str, ...]:
    """Orders variables so that parents come first."""
    order: list[str] = []
    left = dict(parents)
    while left:
        ready = [name for name, of in left.items() if {*of} <= {*inputs, *order}]
        if not ready:
            raise ConfigError(
                f"Variables depend on one another in a circle: {', '.join(left)}."
            )
        order += ready
        left = {name: of for name, of in left.items() if name not in ready}
    return tuple(order)
