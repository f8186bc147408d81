"""Metrics that compare with the logits of a reference run."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mijax._errors import PositionError, ShapeError
from mijax.core._integers import reals
from mijax.core._metric import AbstractMetric, as_position, own, wide
from mijax.core._sites import known


class AbstractReference(AbstractMetric):
    """A comparison with the logits of a reference run.

    Attributes:
        reference: what was kept of them, `[reads, vocab]` for all prompts or `[prompt,
            reads, vocab]`.
    """

    reference: eqx.AbstractVar[Float[Array, "..."]]

    def operands(self) -> dict[str, Array]:
        """Returns what is per prompt; a reference of rank 2 is for all of them."""
        found = super().operands()
        if self.reference.ndim == 3:
            found["reference"] = self.reference
        return found


class kl(AbstractReference):
    r"""Divergence from a reference run, $KL(p_\mathrm{ref} \| p)$, in nats.

    Args:
        reference_logits: logits of the reference run, `[seq, vocab]` or
            `[prompt, seq, vocab]`; those at the positions read are kept.
        position: where to read; see `logit_difference`.

    Raises:
        ShapeError: reference logits of another rank.

    Examples:
        >>> logits = jnp.array([[1.0, 2.0, 3.0]])
        >>> float(kl(logits)(logits))
        0.0
    """

    reference: Float[Array, "..."]
    position: Int[Array, "..."] | None

    def __init__(self, reference_logits: Any, *, position: Any = None):
        self.position = as_position(position)
        rows = rows_read(reference_logits, self.position)
        self.reference = jax.nn.log_softmax(rows, axis=-1)

    def score(
        self, logits: Float[Array, "reads k"], prompt: Int[Array, ""] | None
    ) -> Float[Array, ""]:
        """Sums over the vocabulary and averages over the positions read."""
        log_p = own_rows(self.reference, prompt)
        log_q = jax.nn.log_softmax(logits, axis=-1)
        return (jnp.exp(log_p) * (log_p - log_q)).sum(-1).mean()


class l2(AbstractReference):
    r"""Mean squared difference from the logits of a reference run.

    $\frac{1}{|P||V|} \sum_{p \in P, v \in V} (\ell_{pv} - \ell^\mathrm{ref}_{pv})^2$
    over the positions read and the vocabulary, which is what Conmy et al. 2023
    (arXiv:2304.14997) measure on compiled programs.

    Args:
        reference_logits: logits of the reference run, `[seq, vocab]` or
            `[prompt, seq, vocab]`; those at the positions read are kept.
        position: where to read; see `logit_difference`. `[prompt, reads]` reads many
            positions of each prompt.

    Raises:
        ShapeError: reference logits of another rank.

    Examples:
        >>> logits = jnp.zeros((2, 4))
        >>> float(l2(logits)(logits + 3))
        9.0
        >>> both = jnp.array([[0, 1]])
        >>> float(l2(logits, position=both)(logits.at[0].add(2)))
        2.0
    """

    reference: Float[Array, "..."]
    position: Int[Array, "..."] | None

    def __init__(self, reference_logits: Any, *, position: Any = None):
        self.position = as_position(position)
        self.reference = rows_read(reference_logits, self.position)

    def score(
        self, logits: Float[Array, "reads k"], prompt: Int[Array, ""] | None
    ) -> Float[Array, ""]:
        """Averages over the vocabulary and the positions read."""
        return ((logits - own_rows(self.reference, prompt)) ** 2).mean()


def rows_read(
    reference_logits: Any, position: Int[Array, "..."] | None
) -> Float[Array, "..."]:
    """Keeps what a metric reads, `[reads, vocab]` or `[prompt, reads, vocab]`."""
    logits = wide(reals(reference_logits, "Reference logits"))
    if logits.ndim not in (2, 3):
        raise ShapeError(
            f"Reference logits are [seq, vocab] or [prompt, seq, vocab], got shape "
            f"{logits.shape}."
        )
    index, seq = known(position), logits.shape[-2]
    if index is not None and np.any(index >= seq):
        raise PositionError(
            f"Position {index.max()} is beyond the reference logits, which have {seq} "
            "tokens."
        )
    prompts = 1 if position is None or not position.ndim else position.shape[0]
    if logits.ndim == 3 and prompts not in (1, logits.shape[0]):
        raise ShapeError(
            f"Positions of {prompts} prompts do not fit reference logits of "
            f"{logits.shape[0]}."
        )
    where = jnp.asarray(seq - 1 if position is None else position)
    if where.ndim == 0:
        return logits[..., where[None], :]
    where = where[:, None] if where.ndim == 1 else where
    if logits.ndim == 2:
        return logits[where]
    return jnp.take_along_axis(logits, where[..., None], axis=1)


def own_rows(
    reference: Float[Array, "..."], prompt: Int[Array, ""] | None
) -> Float[Array, "reads vocab"]:
    """Returns a prompt's own rows of what was kept."""
    return reference if reference.ndim == 2 else own(reference, prompt)
