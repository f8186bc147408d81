"""One embedding of a text from the features of its tokens."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mijax._errors import ShapeError


def mean_pool(
    x: Float[Array, "*prompt seq embed"], lengths: Int[Array, "..."]
) -> Float[Array, "*prompt embed"]:
    r"""Average features over the tokens of each prompt, without padding.

    $\frac{1}{n} \sum_{i < n} x_i$ (Reimers and Gurevych 2019, arXiv:1908.10084). The
    other common embedding of a text is the feature of its class token, `x[..., 0, :]`.

    Args:
        x: features, such as the last `resid_post`; values at padding are not read.
        lengths: number of tokens of each prompt before padding.

    Returns:
        The averages.

    Raises:
        ShapeError: another number of lengths than of prompts.

    Examples:
        >>> x = jnp.array([[[1.0], [3.0], [jnp.nan]]])
        >>> mean_pool(x, jnp.array([2])).tolist()
        [[2.0]]
    """
    if x.shape[:-2] != lengths.shape:
        raise ShapeError(
            f"Expected one length for each prompt of x {x.shape}, got lengths of shape "
            f"{lengths.shape}."
        )
    real = jnp.arange(x.shape[-2]) < lengths[..., None]
    total = jnp.where(real[..., None], x, 0).sum(-2)
    return total / lengths[..., None]
