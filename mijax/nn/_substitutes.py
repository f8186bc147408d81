"""Modules that compute what the one they replace computes, with another gradient."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mijax.core.internal import edited
from mijax.nn._basic import scaled_like


@jax.custom_vjp
def differentiated_as(value: Array, surrogate: Array) -> Array:
    """Returns `value`, bit for bit; its gradient is that of `surrogate`."""
    return value


def _forward(value: Array, surrogate: Array) -> tuple[Array, None]:
    return value, None


def _backward(_: None, gradient: Array) -> tuple[Array, Array]:
    return jnp.zeros_like(gradient), gradient


differentiated_as.defvjp(_forward, _backward)


def with_gradient_of(value: Array, surrogate: Array) -> Array:
    """Replaces the gradient of `value`; nothing is computed for the old one."""
    surrogate = surrogate.astype(value.dtype)
    return differentiated_as(jax.lax.stop_gradient(value), surrogate)


class AbstractSubstitute(eqx.Module):
    """What stands in for a module, and holds it."""

    inner: eqx.AbstractVar[Any]


class FrozenNorm(AbstractSubstitute):
    """A norm whose scale is a constant of the backward pass."""

    inner: Any

    def __call__(
        self, x: Float[Array, "*rows embed"], scale: str | None = None
    ) -> Float[Array, "*rows embed"]:
        """Normalises; `scale` names what it divides by, as a site."""
        if scale is not None and edited(scale):
            return self.inner(x, scale, frozen=True)
        wide = x.astype(jnp.float32)
        linear = scaled_like(self.inner, wide, jax.lax.stop_gradient(wide))
        return with_gradient_of(self.inner(x, scale), linear)


class SoftmaxAt(AbstractSubstitute):
    """A softmax whose gradient is taken at another temperature, without `1 / T`."""

    inner: Any
    temperature: float = eqx.field(static=True)

    def __call__(self, x: Float[Array, "... key_seq"]) -> Float[Array, "... key_seq"]:
        """Normalises."""
        tempered = self.temperature * self.inner(x, self.temperature)
        return with_gradient_of(self.inner(x), tempered)


class FrozenSoftmax(AbstractSubstitute):
    """A softmax that is a constant of the backward pass."""

    inner: Any

    def __call__(self, x: Float[Array, "... key_seq"]) -> Float[Array, "... key_seq"]:
        """Normalises."""
        return jax.lax.stop_gradient(self.inner(x))


class HalfProduct(AbstractSubstitute):
    """A product that hands half of its gradient to each factor."""

    inner: Any

    def __call__(self, spec: str, a: Array, b: Array) -> Array:
        """Multiplies."""
        return self.inner(spec, with_gradient_of(a, a / 2), with_gradient_of(b, b / 2))


class Secant(AbstractSubstitute):
    """An activation whose slope is `f(x) / x`, and `f'(0)` at 0."""

    inner: Any

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """Applies the activation."""
        y, tangent = jax.jvp(self.inner, (x,), (jnp.ones_like(x),))
        zero = x == 0
        slope = jnp.where(zero, tangent, y / jnp.where(zero, 1, x))
        return with_gradient_of(y, x * jax.lax.stop_gradient(slope))
