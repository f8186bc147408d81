"""Smeared keys: every key holds some of the key before it."""

from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@final
class SmearedKeys(eqx.Module):
    r"""Mixes each key with the key of the token before it, in every head.

    $$\tilde k_t = \sigma(\alpha)\, k_t + (1 - \sigma(\alpha))\, k_{t-1}$$

    with a learned $\alpha$ per key head; the first token's key is its own,
    $\tilde k_0 = k_0$ (Olsson et al. 2022, arXiv:2209.11895, "Smeared Key
    Architecture"). Such a model can make induction heads in one layer: the key of a
    token already tells which token came before.

    It stands in the place of `Attention.keys`, where a plain model has `Identity()`.
    The site `k` is the key before it, as it is before rotary positions: an edit of `k`
    at one token reaches the keys of that token and of the next. The QK fix of AtP*,
    which takes every key by itself, refuses such models at `k`.

    Attributes:
        alpha: logit of the share that a key keeps of itself.

    Examples:
        >>> import equinox as eqx, mijax
        >>> model = mijax.testing.tiny_attention_only(jax.random.key(0))
        >>> smeared = eqx.tree_at(
        ...     lambda model: model.blocks.attention.keys,
        ...     model,
        ...     SmearedKeys(jnp.zeros((2, 4))),  # layers, heads: half and half
        ... )
        >>> mijax.run(smeared, jnp.array([5, 6, 7])).shape
        (3, 64)
        >>> SmearedKeys(jnp.zeros(1))(jnp.array([[[2.0]], [[4.0]]]))[:, 0, 0].tolist()
        [2.0, 3.0]
    """

    alpha: Float[Array, "*layer kv_heads"]

    def __call__(
        self, keys: Float[Array, "*lane key_seq heads head_dim"]
    ) -> Float[Array, "*lane key_seq heads head_dim"]:
        """Mixes keys along the tokens.

        Args:
            keys: from the first token on, of every key head, or of every query head's
                view of them.

        Returns:
            The keys that queries see.
        """
        groups = keys.shape[-2] // self.alpha.shape[-1]
        own = jax.nn.sigmoid(jnp.repeat(self.alpha, groups, axis=-1))
        own = own[:, None].astype(keys.dtype)
        before = jnp.concatenate([keys[..., :1, :, :], keys[..., :-1, :, :]], axis=-3)
        return own * keys + (1 - own) * before
