"""Eigenvalues of the circuits of heads, token by token."""

import numpy as np
from jaxtyping import Complex, Float

from mijax._errors import SiteError
from mijax.core import AbstractModel
from mijax.core.internal import checked
from mijax.lens._weights import heads_of, tables_of


@checked
def ov_eigenvalues(model: AbstractModel) -> Complex[np.ndarray, "layer heads head_dim"]:
    r"""Eigenvalues of the full OV circuit of every head.

    $W_U W_{OV} W_E$ with $W_{OV} = W_O W_V$ says how the token that a head attends to
    changes the logits of all tokens (Elhage et al. 2021, "A Mathematical Framework",
    transformer-circuits.pub/2021/framework). Those that are not 0 are eigenvalues of
    the head_dim x head_dim matrix $W_V W_E W_U W_O$: no vocab x vocab matrix is made.

    Weights of norms and the centring of LayerNorm are included, their scales and all
    biases are not; MLPs and positions count for nothing. Under grouped queries every
    query head has the value weights of its group.

    Args:
        model: a transformer with tokens at both ends.

    Returns:
        `head_dim` eigenvalues of every head; the others are 0.

    Raises:
        SiteError: the weights of its heads are not known.

    Examples:
        >>> import jax, mijax
        >>> model = mijax.testing.tiny_attention_only(jax.random.key(0))
        >>> ov_eigenvalues(model).shape
        (2, 4, 8)
    """
    heads = heads_of(model)
    embedding, readout = tables_of(model)
    reads, writes = embedding @ heads.v, heads.o @ readout.T
    return np.linalg.eigvals(writes @ reads)


@checked
def qk_eigenvalues(
    model: AbstractModel, *, through: tuple[int, int] | None = None
) -> Complex[np.ndarray, "layer heads head_dim"]:
    r"""Eigenvalues of the full QK circuit of every head.

    $W_E^\top W_{QK} W_E$ says how much a token attends to another. With `through`, the
    keys read what an earlier head $h$ writes, $W_E^\top W_{QK} W_{OV}^h W_E$: a token
    attends to where that head has put another. For the head that attends to the
    previous token this is the circuit by which induction heads match (Elhage et al.
    2021). Computed as `ov_eigenvalues` is, with the same left out; rotary positions
    are those of a key at the query itself.

    Args:
        model: a transformer.
        through: layer and head, both from 0, which the keys are read through.

    Returns:
        `head_dim` eigenvalues of every head; the others are 0. With `through`, those of
        the layers before or of that head are 0.

    Raises:
        SiteError: no such head, or the weights of the heads are not known.

    Examples:
        >>> import mijax
        >>> model = mijax.models.load("induction-2l").model
        >>> matching = positivity(qk_eigenvalues(model, through=(0, 2)))
        >>> copying = positivity(ov_eigenvalues(model))
        >>> matching.shape, copying.shape
        ((2, 4), (2, 4))
    """
    heads = heads_of(model)
    tokens, _ = tables_of(model)
    moved = tokens
    if through is not None:
        layer, head = through
        if not (0 <= layer < len(heads.q) and 0 <= head < heads.q.shape[1]):
            layers, count = heads.q.shape[:2]
            raise SiteError(
                f"There is no head {through} to read keys through: there are {layers} "
                f"layers of {count} heads, from (0, 0) on."
            )
        moved = tokens @ heads.v[layer, head] @ heads.o[layer, head]
    found = np.linalg.eigvals((moved @ heads.k).swapaxes(-1, -2) @ (tokens @ heads.q))
    if through is not None:
        found[: through[0] + 1] = 0
    return found


def positivity(
    eigenvalues: Complex[np.ndarray, "*head head_dim"]
    | Float[np.ndarray, "*head head_dim"],
) -> Float[np.ndarray, "*head"]:
    r"""Says how positive eigenvalues are.

    $$\sum_i \mathrm{Re} \lambda_i / \sum_i |\lambda_i|$$

    Of an OV circuit it is the copying score: 1 is a head that raises the token that it
    attends to whatever that is, -1 one that lowers it. Of a QK circuit, 1 is a head
    whose queries attend to equal tokens (Elhage et al. 2021).

    Args:
        eigenvalues: along the last axis.

    Returns:
        Between -1 and 1; 0 where all eigenvalues are 0.

    Examples:
        >>> positivity(np.array([[3.0, -1.0], [0.0, 0.0]])).tolist()
        [0.5, 0.0]
    """
    size = np.abs(eigenvalues).sum(-1)
    return np.real(eigenvalues).sum(-1) / np.where(size > 0, size, 1)
