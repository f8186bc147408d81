"""Recurrent mixers as attention: the weights with which tokens read earlier ones."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mijax._errors import SiteError
from mijax.core import AbstractModel, Site, capture
from mijax.core.internal import as_tokens, checked, opened, unedited
from mijax.nn import AbstractMixer


@checked
def effective_attention(
    model: Any, tokens: Any, edits: Any = None, *, layer: int
) -> Float[Array, "*batch heads seq key_seq"]:
    r"""Return the matrix that maps a recurrent mixer's inputs to its outputs.

    For given step sizes and vectors, the scan of a state-space model is linear in its
    inputs, so it equals a product with a causal matrix over tokens, like attention (Ali
    et al. 2024, arXiv:2403.01590). The matrix is exact: its product with the scan's
    inputs, plus the term that skips the state, equals `mixer_scan`. Rows do not sum to
    1, and entries may be negative.

    Args:
        model: a model whose blocks have a recurrent mixer, or a language model.
        tokens: token ids of one prompt, or of a batch, or `mijax.data.Prompts`; with a
            language model also a text or a list of texts.
        edits: placed edits, a list of them, or `None`. Edits at `mixer_state` do not
            affect the matrix.
        layer: index of the block.

    Returns:
        The matrix for each head; in Mamba, a head is a channel. It takes
        `heads * seq * key_seq` numbers for each prompt. Layers with attention instead
        of the mixer are 0.

    Raises:
        SiteError: blocks without a recurrent mixer, or a layer that does not exist.

    Examples:
        >>> import jax, mijax
        >>> spec = mijax.models.MambaSpec(
        ...     layers=2, embed=8, channels=16, vocab=20, rank=2
        ... )
        >>> model = mijax.models.init(spec, jax.random.key(0))
        >>> effective_attention(model, jax.numpy.array([5, 6, 7]), layer=1).shape
        (16, 3, 3)
    """
    model, tokens = opened(model, tokens)
    mixer = mixer_of(model)
    sites = {name: Site(name, layer=layer) for name in mixer.unrolled_sites}
    acts = capture(model, tokens, sites, edits)
    single = as_tokens(tokens).ndim == 1
    return _unrolled(mixer, acts, jnp.asarray(layer, jnp.int32), single)


def mixer_of(model: AbstractModel) -> AbstractMixer:
    """Return the stacked mixers of a model.

    Raises:
        SiteError: the model has no mixers.
    """
    blocks = unedited(model).blocks
    mixer = getattr(blocks, "mixer", None)
    if not isinstance(mixer, AbstractMixer):
        raise SiteError(
            "effective_attention needs blocks with an nn.AbstractMixer; "
            f"{type(blocks).__name__} has none. Attention has the site 'pattern'."
        )
    return mixer


@eqx.filter_jit
def _unrolled(
    mixer: AbstractMixer, acts: dict[str, Array], layer: Array, single: bool
) -> Array:
    arrays, static = eqx.partition(mixer, eqx.is_array)
    one = eqx.combine(jax.tree.map(lambda leaf: leaf[layer], arrays), static)
    return one.unrolled(acts) if single else jax.vmap(one.unrolled)(acts)
