"""A tiny model of images and text."""

from typing import Any

import equinox as eqx
import jax
from jaxtyping import PRNGKeyArray

from mijax.models import (
    LlamaSpec,
    LlavaSpec,
    ProjectorSpec,
    VisionLanguage,
    ViTSpec,
    init,
)

# From the standard deviation that families draw with to one at which sites matter.
LARGER = 15.0
SPEC = LlavaSpec(
    vision=ViTSpec(
        layers=2,
        embed=16,
        heads=2,
        mlp=24,
        patch=4,
        image=8,
        activation="quick_gelu",
        pre_norm=True,
        patch_bias=False,
        final_norm=False,
    ),
    text=LlamaSpec(
        layers=2,
        embed=16,
        heads=4,
        kv_heads=2,
        head_dim=4,
        mlp=24,
        vocab=32,
        context=48,
        tied=False,
    ),
    projector=ProjectorSpec(read=16, embed=16),
    image_token=30,
)


def tiny_llava(key: PRNGKeyArray) -> VisionLanguage:
    """Two blocks of an image tower, a projector, and two blocks of a Llama.

    Images of 8 pixels in patches of 4, so 4 features; embed 16, vocab 32, of which 30
    is the placeholder.

    Args:
        key: seed of the weights.

    Returns:
        The model.

    Examples:
        >>> import jax
        >>> model = tiny_llava(jax.random.key(0))
        >>> model.features(jax.numpy.ones((3, 8, 8))).shape
        (4, 16)
    """

    def larger(path: Any, leaf: Any) -> Any:
        drawn = eqx.is_array(leaf) and leaf.ndim > 1
        kept = "norm" in path or "frequency" in path or "patch" in path
        return LARGER * leaf if drawn and not kept else leaf

    name = lambda path: jax.tree_util.keystr(path, simple=True, separator=".")  # noqa: E731
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: larger(name(path), leaf), init(SPEC, key)
    )
