"""Embeddings, norms, activations and rotary positions."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mijax.core import site
from mijax.core.internal import edited

SCALE = "position scale"


class Embedding(eqx.Module):
    """A table with one row per token or position, `scale * weight[n, embed]`.

    `scale` is rounded to the precision of the weights, as Gemma does. `norm` is
    applied to the rows (Bloom).
    """

    weight: Float[Array, "n embed"]
    scale: float | None = eqx.field(static=True, default=None)
    norm: Callable[[Array], Array] | None = None

    @property
    def count(self) -> int:
        """Number of rows."""
        return self.weight.shape[-2]

    def __call__(self, index: Int[Array, "*rows"]) -> Float[Array, "*rows embed"]:
        """Looks up rows."""
        rows = self.weight[index]
        if self.scale is not None:
            rows = rows * jnp.asarray(self.scale, rows.dtype)
        return rows if self.norm is None else self.norm(rows)


class Unembedding(eqx.Module):
    """Logits from the residual stream, `x @ weight.T + bias`."""

    weight: Float[Array, "vocab embed"]
    bias: Float[Array, " vocab"] | None = None

    def __call__(
        self,
        x: Float[Array, "*rows embed"],
        ids: Int[Array, "*rows k"] | None = None,
    ) -> Float[Array, "*rows k"]:
        """Returns all logits, or those of the tokens `ids` of each row."""
        if ids is None:
            logits = x @ self.weight.T
            return logits if self.bias is None else logits + self.bias
        logits = jnp.einsum("...d,...kd->...k", x, self.weight[ids])
        return logits if self.bias is None else logits + self.bias[ids]


class Alibi(eqx.Module):
    r"""Subtract a head's slope times the distance from every score.

    $s_{qk} - m_h (q - k)$ (Press et al. 2022, arXiv:2108.12409).

    Attributes:
        slope: $m_h$, one for each head.
    """

    slope: Float[Array, "*layer heads"]

    def __call__(
        self,
        scores: Float[Array, "*lane heads seq key_seq"],
        query: Int[Array, "*lane seq 1"],
        key: Int[Array, "... key_seq"],
    ) -> Float[Array, "*lane heads seq key_seq"]:
        """Adds the bias to scores of queries and keys at these positions."""
        far = jnp.expand_dims(query - key, -3).astype(jnp.float32)
        return scores - (self.slope[:, None, None] * far).astype(scores.dtype)


class RoundedAlibi(eqx.Module):
    r"""ALiBi with terms rounded to bfloat16 before scaling (Falcon).

    $s_{qk} - c (r(r(m_h) r(q)) - r(r(m_h) r(k)))$, where $r$ rounds. Neighbors far from
    the first token may have equal terms.

    Attributes:
        slope: $m_h$, one for each head.
        scale: $c$, the factor of the scores.
    """

    slope: Float[Array, "*layer heads"]
    scale: float = eqx.field(static=True, default=1.0)

    def __call__(
        self,
        scores: Float[Array, "*lane heads seq key_seq"],
        query: Int[Array, "*lane seq 1"],
        key: Int[Array, "... key_seq"],
    ) -> Float[Array, "*lane heads seq key_seq"]:
        """Adds the bias to scores of queries and keys at these positions."""

        def term(position: Int[Array, "..."]) -> Float[Array, "..."]:
            wide = jnp.expand_dims(jnp.atleast_2d(position), -3).astype(jnp.float32)
            return bfloat16(bfloat16(self.slope)[:, None, None] * bfloat16(wide))

        far = self.scale * (term(query) - term(key))
        return scores - far.astype(scores.dtype)


def bfloat16(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Round to bfloat16 values; compilers may drop a pair of casts."""
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)


class Identity(eqx.Module):
    """Stands where a model has no norm."""

    def __call__(self, x: Float[Array, "*rows embed"]) -> Float[Array, "*rows embed"]:
        """Returns `x`."""
        return x


def scaled_like(norm: "LayerNorm | RMSNorm | Identity", v: Array, x: Array) -> Array:
    r"""Applies a norm to `v` with the scale that it has at `x`; linear in `v`.

    With $\sigma(x)$ frozen, the norm of a sum is the sum of the norms, which is what
    attributes a logit to the terms of the residual stream (Elhage et al. 2021). The
    norm's bias is left out: `scaled_like(norm, x, x) + norm.bias == norm(x)`.

    Args:
        norm: the norm.
        v: terms of the residual stream, `[..., embed]`.
        x: the residual stream that the norm read, broadcastable to `v`.

    Returns:
        The normalised terms.

    Examples:
        >>> x = jnp.array([1.0, 2.0, 4.0])
        >>> norm = LayerNorm(jnp.ones(3), jnp.zeros(3))
        >>> bool(jnp.allclose(scaled_like(norm, x, x), norm(x)))
        True
    """
    if isinstance(norm, Identity):
        return v
    if isinstance(norm, LayerNorm):
        v = v - v.mean(-1, keepdims=True)
        x = x - x.mean(-1, keepdims=True)
    v = v * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + norm.eps)
    return v if norm.weight is None else v * norm.weight


class LayerNorm(eqx.Module):
    r"""$\gamma (x - \bar x) / \sqrt{\mathrm{var}(x) + \epsilon} + \beta$.

    Computed in float32 whatever the dtype of `x` (Ba et al. 2016, arXiv:1607.06450).
    `weight` and `bias` are `None` once folded into the weights that read the norm.
    """

    weight: Float[Array, "*layer embed"] | None
    bias: Float[Array, "*layer embed"] | None
    eps: float = eqx.field(static=True, default=1e-5)

    def __call__(
        self,
        x: Float[Array, "*rows embed"],
        scale: str | None = None,
        *,
        frozen: bool = False,
    ) -> Float[Array, "*rows embed"]:
        """Normalises the last axis; `scale` names what it divides by, as a site."""
        wide = x.astype(jnp.float32)
        wide = wide - wide.mean(-1, keepdims=True)
        square = (wide**2).mean(-1, keepdims=True) + self.eps
        wide = wide * inverse_root(square, scale, frozen=frozen)
        if self.weight is not None:
            wide = wide * self.weight
        if self.bias is not None:
            wide = wide + self.bias
        return wide.astype(x.dtype)


class RMSNorm(eqx.Module):
    r"""$\gamma x / \sqrt{\overline{x^2} + \epsilon}$, in float32.

    Zhang and Sennrich 2019, arXiv:1910.07467. `weight` is `None` once folded.
    """

    weight: Float[Array, "*layer embed"] | None
    eps: float = eqx.field(static=True, default=1e-5)

    def __call__(
        self,
        x: Float[Array, "*rows embed"],
        scale: str | None = None,
        *,
        frozen: bool = False,
    ) -> Float[Array, "*rows embed"]:
        """Normalises the last axis; `scale` names what it divides by, as a site."""
        wide = x.astype(jnp.float32)
        square = (wide**2).mean(-1, keepdims=True) + self.eps
        wide = wide * inverse_root(square, scale, frozen=frozen)
        if self.weight is not None:
            wide = wide * self.weight
        return wide.astype(x.dtype)


class OptionalNorm(eqx.Module):
    """A norm in some layers, the identity in the others (ModernBERT).

    Attributes:
        norm: the norm.
        applied: 1 in layers that have it, 0 in the others.
    """

    norm: LayerNorm | RMSNorm
    applied: Int[Array, "*layer"]

    def __call__(self, x: Float[Array, "*rows embed"]) -> Float[Array, "*rows embed"]:
        """Normalizes where the layer has the norm."""
        return jnp.where(self.applied > 0, self.norm(x), x)


def inverse_root(square: Array, name: str | None, *, frozen: bool) -> Array:
    """Return `1 / sqrt(square)`, of which the root is a site if it has a name.

    Where each head has a norm to itself, as in runs of circuits, there is no site. A
    frozen root is a constant of the backward pass.
    """
    inverse = jax.lax.rsqrt(square)
    if name is not None and square.ndim == 2:
        root = jnp.sqrt(square)
        scale = site(name, root, SCALE)
        # The ratio of a scale that an edit leaves as it is is 1, bit for bit.
        inverse = inverse * (root / scale) if edited(name) else inverse
    return jax.lax.stop_gradient(inverse) if frozen else inverse


class GELU(eqx.Module):
    """Gaussian error linear unit; `approximate` is the tanh form that GPT-2 uses."""

    approximate: bool = eqx.field(static=True, default=True)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """Applies the activation."""
        return jax.nn.gelu(x, approximate=self.approximate)


class SiLU(eqx.Module):
    """Sigmoid linear unit, `x * sigmoid(x)`."""

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """Applies the activation."""
        return jax.nn.silu(x)


class QuickGELU(eqx.Module):
    """`x * sigmoid(1.702 x)`, which CLIP uses for GELU."""

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """Applies the activation."""
        return x * jax.nn.sigmoid(1.702 * x)


class ReLU(eqx.Module):
    """Rectified linear unit, `max(x, 0)`."""

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """Applies the activation."""
        return jax.nn.relu(x)


class Tanh(eqx.Module):
    """Hyperbolic tangent."""

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """Applies the activation."""
        return jnp.tanh(x)


class Softmax(eqx.Module):
    """Softmax over the last axis, in float32: a node of its own, to be replaced."""

    def __call__(
        self, x: Float[Array, "... key_seq"], temperature: float = 1.0
    ) -> Float[Array, "... key_seq"]:
        """Normalises `x / temperature`."""
        return jax.nn.softmax(x.astype(jnp.float32) / temperature, axis=-1)


class SinkSoftmax(eqx.Module):
    r"""Softmax over scores and one additional logit in every row (gpt-oss).

    $p_k = e^{s_k} / (e^{b_h} + \sum_j e^{s_j})$: a head can put some of its attention
    on nothing, so rows of the pattern sum to less than 1.

    Attributes:
        sink: $b_h$, one for each head.

    Examples:
        >>> SinkSoftmax(jnp.zeros(1))(jnp.zeros((1, 1, 3))).tolist()
        [[[0.25, 0.25, 0.25]]]
    """

    sink: Float[Array, "*layer heads"]

    def __call__(
        self, x: Float[Array, "*lane heads seq key_seq"], temperature: float = 1.0
    ) -> Float[Array, "*lane heads seq key_seq"]:
        """Normalises `x / temperature`, and the sinks' logits with it."""
        wide = x.astype(jnp.float32)
        sink = jnp.broadcast_to(
            self.sink[:, None, None].astype(jnp.float32), (*x.shape[:-1], 1)
        )
        both = jnp.concatenate([wide, sink], axis=-1) / temperature
        return jax.nn.softmax(both, axis=-1)[..., :-1]


class Product(eqx.Module):
    """Product of two activations, `einsum(spec, a, b)`: a node of its own.

    Attention has two (queries with keys, pattern with values) and a gated MLP one.
    Backward rules replace it to say how its two factors share a gradient.
    """

    def __call__(self, spec: str, a: Array, b: Array) -> Array:
        """Multiplies."""
        return jnp.einsum(spec, a, b)


class SoftCap(eqx.Module):
    r"""$c \tanh(x / c)$: keeps scores or logits between $-c$ and $c$ (Gemma 2).

    Examples:
        >>> float(SoftCap(50.0)(jnp.array(1e9)))
        50.0
    """

    cap: float = eqx.field(static=True)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """Caps."""
        return self.cap * jnp.tanh(x / self.cap)


class AcrossHeads(eqx.Module):
    """One norm over the features of all heads together (OLMo 2).

    Where query heads have separate views of shared keys, the first view of every key
    head is normalized together, then the second, and so on.

    Attributes:
        norm: the norm, with `heads * head_dim` weights.
        heads: number of heads.
    """

    norm: RMSNorm
    heads: int = eqx.field(static=True)

    def __call__(
        self, x: Float[Array, "*rows heads head_dim"]
    ) -> Float[Array, "*rows heads head_dim"]:
        """Normalizes all heads of a row."""
        *rows, count, head_dim = x.shape
        views = x.reshape(*rows, self.heads, count // self.heads, head_dim)
        flat = views.swapaxes(-3, -2).reshape(*rows, count // self.heads, -1)
        views = self.norm(flat).reshape(*rows, -1, self.heads, head_dim)
        return views.swapaxes(-3, -2).reshape(x.shape)


class Rotary(eqx.Module):
    """Rotary positions (Su et al. 2021, arXiv:2104.09864), halves rotated together.

    Attributes:
        frequency: radians per position of each pair, `[rotated / 2]`; pair `i` is
            features `i` and `i + rotated / 2`. Features from `rotated` on stay as they
            are, and so does a layer whose frequencies are 0.
        scale: factor of the rotated features, one for each layer; 1 by default.
    """

    frequency: Float[Array, "*layer half"]
    scale: Float[Array, "*layer"] | None = None

    def __call__(
        self,
        x: Float[Array, "*lane rows heads head_dim"],
        position: Int[Array, " rows"],
    ) -> Float[Array, "*lane rows heads head_dim"]:
        """Rotates each row by its position."""
        angle = position.astype(jnp.float32)[:, None] * self.frequency
        cos, sin = jnp.cos(angle)[:, None], jnp.sin(angle)[:, None]
        if self.scale is not None:
            cos, sin = self.scale * cos, self.scale * sin
        half = self.frequency.shape[-1]
        wide = x.astype(jnp.float32)
        first, second, rest = jnp.split(wide, (half, 2 * half), axis=-1)
        rotated = (first * cos - second * sin, second * cos + first * sin, rest)
        return jnp.concatenate(rotated, axis=-1).astype(x.dtype)
