"""Progress measures: what the model computes with waves of the sum."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mijax.features import best_frequency, fourier_power, keep_sums, wave_logits
from mijax.nn import Transformer

from ._model import head, losses, neurons
from ._training import every_pair

# A neuron is of one frequency if that explains so much of its variance; a frequency
# is a key if the map from neurons to logits has so much of its square norm there.
SINGLE, KEY = 0.85, 0.02


class Measures(NamedTuple):
    """Of one model at one time.

    Attributes:
        train: loss on the pairs that are trained on, in nats.
        test: on the others.
        accuracy: on both, `[train, test]`.
        restricted: loss on all pairs of logits that have only key waves.
        excluded: loss on pairs trained on of logits that have all but these.
        full: loss on all pairs, of sums alone as answers.
    """

    train: Float[Array, ""]
    test: Float[Array, ""]
    accuracy: Float[Array, " 2"]
    restricted: Float[Array, ""]
    excluded: Float[Array, ""]
    full: Float[Array, ""]


class Anatomy(NamedTuple):
    """Of one model that has been trained.

    Attributes:
        keys: frequencies that reach the logits.
        frequency: of every neuron, the one that explains it best.
        explained: share of its variance that it explains.
        waves: share of the logits along the wave of each key.
        sums: share of them that key frequencies of the sum make, whichever gains the
            answer reads cosines and sines of the sum with.
        embedding: square norm of the embedding by frequency.
        readout: square norm of the map from neurons to logits by frequency.
        along: share of variance of the neurons along each key's two directions of that
            map which a wave of the sum explains, `[key, 2]`.
        without: loss on all pairs without the waves of each key, then without all.
    """

    keys: list[int]
    frequency: Int[np.ndarray, " neuron"]
    explained: Float[np.ndarray, " neuron"]
    waves: Float[np.ndarray, " key"]
    sums: float
    embedding: Float[np.ndarray, " frequency"]
    readout: Float[np.ndarray, " frequency"]
    along: Float[np.ndarray, "key 2"]
    without: Float[np.ndarray, " keys"]


@eqx.filter_jit
def _everywhere(model: Transformer) -> tuple[Array, Array, Array]:
    """Computes stream, neurons and logits of all pairs, answers below p only."""
    p = model.embedding.weight.shape[0] - 1
    mid, post = neurons(model, every_pair(p))
    return mid, post, head(model, mid, post)


def key_frequencies(model: Transformer) -> list[int]:
    """Finds the frequencies that the map from neurons to logits has."""
    power = np.array(fourier_power(_readout(model)))
    power[0] = 0
    return [int(k) for k in np.flatnonzero(power >= KEY * power.sum())]


def _readout(model: Transformer) -> Float[Array, "answer neuron"]:
    """Multiplies the maps from neurons to the stream and from there to logits."""
    p = model.embedding.weight.shape[0] - 1
    blocks: Any = model.blocks
    assert model.unembedding is not None
    return model.unembedding.weight[:p] @ blocks.mlp.w_out[0].T


def measure(
    model: Transformer, chosen: Int[np.ndarray, " train"], keys: Sequence[int]
) -> Measures:
    """Measures losses of the logits and of their parts.

    Args:
        model: at any time of its training.
        chosen: indices of the pairs that are trained on.
        keys: the frequencies that count as the circuit, those of the trained model.

    Returns:
        The measures.
    """
    return _measure(model, jnp.asarray(chosen), tuple(keys))


@eqx.filter_jit
def _measure(model: Transformer, chosen: Array, keys: tuple[int, ...]) -> Measures:
    p = model.embedding.weight.shape[0] - 1
    answers = jnp.asarray(every_pair(p).sum(1) % p)
    trained = jnp.zeros(p * p, bool).at[chosen].set(True)
    every = _everywhere(model)[2]
    each = losses(every, answers)
    right = every.argmax(1) == answers

    def of(values: Array, part: Array) -> Array:
        return (values * part).sum() / part.sum()

    # Of the numbers below p alone, as the paper analyses.
    sums = every[:, :p].reshape(p, p, p)
    kept = keep_sums(sums, keys) if keys else jnp.zeros_like(sums)
    only = (kept + sums.mean((0, 1))).reshape(p * p, p)
    rest = (sums - kept).reshape(p * p, p)
    return Measures(
        of(each, trained),
        of(each, ~trained),
        jnp.stack([of(right, trained), of(right, ~trained)]),
        losses(only, answers).mean(),
        of(losses(rest, answers), trained),
        losses(sums.reshape(p * p, p), answers).mean(),
    )


def dissect(model: Transformer) -> Anatomy:
    """Looks for the algorithm in a trained model.

    Args:
        model: the model.

    Returns:
        What was found.
    """
    p = model.embedding.weight.shape[0] - 1
    _, post, every = _everywhere(model)
    post, sums = post.reshape(p, p, -1), every[:, :p].reshape(p, p, p)
    frequency, explained = best_frequency(post)
    keys = key_frequencies(model)
    readout = _readout(model)
    answers = np.arange(p)
    centred = sums - sums.mean(-1, keepdims=True)
    of_sums = keep_sums(centred, keys) if keys else jnp.zeros_like(centred)
    along = []
    for k in keys:
        angle = 2 * np.pi * k * answers / p
        for wave in (np.cos(angle), np.sin(angle)):
            values = post @ (jnp.float32(wave) @ readout)
            varying = values - values.mean()
            kept = keep_sums(varying, [k])
            along.append(float((kept**2).sum() / (varying**2).sum()))
    right = jnp.asarray(every_pair(p).sum(1) % p)
    without = []
    for some in [*([k] for k in keys), keys]:
        rest = sums - keep_sums(sums, some) if some else sums
        without.append(float(losses(rest.reshape(p * p, p), right).mean()))
    return Anatomy(
        keys,
        np.asarray(frequency),
        np.asarray(explained),
        np.asarray(wave_logits(sums, keys)) if keys else np.zeros(0),
        float((of_sums**2).sum() / (centred**2).sum()),
        np.asarray(fourier_power(model.embedding.weight[:p])),
        np.asarray(fourier_power(readout)),
        np.array(along).reshape(-1, 2),
        np.array(without),
    )
