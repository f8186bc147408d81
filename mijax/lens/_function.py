"""The residual stream of a function, as its readout states it."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mijax._errors import ShapeError, SiteError
from mijax.core import FunctionModel, Site, SiteTable, capture
from mijax.core.internal import checked, examples, one_each
from mijax.nn import Readout
from mijax.nn.internal import readout_of


class DirectTerms(eqx.Module):
    """Direct contribution of each term of the stream to an output or a difference.

    Attributes:
        terms: for each site that the readout lists in `writes`, its values without
            their last axis, `[*batch, *layer, ...]`.
        rest: contribution of what the stream holds besides these, `[*batch, ...]`; 0
            where they are all.
        bias: biases of the norm and of the head, `[*batch, ...]`.
    """

    terms: dict[str, Float[Array, "..."]]
    rest: Float[Array, "*rows"]
    bias: Float[Array, "*rows"]


@checked
def direct_attribution(
    model: FunctionModel, inputs: Any, output: Any, other: Any = None
) -> DirectTerms:
    r"""Split an output of a function over the terms that its residual stream sums.

    With the scale of the norm frozen an output, or a difference of two, is linear in
    the residual stream $x = \sum_i r_i$: $\sum_i \mathrm{LN}_x(r_i) \cdot (W[a] -
    W[b])$ and biases (Elhage et al. 2021, transformer-circuits.pub/2021/framework).
    Decoders have `direct_logit_attribution`.

    Args:
        model: a function whose `readout` names the site of the stream, and the sites
            that are added to it.
        inputs: one example, or a batch.
        output: index of an output, one for all examples or one for each.
        other: index of an output that is subtracted, in the same form.

    Returns:
        The terms. Their sum with `rest` and `bias` is the output.

    Raises:
        FrameError: a function that states no readout, or capped outputs.
        SiteError: a readout that names sites that the function does not have.
        ShapeError: writes that are not as wide as the stream.

    Examples:
        >>> import jax, jax.numpy as jnp, mijax
        >>> head = mijax.nn.Unembedding(jax.random.normal(jax.random.key(0), (3, 4)))
        >>> def classify(x):
        ...     x = mijax.site("embed", x, "channel")
        ...     out = mijax.site("mlp_out", jnp.tanh(x), "channel")
        ...     return head(mijax.site("resid_post", x + out, "channel"))
        >>> readout = mijax.nn.Readout(
        ...     mijax.nn.Identity(), head, writes=("embed", "mlp_out")
        ... )
        >>> model = mijax.model(classify, jnp.ones(4), readout=readout)
        >>> found = direct_attribution(model, jnp.ones((5, 4)), output=2)
        >>> found.terms["mlp_out"].shape, float(jnp.abs(found.rest).max())
        ((5,), 0.0)
    """
    found = values_of(model, inputs, "direct_attribution")
    readout, batch = found.readout, found.batch
    ids = [
        None if i is None else one_each(i, batch or (1,), readout.outputs)
        for i in (output, other)
    ]
    x = found.values[readout.stream]
    if found.sites[readout.stream].layers is not None:
        x = x[:, -1]
    to, bias = eqx.filter_vmap(readout.direction)(x, *ids)
    bias = jnp.broadcast_to(bias.reshape(-1, *(1,) * (x.ndim - 2)), x.shape[:-1])
    terms, rest = {}, (x * to).sum(-1)
    for name in readout.writes:
        layers = found.sites[name].layers is not None
        terms[name] = _along(found.values[name], to, layers=layers, name=name)
        # Layers, and axes after those of the stream, such as heads.
        inner = tuple(range(x.ndim - 1 + layers, terms[name].ndim))
        rest = rest - terms[name].sum((1,) * layers + inner)
    parts = DirectTerms(terms, rest, bias)
    return parts if batch else jax.tree.map(lambda part: part[0], parts)


def _along(value: Array, to: Array, *, layers: bool, name: str) -> Array:
    """Return the product of a term with the direction that is read."""
    rows, lead = to.shape[1:-1], 1 + layers
    extra = value.ndim - to.ndim - layers
    if extra < 0 or value.shape[lead : lead + len(rows)] != rows:
        raise ShapeError(
            f"Values at site {name!r} have shape {value.shape[lead:]}; expected rows "
            f"{list(rows)} of the stream first."
        )
    shape = (len(to), *(1,) * layers, *rows, *(1,) * extra, to.shape[-1])
    return (value * to.reshape(shape)).sum(-1)


class Values(NamedTuple):
    """Values of a function that its readout reads.

    Attributes:
        readout: as the function states it.
        values: activations at sites, `[batch, *layer, ...]`.
        sites: the sites of the function.
        batch: shape of the batch, `()` for one example, whose values have a batch of 1.
    """

    readout: Readout
    values: dict[str, Array]
    sites: SiteTable
    batch: tuple[int, ...]


def values_of(
    model: FunctionModel, inputs: Any, verb: str, *, lens: Site | None = None
) -> Values:
    """Return activations of a function at the position that its readout reads.

    Args:
        model: the function.
        inputs: one example, or a batch.
        verb: what needs them, for errors.
        lens: only this site, at this position if it has one; otherwise the stream and
            all that is added to it.

    Raises:
        FrameError: a function that states no readout, or capped outputs of a sum.
        SiteError: a site that it does not have, or layers of several shapes.
        ShapeError: a site of another width than the stream.
    """
    readout = readout_of(model, verb, linear=lens is None)
    inputs, size, one = examples(model, inputs)
    sites = model.sites_of(one)
    names = (readout.stream, *readout.writes) if lens is None else (lens.name,)
    for name in names:
        if sites[name].ragged:
            raise SiteError(f"Layers of the site {name!r} differ in shape.")
        if sites[name].shapes[0][-1:] != (readout.width,):
            raise ShapeError(
                f"Values at site {name!r} have shape {sites[name].shapes[0]}; the "
                f"readout reads a stream of width {readout.width}."
            )
    values = dict(zip(names, capture(model, inputs, list(names)), strict=True))
    at = readout.position if lens is None or lens.position is None else lens.position

    def read(name: str) -> Array:
        value = values[name][None] if size is None else values[name]
        axis = 1 + (sites[name].layers is not None)
        return value if at is None else jnp.take(value, at, axis=axis)

    found = {name: read(name) for name in names}
    return Values(readout, found, sites, () if size is None else (size,))
