"""Second moments of keys, the inputs of a weight over text."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int

from mijax._errors import ConfigError, FrameError, ShapeError, SiteError, TokenError
from mijax._progress import Progress, reports
from mijax.core import AbstractModel, Site, capture
from mijax.core.internal import (
    Journal,
    ModelLike,
    as_tokens,
    checked,
    cut,
    digest,
    opened,
    padded_lengths,
)
from mijax.data import Tokens
from mijax.editing._weights import MLP_OUT, bare, read, weight_names

KEYS = "mlp_post"
# Smallest eigenvalue relative to the largest below which float32 sums are noise.
LEAST = 1e-7


class Covariance(eqx.Module):
    r"""Uncentered second moment of an MLP's keys, $C = E[k k^\top]$, per layer.

    Attributes:
        moments: `[layer, mlp, mlp]`, float32, on the host.
        layers: index of the layer of each moment.
        count: number of tokens.
        bases: SHA-256 of the weights that produce the keys, per layer: all weights of
            the MLP except the output matrix, which edits change.
    """

    moments: Float32[np.ndarray, "layer mlp mlp"]
    layers: tuple[int, ...] = eqx.field(static=True)
    count: int = eqx.field(static=True)
    bases: tuple[str, ...] = eqx.field(static=True)

    def __repr__(self) -> str:
        layers = ", ".join(map(str, self.layers))
        width = self.moments.shape[-1]
        return cut(f"Covariance(layers {layers}; {self.count} tokens, width {width})")

    def at(self, layer: int) -> Float32[np.ndarray, "mlp mlp"]:
        """Return the second moment of one layer.

        Raises:
            SiteError: a layer without a second moment.
        """
        if layer not in self.layers:
            raise SiteError(
                f"The covariance has layers {list(self.layers)}, got layer {layer}: "
                "estimate it with mijax.editing.covariance(..., layers=[...])."
            )
        return self.moments[self.layers.index(layer)]

    def solve(
        self, layer: int, keys: Float[np.ndarray, "mlp *n"]
    ) -> Float[np.ndarray, "mlp *n"]:
        r"""Return $C^{-1} k$, solved in float64.

        Raises:
            SiteError: a layer without a second moment.
            ShapeError: a singular second moment.
        """
        return np.linalg.solve(self._regular(layer), np.asarray(keys, np.float64))

    def _regular(self, layer: int) -> np.ndarray:
        """Return a second moment in float64 that has an inverse."""
        matrix = np.asarray(self.at(layer), np.float64)
        values = np.linalg.eigvalsh(matrix)
        rank = int((values > LEAST * values[-1]).sum()) if values[-1] > 0 else 0
        if rank < len(values):
            raise ShapeError(
                f"The covariance of layer {layer} is singular: rank {rank} of "
                f"{len(values)} from {self.count} tokens. Estimate it from more text, "
                "or use covariance.regularized(1e-3)."
            )
        return matrix

    def regularized(self, fraction: float) -> "Covariance":
        """Add a fraction of the mean eigenvalue to the diagonal of each layer.

        Args:
            fraction: 0 or more. Published edits use none.

        Returns:
            A covariance with an inverse, even if estimated from little text.
        """
        width = self.moments.shape[-1]
        means = np.trace(self.moments, axis1=1, axis2=2) / width
        ridge = fraction * means[:, None, None] * np.eye(width)
        moments = (self.moments + ridge).astype(np.float32)
        return eqx.tree_at(lambda c: c.moments, self, moments)

    def null_space(
        self, layer: int, *, below: float | None = None, fraction: float | None = None
    ) -> Float[np.ndarray, "mlp mlp"]:
        r"""Return the projection onto directions that keys hardly use, $U_0 U_0^\top$.

        Args:
            layer: the layer.
            below: keep eigenvectors with eigenvalues below this number. AlphaEdit
                uses 0.02, which depends on the scale of the activations.
            fraction: keep this fraction of all eigenvectors, those with the smallest
                eigenvalues.

        Returns:
            The projection, in float64.

        Raises:
            ConfigError: both or neither of `below` and `fraction`, or none or all of
                the directions are kept.
        """
        if (below is None) == (fraction is None):
            raise ConfigError("Give below=, an eigenvalue, or fraction=, not both.")
        values, vectors = np.linalg.eigh(np.asarray(self.at(layer), np.float64))
        if below is not None:
            kept = int((values < below).sum())
        else:
            assert fraction is not None
            kept = round(fraction * len(values))
        if not 0 < kept < len(values):
            raise ConfigError(
                f"{kept} of {len(values)} directions in layer {layer} would be free to "
                f"edit: eigenvalues are {values[0]:.3g} to {values[-1]:.3g}. Give "
                "another threshold, or fraction=."
            )
        free = vectors[:, :kept]
        return free @ free.T

    def check(self, model: Any, layer: int, weight: str = MLP_OUT) -> None:
        """Raise unless the keys were measured on this model.

        Args:
            model: the model, edited or not.
            layer: the layer.
            weight: name of the edited matrix.

        Raises:
            SiteError: a layer without a second moment.
            FrameError: the MLP's weights are different.
        """
        self.at(layer)
        base = self.bases[self.layers.index(layer)]
        if base and base != memory_digest(bare(model), layer, weight):
            raise FrameError(
                f"The covariance of layer {layer} was estimated with another model or "
                "weight processing: estimate it with this one."
            )


@reports("Covariance")
@checked
def covariance(
    model: ModelLike,
    source: Any,
    *,
    layers: Sequence[int],
    batch: int = 8,
    resume: str | os.PathLike[str] | None = None,
    progress: Progress = None,
) -> Covariance:
    r"""Estimate the second moment of keys over text.

    $C_l = \frac1n \sum_t k_{l,t} k_{l,t}^\top$ with the activations $k$ at `mlp_post`,
    the inputs of the MLP's output matrix, at every token except padding. It is not
    centered. Sums within a batch are float32, sums over batches float64. Source: Meng
    et al. 2022 (arXiv:2202.05262), who use 100,000 texts from Wikipedia.

    Args:
        model: a decoder, or a language model.
        source: `mijax.data.Tokens` with `epochs=1`, `Prompts`, token ids
            `[batch, seq]`, or, for a language model, a list of texts.
        layers: layers to measure, all in one pass.
        batch: number of prompts to run at a time; `Tokens` set their own batch size.
        resume: file that stores an interrupted estimate, to continue from later.
        progress: called with the number of batches done and the total; `None` shows a
            bar after three seconds in a terminal or notebook, `False` shows none.

    Returns:
        The second moments. `save_covariance` saves them.

    Raises:
        SiteError: a layer or site that the model does not have.
        ConfigError: no layers, or layers out of order.
        OutputError: the file to resume from belongs to another job.

    Examples:
        >>> import mijax
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> tokens = jax.random.randint(jax.random.key(1), (20, 10), 0, 64)
        >>> found = covariance(model, tokens, layers=[0, 1])
        >>> found.moments.shape, found.count
        ((2, 64, 64), 200)
    """
    chosen = tuple(int(layer) for layer in layers)
    if not chosen or list(chosen) != sorted(set(chosen)):
        raise ConfigError(f"layers must be in ascending order, got {list(layers)}.")
    if batch < 1:
        raise ConfigError(f"batch must be 1 prompt or more, got {batch}.")
    if isinstance(source, Tokens):
        lone: Any = bare(model)
        batches, identity = _of_stream(source), source.digest
    else:
        lone, given = opened(model, source)
        batches, identity = _of_prompts(given, batch)
    bases = tuple(memory_digest(lone, layer) for layer in chosen)
    at = jnp.asarray(chosen, jnp.int32)
    width = read(lone, MLP_OUT, chosen[0]).shape[0]
    total = np.zeros((len(chosen), width + 1, width), np.float64)
    job = None if resume is None else (digest(lone), identity, chosen)
    with Journal(resume, job) as journal:
        journal.load(total)
        done = journal.done
        try:
            for i in range(done, len(batches)):
                tokens, mask = batches[i]()
                given = (jnp.asarray(tokens), jnp.asarray(mask), at)
                total[:, :width] += np.asarray(_moments(lone, *given))
                # The token count is stored with the sums, so it also resumes.
                total[:, width, 0] += int(np.sum(mask))
                done = i + 1
                if progress:
                    progress(done, len(batches))
                if journal.due():
                    journal.save(total, done)
        finally:
            if done > journal.done:
                journal.save(total, done)
    count = int(total[0, width, 0])
    moments = (total[:, :width] / count).astype(np.float32)
    return Covariance(moments, chosen, count, bases)


Batch = tuple[Int[np.ndarray, "batch seq"], Bool[np.ndarray, "batch seq"]]


def _of_stream(source: Tokens) -> list[Callable[[], Batch]]:
    """Return the batches in one pass over a stream."""
    if source.length is None:
        raise TokenError("The token stream never ends: give Tokens(..., epochs=1).")

    def one(i: int) -> Batch:
        found = source.whole(i)
        return np.asarray(found.tokens), np.asarray(found.mask)

    return [lambda i=i: one(i) for i in range(source.length)]


def _of_prompts(given: Any, batch: int) -> tuple[list[Callable[[], Batch]], str]:
    """Return batches of equal shape, and a digest of the estimate's inputs."""
    tokens = np.atleast_2d(np.asarray(as_tokens(given)))
    lengths = padded_lengths(given, tokens.shape[1])
    full = np.full(len(tokens), tokens.shape[1])
    lengths = full if lengths is None else np.asarray(lengths)
    mask = np.arange(tokens.shape[1]) < lengths[:, None]
    fill = -len(tokens) % min(batch, len(tokens))
    batch = min(batch, len(tokens))
    # Rows that fill the last batch are masked.
    tokens = np.pad(tokens, ((0, fill), (0, 0)))
    mask = np.pad(mask, ((0, fill), (0, 0)))
    parts = [slice(i, i + batch) for i in range(0, len(tokens), batch)]
    batches = [lambda at=at: (tokens[at], mask[at]) for at in parts]
    return batches, digest((tokens, mask, batch))


@eqx.filter_jit
def _moments(
    model: AbstractModel,
    tokens: Int[Array, "batch seq"],
    mask: Bool[Array, "batch seq"],
    layers: Int[Array, " layer"],
) -> Float[Array, "layer mlp mlp"]:
    """Sum outer products of the keys in one batch."""
    keys = capture(model, tokens, Site(KEYS, layer=layers)).astype(jnp.float32)
    keys = jnp.where(mask[:, None, :, None], keys, 0)
    return jnp.einsum("blsi,blsj->lij", keys, keys, precision="highest")


def memory_digest(model: Any, layer: int, weight: str = MLP_OUT) -> str:
    """Return the SHA-256 of the weights that produce a matrix's inputs in its layer.

    Raises:
        SiteError: the model has no such matrix, or more than one per layer.
    """
    matrix = read(model, weight, layer)
    if matrix.ndim != 2:
        raise SiteError(
            f"{weight} of layer {layer} has shape {matrix.shape}, expected one matrix: "
            "editing needs an MLP with a single output matrix, not experts."
        )
    inside = weight.rsplit(".", 1)[0] + "."
    names = [n for n in weight_names(model) if n.startswith(inside) and n != weight]
    return digest([np.asarray(read(model, name, layer)) for name in names])
