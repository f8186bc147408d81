"""Direct logit attribution."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mijax._errors import FrameError, PositionError, ShapeError, SiteError
from mijax.core import AbstractModel, BlockSites, FunctionModel, Site
from mijax.core.internal import (
    ModelLike,
    Sequence,
    TextLike,
    as_tokens,
    check_linear_writes,
    check_model,
    check_prompts,
    check_sites,
    checked,
    empty,
    guarded_tokens,
    length_of,
    lengths_of,
    masked_lengths,
    one_each,
    opened,
    over_prompts,
    padded_lengths,
    scan_blocks,
)
from mijax.nn import Attention, LatentAttention
from mijax.nn.internal import readout_of

# Sites that blocks add to the stream, or of which they add a linear map.
WRITES = ("z", "attn_out", "mlp_post", "mlp_out")


class Direct(eqx.Module):
    """Direct contribution of each part to a logit or logit difference, in nats.

    The axis `seq` is present where every position was read.

    Attributes:
        heads: every attention head, `[batch, layer, *seq, heads]`; one entry for all
            that writes `attn_out` in blocks without an `nn.Attention`.
        mlps: every MLP, `[batch, layer, *seq]`; zeros without MLPs.
        attention_bias: the output bias of attention, `[batch, layer, *seq]`.
        embed: the embedding, `[batch, *seq]`.
        bias: biases of the final norm and the unembedding, `[batch, *seq]`.
        neurons: every neuron of the MLPs, `[batch, layer, *seq, mlp]`; `None` where
            they were not asked for. Their sum and `mlp_bias` add up to `mlps`.
        mlp_bias: the output bias of the MLPs, `[batch, layer, *seq]`, or `None`.
    """

    heads: Float[Array, "... heads"]
    mlps: Float[Array, "..."]
    attention_bias: Float[Array, "..."]
    embed: Float[Array, "..."]
    bias: Float[Array, "..."]
    neurons: Float[Array, "... mlp"] | None = None
    mlp_bias: Float[Array, "..."] | None = None

    def total(self) -> Float[Array, "batch *seq"]:
        """Return the sum of all parts: the logit or logit difference of the model."""
        layers = self.heads.sum(-1) + self.mlps + self.attention_bias
        return layers.sum(1) + self.embed + self.bias


@checked
def direct_logit_attribution(
    model: ModelLike,
    tokens: TextLike,
    answer: Any,
    wrong: Any = None,
    *,
    position: Any = None,
    neurons: bool = False,
) -> Direct:
    r"""Split a logit or logit difference over the parts that write to the stream.

    The final residual stream is a sum of terms, and with the scale of the final norm
    frozen a logit, or a difference of two, is linear in them:
    $\Delta = \sum_i \mathrm{LN}_x(r_i) \cdot (W_U[a] - W_U[w]) + b$
    (Elhage et al. 2021, transformer-circuits.pub/2021/framework; Wang et al. 2023,
    arXiv:2211.00593). It measures direct effects only: the effect of a head through
    later layers counts for those.

    Each layer is attributed while it runs, so memory is that of the result: neurons of
    all positions take `layer * seq * mlp` numbers per prompt, everything else little.

    Args:
        model: any `AbstractModel` that states its `readout` and `linear_writes`, or a
            language model (`mijax.models.load(...)`).
        tokens: token ids of a batch, `mijax.data.Prompts`, or a list of texts.
        answer: id of the answer, one for all prompts or one for each.
        wrong: id of the wrong answer, in the same form; without it the logit of the
            answer is split.
        position: position to read, one for all prompts or one for each
            (`prompts.last`); every position by default, NaN at padding.
        neurons: whether to split the MLPs over their neurons too.

    Returns:
        The parts; `total()` is the logit, or the logit difference.

    Raises:
        ShapeError: tokens that are not a batch, or answers beyond the vocabulary.
        PositionError: a position beyond the prompt.
        SiteError: neurons of a model without MLPs.
        FrameError: a model that states no `readout`, blocks that do not state
            `linear_writes`, or capped logits.

    Examples:
        >>> import jax, jax.numpy as jnp, mijax
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> tokens = jnp.array([[5, 6, 7]])
        >>> split = mijax.lens.direct_logit_attribution
        >>> split(model, tokens, 3, 4, position=2).heads.shape
        (1, 3, 4)
        >>> logit = split(model, tokens, 3, neurons=True)
        >>> logit.neurons.shape, logit.total().shape  # of every position
        ((1, 3, 3, 64), (1, 3))
    """
    model, given = opened(model, tokens)
    if isinstance(model, FunctionModel):
        raise FrameError("A function has no heads and MLPs: use direct_attribution.")
    check_model(model)
    readout = readout_of(model, "direct_logit_attribution")
    check_linear_writes(model, "direct_logit_attribution")
    lengths, tokens = lengths_of(given), as_tokens(given)
    masked = masked_lengths(model, given, tokens.shape[-1])
    if tokens.ndim != 2:
        raise ShapeError(f"Tokens are [batch, seq] here, got {tokens.shape}.")
    if isinstance(position, slice):
        raise PositionError(f"Give one position per prompt, or none, got {position}.")
    place = Site("embed", position=position)
    every = check_sites(model, tokens, place, lengths=lengths)
    shapes, tokens = every.blocks, guarded_tokens(model, tokens, place, every)
    check_prompts(model, tokens)
    if neurons and getattr(model.blocks, "mlp", None) is None:
        raise SiteError("The model has no MLPs, so it has no neurons to attribute to.")
    batch, vocab = (tokens.shape[0],), readout.outputs
    answer = one_each(answer, batch, vocab)
    wrong = None if wrong is None else one_each(wrong, batch, vocab)
    if position is not None:
        position = jnp.broadcast_to(jnp.asarray(position, jnp.int32), batch)
    padded = padded_lengths(given, tokens.shape[1]) if position is None else None
    padding = padded, masked
    sites = tuple(name for name in WRITES if getattr(shapes, name) is not None)
    return _split(model, tokens, (answer, wrong), position, padding, (sites, neurons))


@eqx.filter_jit
def _split(
    model: AbstractModel,
    tokens: Int[Array, "batch seq"],
    ids: tuple[Int[Array, " batch"], Int[Array, " batch"] | None],
    position: Int[Array, " batch"] | None,
    padding: tuple[Int[Array, " batch"] | None, Int[Array, " batch"] | None],
    read: tuple[tuple[str, ...], bool],
) -> Direct:
    """Run every prompt twice: to the final norm, then again to attribute each layer."""
    lengths, masked = padding

    def one(tokens: Array, prompt: Array) -> Direct:
        every = jnp.arange(tokens.shape[0], dtype=jnp.int32)
        rows = Sequence(every, prompt, prompt, length_of(masked, prompt))
        embed = model.embed(tokens, every)
        run = lambda want, select: scan_blocks(  # noqa: E731
            *(model, embed, empty().blocks, rows), want=want, select=select
        )
        x, _ = run((), lambda kept, acts, layer: (kept, None))
        at = every if position is None else position[prompt][None]
        answer, wrong = jax.tree.map(lambda i: i[prompt], ids)
        to, bias = model.readout.direction(x[at], answer, wrong)

        def tidy(part: Array) -> Array:
            """Mark padding in an array with rows first, and drop the axis of one."""
            if lengths is not None:
                real = every < lengths[prompt]
                real = real.reshape(-1, *(1,) * (part.ndim - 1))
                part = jnp.where(real, part, jnp.nan)
            return part if position is None else part[0]

        def select(kept: Any, acts: BlockSites[Any], layer: Array) -> Any:
            parts = _parts(model, acts, layer, at, to, neurons=read[1])
            return kept, jax.tree.map(tidy, parts)

        _, (_, found) = run(read[0], select)
        first = tidy((embed[at] * to).sum(-1))
        bias = tidy(jnp.broadcast_to(bias, at.shape))
        return Direct(embed=first, bias=bias, **found)

    return over_prompts(one, tokens)


def _parts(
    model: AbstractModel,
    acts: BlockSites[Any],
    layer: Array,
    at: Int[Array, " rows"],
    to: Float[Array, "rows embed"],
    *,
    neurons: bool,
) -> dict[str, Array]:
    """Return the contributions of one layer's parts, with rows first."""
    attention: Any = getattr(model.blocks, "attention", None)
    mlp: Any = getattr(model.blocks, "mlp", None)
    nothing = jnp.zeros(at.shape, to.dtype)
    along = lambda acts: nothing if acts is None else (acts[at] * to).sum(-1)  # noqa: E731
    parts = {"mlps": along(acts.mlp_out)}
    if isinstance(attention, Attention | LatentAttention):
        read = jnp.einsum("hde,ne->nhd", attention.w_o[layer], to)
        parts["heads"] = (acts.z[at] * read).sum(-1)
        parts["attention_bias"] = _of_bias(attention, "b_o", layer, to)
    else:
        parts["heads"] = along(acts.attn_out)[:, None]
        parts["attention_bias"] = nothing
    if neurons and mlp is not None:
        parts["neurons"] = acts.mlp_post[at] * (to @ mlp.w_out[layer].T)
        parts["mlp_bias"] = _of_bias(mlp, "b_out", layer, to)
    return parts


def _of_bias(module: Any, name: str, layer: Array, to: Array) -> Float[Array, " rows"]:
    bias = getattr(module, name, None)
    return jnp.zeros(len(to), to.dtype) if bias is None else to @ bias[layer]
