"""Activation addition: the difference between two prompts, token by token."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mijax._errors import ShapeError, SiteError
from mijax.core import AbstractEdit, PerPrompt, Site, capture
from mijax.core.internal import ModelLike, check_per_prompt, checked, reals
from mijax.data import Prompts
from mijax.steering._read import as_prompts, check_contrast, check_site


class FrontAddition(AbstractEdit):
    r"""Adds one vector at each of the first tokens: $h_t \mapsto h_t + c\,v_t$.

    Attributes:
        vectors: `[seq, embed]`; later tokens do not change.
        coefficient: strength `c`, a number or `PerPrompt`; 0 changes nothing.

    Raises:
        ShapeError: the width differs from the site's, or there are more vectors than
            tokens.
    """

    vectors: Float[Array, "seq embed"] = eqx.field(converter=reals)
    coefficient: Any = eqx.field(
        default=1.0, converter=lambda c: c if isinstance(c, PerPrompt) else reals(c)
    )

    def check_operand(self, spec: Any, rows: range, batch: tuple[int, ...]) -> None:
        """Raise if the vectors do not fit the site's width or number of tokens."""
        seq, size = self.vectors.shape
        if size != spec.shape[-1]:
            raise ShapeError(
                f"The vectors have width {size}, and the site {spec.shape[-1]}: they "
                "were made for another model."
            )
        if seq > spec.shape[-2]:
            raise ShapeError(
                f"The vectors cover {seq} tokens, and the prompts have only "
                f"{spec.shape[-2]}: give longer prompts."
            )
        check_per_prompt(self.coefficient, "strength", batch)

    def __call__(self, x: Float[Array, "rows embed"], place: Any) -> Array:
        """Return the steered rows."""
        rows = getattr(place, "rows", None)
        if rows is None:
            raise SiteError("FrontAddition works in decoders only.")
        position, seq = rows.position, len(self.vectors)
        strength = place.each(self.coefficient, x)
        new = x + (strength * self.vectors[jnp.minimum(position, seq - 1)]).astype(
            x.dtype
        )
        return jnp.where((position < seq)[:, None] & (strength != 0), new, x)


@checked
def activation_addition(
    model: ModelLike,
    positive: Any,
    negative: Any,
    *,
    layer: int,
    pad: int,
    coefficient: float | PerPrompt = 1.0,
    site: str = "resid_pre",
) -> Any:
    r"""Return edits that add the difference between two prompts to any prompt.

    $v_t = h_t(p_+) - h_t(p_-)$ at one layer, with the shorter prompt padded with
    spaces. The vectors are added to the first tokens, including any beginning-of-text
    token.

    Args:
        model: a decoder, or a language model.
        positive: one prompt, its tokens or its text.
        negative: its counterpart.
        layer: index of the block.
        pad: padding token, usually a space.
        coefficient: strength, a number or `PerPrompt`; the paper uses 1 to 10.
        site: site of the block; the paper adds to its input.

    Returns:
        Placed edits.

    Raises:
        ShapeError: more than one prompt on either side, or two identical prompts.
        SiteError: a site or layer that the model does not have.

    Examples:
        >>> import mijax
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> one, other = jnp.array([1, 5, 6]), jnp.array([1, 7])
        >>> edits = activation_addition(model, one, other, layer=1, pad=2)
        >>> mijax.run(model, jnp.array([1, 8, 9, 10]), edits).shape
        (4, 64)

    Source: Turner et al. 2023, arXiv:2308.10248.
    """
    check_site(site)
    bare, plus = as_prompts(model, positive)
    _, minus = as_prompts(model, negative)
    if len(plus) != 1 or len(minus) != 1:
        raise ShapeError(
            f"Activation addition takes one prompt and its counterpart, got "
            f"{len(plus)} and {len(minus)}."
        )
    check_contrast(plus, minus, paired=None)
    rows = [
        np.asarray(p.tokens[0, : int(p.lengths[0])]).tolist() for p in (plus, minus)
    ]
    seq = max(map(len, rows))
    filled = Prompts.from_ids([row + [pad] * (seq - len(row)) for row in rows])
    acts = capture(bare, filled, Site(site, layer=layer)).astype(jnp.float32)
    vectors = jax.device_put(acts[0] - acts[1])
    return FrontAddition(vectors, coefficient).at(site, layer=layer)
