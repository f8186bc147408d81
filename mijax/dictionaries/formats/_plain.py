"""What the files of all libraries hold, and what it is as a dictionary."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from mijax._errors import LoadError, MijaxError, OutputError
from mijax.dictionaries._dictionary import Dictionary
from mijax.dictionaries._wiring import SAE, Transcoder, Weights
from mijax.dictionaries.architectures._architecture import AbstractArchitecture
from mijax.dictionaries.architectures._batch_topk import BatchTopK
from mijax.dictionaries.architectures._gated import Gated, Magnitudes
from mijax.dictionaries.architectures._jump_relu import JumpReLU
from mijax.dictionaries.architectures._matryoshka import Matryoshka
from mijax.dictionaries.architectures._relu import ReLU


class Gates(NamedTuple):
    """What `Magnitudes` has, as a file keeps it."""

    scale: np.ndarray
    bias: np.ndarray


class Plain(NamedTuple):
    """Arrays of an autoencoder or transcoder, as libraries keep them.

    Latents are `architecture(encoder @ (x - centre) + bias)` where `centred`, else
    `architecture(encoder @ x + bias)`; what is written is `latents @ decoder + centre +
    x @ skip`.

    Attributes:
        architecture: how latents are made sparse.
        encoder: `[latent, in]`.
        bias: `[latent]`.
        decoder: `[latent, out]`.
        centre: `[out]`.
        skip: `[in, out]`, or `None`.
        centred: whether the output's bias is taken off the input.
        transcoder: whether it reads one activation and writes another.
        extra: thresholds themselves, or `Gates`.
        running: threshold of all latents.
        scale: by which activations are multiplied.
    """

    architecture: AbstractArchitecture
    encoder: np.ndarray
    bias: np.ndarray
    decoder: np.ndarray
    centre: np.ndarray
    skip: np.ndarray | None = None
    centred: bool = False
    transcoder: bool = False
    extra: Any = None
    running: Any = None
    scale: float = 1.0


def dictionary_of(plain: Plain, path: Any, dtype: DTypeLike) -> Dictionary:
    """Builds the dictionary that computes the same.

    Raises:
        LoadError: more latents to keep than there are.
    """
    latents, reads = plain.encoder.shape
    writes = plain.decoder.shape[1]
    try:
        plain.architecture.check(latents)
    except MijaxError as error:
        raise LoadError(f"{path}: {error}") from error
    if plain.transcoder or plain.skip is not None or reads != writes:
        other = None if writes == reads else writes
        wiring = Transcoder(reads, other, skip=plain.skip is not None)
        plain = recentred(plain, centred=False)
    else:
        wiring = SAE(reads)
        plain = recentred(plain, centred=True)
    array = lambda a: jnp.asarray(np.asarray(a), dtype)  # noqa: E731
    skip = None if plain.skip is None else array(plain.skip)
    weights = Weights(
        *(array(plain.encoder), array(plain.bias), array(plain.decoder)),
        *(array(plain.centre), skip),
    )
    extra = plain.extra
    if isinstance(extra, Gates):
        extra = Magnitudes(array(extra.scale), array(extra.bias))
    elif extra is not None:
        # Rectified latents are above any threshold below 0 when they are above 0.
        # Rounding to few bits moves the threshold by more than that of weights.
        extra = jnp.asarray(np.maximum(extra, 0), jnp.float32)
    running = None if plain.running is None else jnp.float32(plain.running)
    return Dictionary(
        *(plain.architecture, wiring, weights, extra, running),
        jnp.float32(plain.scale),
    )


def plain_of(dictionary: Dictionary, *, centred: bool, name: str) -> Plain:
    """Takes a dictionary apart; its scale is folded into its weights.

    Args:
        dictionary: an autoencoder or transcoder.
        centred: whether the format takes the output's bias off the input.
        name: of the format, for errors.

    Raises:
        OutputError: a wiring that the format does not have.
    """
    wiring = dictionary.wiring
    if not isinstance(wiring, SAE | Transcoder):
        raise OutputError(
            f"The format '{name}' holds autoencoders and transcoders, not "
            f"{type(wiring).__name__}: save in the format 'mijax'."
        )
    array = lambda a: np.asarray(a.astype(jnp.float32))  # noqa: E731
    weights, scale = dictionary.weights, float(dictionary.scale)
    extra, architecture = dictionary.extra, dictionary.architecture
    if isinstance(architecture, Gated):
        extra = Gates(array(extra.scale), array(extra.bias))
    elif isinstance(architecture, JumpReLU):
        extra = array(extra)
    one = scale == 1
    plain = Plain(
        architecture,
        array(weights.encoder) * (1 if one else np.float32(scale)),
        array(weights.bias),
        array(weights.decoder) / (1 if one else np.float32(scale)),
        array(weights.centre) / (1 if one else np.float32(scale)),
        skip=None if weights.skip is None else array(weights.skip),
        centred=isinstance(wiring, SAE),
        transcoder=isinstance(wiring, Transcoder),
        extra=extra,
        running=None if dictionary.running is None else float(dictionary.running),
    )
    if wiring.reads != wiring.writes and centred:
        raise OutputError(
            f"The format '{name}' takes the output's bias off the input, and these "
            f"have sizes {wiring.writes} and {wiring.reads}."
        )
    return recentred(plain, centred=centred)


def recentred(plain: Plain, *, centred: bool) -> Plain:
    """Moves what centring the input gives into the biases, or out of them."""
    if plain.centred == centred:
        return plain
    off = plain.encoder.astype(np.float64) @ plain.centre.astype(np.float64)
    off = off if centred else -off
    extra = plain.extra
    if isinstance(extra, Gates):
        ratio = np.exp(np.asarray(extra.scale, np.float64))
        extra = Gates(extra.scale, moved(extra.bias, ratio * off))
    bias = moved(plain.bias, off)
    return plain._replace(bias=bias, extra=extra, centred=centred)


def moved(bias: Any, off: np.ndarray) -> np.ndarray:
    """Adds in double precision."""
    bias = np.asarray(bias)
    return (bias.astype(np.float64) + off).astype(bias.dtype)


def thresholds(plain: Plain, name: str) -> np.ndarray:
    """Returns a threshold per latent, of architectures that cut at one.

    Raises:
        OutputError: another architecture, or a threshold that is not known yet.
    """
    latents = len(plain.bias)
    if isinstance(plain.architecture, JumpReLU):
        return plain.extra
    if isinstance(plain.architecture, ReLU):
        return np.zeros(latents, np.float32)
    if isinstance(plain.architecture, BatchTopK | Matryoshka):
        return np.full(latents, known_threshold(plain, name), np.float32)
    raise unwritable(plain.architecture, name, "JumpReLU, ReLU, BatchTopK, Matryoshka")


def known_threshold(plain: Plain, name: str) -> float:
    """Returns the threshold of all latents.

    Raises:
        OutputError: there is none yet.
    """
    if plain.running is None or plain.running < 0:
        raise OutputError(
            f"This {type(plain.architecture).__name__} has no threshold yet, and would "
            f"be read from the format '{name}' as a plain ReLU: train it, or save in "
            "the format 'mijax'."
        )
    return plain.running


def unwritable(architecture: Any, name: str, allowed: str) -> OutputError:
    """The error for an architecture that a format does not have."""
    return OutputError(
        f"The format '{name}' has {allowed}, not {type(architecture).__name__}: save "
        "in another format; 'mijax' has all."
    )
