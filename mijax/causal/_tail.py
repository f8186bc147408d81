"""The end of a transformer, from one layer and the last token on.

A swap at the last token after layer L leaves the other tokens as they are, and the
layers up to L. So only this token's row is run again, through the layers after L, with
the keys and values that the other tokens have: for a prompt of 20 tokens a twentieth of
the layers' work, and of those only the ones that are left.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from mijax._errors import ShapeError, SiteError
from mijax.core import (
    AbstractBlock,
    AbstractModel,
    Place,
    Site,
    Sites,
    capture,
    compose,
    edit,
)
from mijax.core.internal import Packed, check_keys, checked, empty, put, run_block
from mijax.core.internal import Sequence as Rows
from mijax.nn import Readout
from mijax.nn.internal import readout_of


class Prefix(eqx.Module):
    """What the end of every prompt needs of its beginning, at every layer.

    Attributes:
        stream: the residual stream after each layer, at the last token.
        k: keys of all tokens, before rotary positions.
        v: values of all tokens.
        last: position of the last token.
    """

    stream: Float[Array, "prompt layer embed"]
    k: Float[Array, "prompt layer seq kv_heads head_dim"]
    v: Float[Array, "prompt layer seq kv_heads head_dim"]
    last: Int[Array, " prompt"]


@checked
def prefix(
    model: AbstractModel, tokens: Int[Array, "prompt seq"], last: Int[Array, " prompt"]
) -> Prefix:
    """Runs prompts once and keeps what their ends need.

    Args:
        model: a causal model whose blocks have an `nn.Attention`.
        tokens: ids of all prompts, padded on the right.
        last: position of each prompt's last token (`prompts.last`).

    Returns:
        What `Tail.of` takes, for any layer.

    Raises:
        SiteError: blocks that cache anything but keys and values, or do not state it.

    Examples:
        >>> import jax, mijax
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> tokens = jnp.array([[5, 6, 7], [8, 9, 0]])
        >>> prefix(model, tokens, jnp.array([2, 1])).stream.shape
        (2, 3, 32)
    """
    check_keys(model, "causal.prefix")
    attention: Any = getattr(model.blocks, "attention")  # noqa: B009
    kv_heads = jnp.arange(0, attention.heads, attention.groups)
    sites = {
        "stream": Site("resid_post", position=last),
        "k": Site("k", head=kv_heads),
        "v": Site("v", head=kv_heads),
    }
    return Prefix(**capture(model, tokens, sites), last=last)


class Tail(eqx.Module):
    """A model of prompts by their index, which reads the last token's stream.

    It takes the place of the model in `align`, `agreement` and `iia` where a variable
    is looked for at the last token. An input is the index of a prompt, then ids of
    tokens, whose logits are the output. The stream after the layer is read, and edited,
    at `Site("embed")`.

    Attributes:
        blocks: those after the layer.
        readout: makes logits of the stream after the last block.
        stream: after the layer, of every prompt.
        past: keys and values of the blocks.
        last: position of the last token.

    Examples:
        >>> import jax, mijax
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> tokens = jnp.array([[5, 6, 7], [8, 9, 0]])
        >>> tail = Tail.of(model, prefix(model, tokens, jnp.array([2, 1])), 0)
        >>> logits, _ = tail(jnp.array([1, 30, 31]))  # prompt 1: tokens 30 and 31
        >>> bool(jnp.allclose(logits, mijax.run(model, tokens)[1, 1, 30:32], atol=1e-5))
        True
    """

    blocks: AbstractBlock
    readout: Readout
    stream: Float[Array, "prompt embed"]
    past: dict[str, Array]
    last: Int[Array, " prompt"]

    @staticmethod
    def of(model: AbstractModel, kept: Prefix, layer: int) -> "Tail":
        """Cuts a model after a layer, from 0.

        Raises:
            SiteError: no such layer.
            FrameError: a model that states no `readout`.
        """
        readout = readout_of(model, "causal.Tail", linear=False)
        count = kept.stream.shape[1]
        if not 0 <= layer < count:
            raise SiteError(
                f"There is no layer {layer} to cut after: there are {count}, from 0 on."
            )
        after = lambda leaf: leaf[layer + 1 :] if eqx.is_array(leaf) else leaf  # noqa: E731
        past = {
            name: jnp.moveaxis(x[:, layer + 1 :], 1, 0)
            for name, x in (("k", kept.k), ("v", kept.v))
        }
        return Tail(
            jax.tree.map(after, model.blocks),
            readout,
            kept.stream[:, layer],
            past,
            kept.last,
        )

    def check(self, x: Int[Array, "*batch input"]) -> None:
        """Refuses prompts and tokens that are not there, outside jit.

        Args:
            x: inputs.

        Raises:
            ShapeError: an index beyond the prompts, or an id beyond the vocabulary.
        """
        if isinstance(x, Tracer):
            return
        given = np.asarray(x)
        vocab = self.readout.outputs
        for what, part, count in (
            ("Indices of prompts", given[..., 0], len(self.stream)),
            ("Token ids", given[..., 1:], vocab),
        ):
            wrong = part[(part < 0) | (part >= count)]
            if wrong.size:
                raise ShapeError(f"{what} are from 0 to {count - 1}, got {wrong[0]}.")

    def __call__(
        self, x: Int[Array, " input"], edits: Any = None
    ) -> tuple[Float[Array, " classes"], Sites[Any]]:
        """Runs one prompt to its end.

        Args:
            x: the prompt's index, and ids of tokens.
            edits: placed edits of `embed`, or `None`.

        Returns:
            Logits of the tokens; the stream is the activation `embed`.
        """
        record = compose(edits)
        which, ids = x[:1], x[1:]
        at_first = Place(Rows(jnp.zeros(1, jnp.int32)))
        read = edit(record.embed, self.stream[which], at_first)
        last, lane = self.last[which], jnp.zeros(1, jnp.int32)
        keys = self.past["k"].shape[2]
        rows = Packed(last, which, lane, lane, last, which, 1, keys)
        arrays, static = eqx.partition(self.blocks, eqx.is_array)

        def body(x: Array, layer: Any) -> tuple[Array, None]:
            arrays, past = layer
            return run_block(eqx.combine(arrays, static), x, rows, past), None

        out, _ = jax.lax.scan(body, read, (arrays, self.past))
        end = self.readout
        logits = end.cap(end.head(end.norm(out)[0], ids))
        return logits, put(empty(), "embed", read)
