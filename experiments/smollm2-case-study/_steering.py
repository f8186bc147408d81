"""A direction for sentiment, added while the model writes."""

import re
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

import mijax
import mijax.experiment
from mijax._errors import ConfigError
from mijax.core import AbstractMetric
from mijax.data import Prompts, Tokenizer
from mijax.models import Loaded
from mijax.nn import Transformer
from mijax.probes import Means, fit

from ._sentences import BAD, GOOD, NEUTRAL, PAIRS

# Pairs that the direction is not made of.
HELD_OUT = 8


class Direction(NamedTuple):
    """The difference of the class means at one layer.

    Attributes:
        step: from the mean of bad sentences to that of good ones.
        accuracy: of held-out sentences, at the layer.
    """

    step: Float[Array, " embed"]
    accuracy: mijax.Interval


class LogOdds(AbstractMetric):
    """Log probability of a set of next tokens minus that of another set, in nats."""

    good: Int[Array, " good"]
    bad: Int[Array, " bad"]
    position: Int[Array, " prompt"] | None

    def ids(self, prompt: Int[Array, ""] | None) -> Int[Array, " k"]:
        """Reads both sets; what they are normalised by cancels."""
        return jnp.concatenate([self.good, self.bad])

    def score(
        self, logits: Float[Array, "reads k"], prompt: Int[Array, ""] | None
    ) -> Float[Array, ""]:
        """Subtracts the logs of the summed probabilities."""
        k = len(self.good)
        good, bad = logits[:, :k], logits[:, k:]
        return (jax.nn.logsumexp(good, -1) - jax.nn.logsumexp(bad, -1)).mean()


class Steered(NamedTuple):
    """What adding a direction does.

    Attributes:
        odds: log odds of good against bad words, `[prompt, strength]`.
        tokens: continuations by strength, `[prompt, step]`.
        surprise: of their tokens under the model as it is, nats, `[prompt]`.
    """

    odds: Float[np.ndarray, "prompt strength"]
    tokens: dict[float, np.ndarray]
    surprise: dict[float, np.ndarray]


def neutral(tokenizer: Tokenizer) -> Prompts:
    """Returns the prompts that are continued."""
    return Prompts.from_texts(tokenizer, NEUTRAL)


def direction(loaded: Loaded, layer: int) -> Direction:
    """Subtracts the mean of bad sentences from that of good ones.

    A sentence is the mean of its tokens but the first, on which attention rests.
    """
    texts = [text for pair in PAIRS for text in pair]
    prompts = Prompts.from_texts(loaded.tokenizer, texts)
    acts = mijax.capture(
        loaded.model, prompts.tokens, mijax.Site("resid_post", layer=layer)
    )
    keep = (prompts.mask & (jnp.arange(prompts.tokens.shape[1]) > 0))[..., None]
    x = (acts * keep).sum(1) / keep.sum(1)
    y = np.tile([1, 0], len(PAIRS))
    cut = 2 * (len(PAIRS) - HELD_OUT)
    found = fit(Means(), x[:cut], y[:cut], x[cut:], y[cut:])
    return Direction(x[:cut:2].mean(0) - x[1:cut:2].mean(0), found.held_out)


def alike(step: Float[Array, " embed"], n: int, seed: int) -> list[Array]:
    """Draws random directions of the same norm."""
    drawn = np.random.default_rng(seed).normal(size=(n, len(step)))
    drawn *= np.linalg.norm(step) / np.linalg.norm(drawn, axis=1, keepdims=True)
    return [jnp.asarray(one, jnp.float32) for one in drawn]


def odds(
    loaded: Loaded,
    step: Float[Array, " embed"],
    layer: int,
    strengths: tuple[float, ...],
) -> Float[np.ndarray, "prompt strength"]:
    """Measures the next word at all strengths, in one program."""
    prompts = neutral(loaded.tokenizer)
    good, bad = (words(loaded.tokenizer, some) for some in (GOOD, BAD))
    found = mijax.sweep(
        *(loaded.model, prompts.tokens),
        mijax.Add(step).at("resid_post", layer=layer),
        over={"coefficient": list(strengths)},
        metric=LogOdds(good, bad, prompts.last),
    )
    return np.asarray(found.values)


def words(tokenizer: Tokenizer, some: tuple[str, ...]) -> Int[Array, " word"]:
    """Returns the words that are one token after a space."""
    rows = [tokenizer.encode(" " + word) for word in some]
    ids = [row[0] for row in rows if len(row) == 1]
    if not ids:
        raise ConfigError(
            f"No word like {' ' + some[0]!r} is one token: give --layer null, which "
            "leaves steering out."
        )
    return jnp.array(ids, jnp.int32)


def write(
    loaded: Loaded, step: Float[Array, " embed"], layer: int, strength: float, n: int
) -> tuple[Int[np.ndarray, "prompt step"], Float[np.ndarray, " prompt"]]:
    """Continues the prompts with the direction added, and reads that without it."""
    prompts = neutral(loaded.tokenizer)
    edit = mijax.Add(step, jnp.float32(strength)).at("resid_post", layer=layer)
    new = mijax.generate(
        loaded.model, prompts.tokens, steps=n, lengths=prompts.lengths, edits=edit
    )
    return np.asarray(new), np.asarray(surprise(loaded.model, prompts, new))


def surprise(
    model: Transformer, prompts: Prompts, new: Int[Array, "prompt step"]
) -> Float[Array, " prompt"]:
    """Mean over new tokens of minus their log probability, in nats."""
    n = new.shape[1]
    tokens = np.pad(np.asarray(prompts.tokens), ((0, 0), (0, n)))
    at = np.asarray(prompts.lengths)[:, None] + np.arange(n)
    np.put_along_axis(tokens, at, np.asarray(new), axis=1)
    return _surprise(model, jnp.asarray(tokens), jnp.asarray(at))


@eqx.filter_jit
def _surprise(model: Transformer, tokens: Array, at: Array) -> Array:
    def one(row: Array, at: Array) -> Array:
        _, acts = model(row)
        said = model.unembed(model.normalise(acts.blocks.resid_post[-1][at - 1]))
        chosen = jnp.take_along_axis(said, row[at][:, None], axis=1)[:, 0]
        return (jax.nn.logsumexp(said, -1) - chosen).mean()

    return jax.vmap(one)(tokens, at)


def tone(tokenizer: Tokenizer, tokens: Int[np.ndarray, "prompt step"]) -> np.ndarray:
    """Counts good words minus bad ones in each continuation."""
    counts = []
    for row in tokens:
        found = re.findall(r"[a-z]+", tokenizer.decode(row.tolist()).lower())
        good, bad = (sum(word in some for word in found) for some in (GOOD, BAD))
        counts.append(good - bad)
    return np.array(counts, np.float32)


def steer(
    loaded: Loaded,
    step: Float[Array, " embed"],
    *,
    layer: int,
    strengths: tuple[float, ...],
    written: tuple[float, ...],
    n: int,
) -> Steered:
    """Adds one direction at all strengths; writes text at some of them."""
    found: dict[float, Any] = {
        strength: write(loaded, step, layer, strength, n) for strength in written
    }
    return Steered(
        odds(loaded, step, layer, strengths),
        {strength: tokens for strength, (tokens, _) in found.items()},
        {strength: cost for strength, (_, cost) in found.items()},
    )
