"""`rewrite`: change facts in a model's weights."""

import abc
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mijax._errors import ConfigError, PositionError, ShapeError, TokenError
from mijax._progress import Progress, Report, reports
from mijax.core import AbstractModel, Site, capture
from mijax.core.internal import ModelLike, check_linear_writes, checked
from mijax.editing._covariance import KEYS
from mijax.editing._facts import Contexts, Fact, Requests
from mijax.editing._search import Values, ValueSearch, search
from mijax.editing._weight_edit import WeightEdit
from mijax.editing._weights import MLP_OUT, bare, read


class Rewrite(eqx.Module):
    """An edit that rewrites facts, with the results of the search.

    Attributes:
        edit: the edit for all facts.
        parts: the separate edits that make it up, in order.
        values: the optimized values.
        method: the method to use for the next facts in the same model; AlphaEdit
            remembers these facts.
    """

    edit: WeightEdit
    parts: tuple[WeightEdit, ...]
    values: Values
    method: "AbstractRewriter"


class AbstractRewriter(eqx.Module):
    """A method that rewrites facts; see `ROME`, `MEMIT` and `AlphaEdit`."""

    contexts: eqx.AbstractVar[Contexts]
    search: eqx.AbstractVar[ValueSearch]
    example = "ROME(layer=17, covariance=...)"

    @property
    @abc.abstractmethod
    def edited(self) -> tuple[int, ...]:
        """The edited layers."""

    @abc.abstractmethod
    def check(self, model: AbstractModel) -> None:
        """Raise if the method cannot edit this model."""

    @abc.abstractmethod
    def find(
        self,
        model: AbstractModel,
        requests: Requests,
        *,
        batch: int,
        report: Report | None,
    ) -> Rewrite:
        """Find the edit for checked requests."""

    @abc.abstractmethod
    def find_each(self, model: AbstractModel, requests: Requests) -> list[WeightEdit]:
        """Find a separate edit for each checked request in a batch."""


@reports("Rewrite")
@checked
def rewrite(
    model: ModelLike,
    facts: Any,
    *,
    method: AbstractRewriter,
    batch: int = 4,
    progress: Progress = None,
) -> Rewrite:
    """Find an edit that rewrites facts.

    ROME edits one fact at a time, each in the model with the earlier edits; MEMIT and
    AlphaEdit write all facts at once. The given model does not change: apply the
    returned edit to it.

    Args:
        model: a language model (`mijax.models.load(...)`), or a model.
        facts: a `Fact` or a list of them; `Requests` of token ids for a bare model.
        method: `ROME`, `MEMIT` or `AlphaEdit`.
        batch: number of facts whose values are searched at a time.
        progress: called with the number of facts done and the total; `None` shows a bar
            after three seconds in a terminal or notebook, `False` shows none.

    Returns:
        The edit, with the results of the search.

    Raises:
        TokenError: facts without a tokenizer, or targets beyond the vocabulary.
        SiteError: a layer or matrix that the model does not have.
        FrameError: a model whose blocks do not add MLP outputs unchanged, or a
            covariance from another model.
        ShapeError: a model that is not causal, or a singular covariance.
        PositionError: prompts longer than the model's context.

    Examples:
        >>> import mijax.editing as editing
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> tokens = jax.random.randint(jax.random.key(1), (20, 10), 0, 64)
        >>> method = editing.ROME(
        ...     layer=1, covariance=editing.covariance(model, tokens, layers=[1])
        ... )
        >>> fact = editing.Requests.from_ids([[[5, 6, 7], [6, 8]]], [[1, 0]], [[9]])
        >>> found = rewrite(model, fact, method=method)
        >>> models, tokens = (model, found.edit.apply(model)), jnp.array([5, 6, 7])
        >>> before, after = (jax.nn.softmax(mijax.run(m, tokens)[-1]) for m in models)
        >>> bool(after[9] > 1000 * before[9])
        True
    """
    lone, requests = opened_facts(model, facts, method, batch)
    return method.find(lone, requests, batch=batch, report=progress or None)


@reports("Rewrite")
@checked
def rewrite_each(
    model: ModelLike,
    facts: Any,
    *,
    method: AbstractRewriter,
    batch: int = 4,
    progress: Progress = None,
) -> list[WeightEdit]:
    """Find a separate edit for each fact, to compare edits.

    If the method edits one layer, the values for a batch are searched in parallel.

    Args:
        model: as for `rewrite`.
        facts: as for `rewrite`.
        method: as for `rewrite`.
        batch: as for `rewrite`.
        progress: as for `rewrite`.

    Returns:
        One edit per fact.

    Raises:
        MijaxError: as `rewrite` does.

    Examples:
        >>> import mijax.editing as editing
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> tokens = jax.random.randint(jax.random.key(1), (20, 10), 0, 64)
        >>> method = editing.ROME(
        ...     layer=1, covariance=editing.covariance(model, tokens, layers=[1])
        ... )
        >>> prompts = [[[5, 6, 7], [6, 8]], [[4, 3, 7], [3, 8]]]
        >>> facts = editing.Requests.from_ids(prompts, [[1, 0], [1, 0]], [[9], [2]])
        >>> len(rewrite_each(model, facts, method=method))
        2
    """
    lone, requests = opened_facts(model, facts, method, batch)
    found: list[WeightEdit] = []
    for at in range(0, len(requests), batch):
        few = requests[at : at + batch]
        found += method.find_each(lone, few)
        if progress:
            progress(len(found), len(requests))
    return found


def opened_facts(
    model: Any, facts: Any, method: AbstractRewriter, batch: int
) -> tuple[AbstractModel, Requests]:
    """Check the model and the facts, and return the model with its requests.

    Raises:
        MijaxError: as `rewrite` does.
    """
    lone = bare(model)
    if batch < 1:
        raise ConfigError(f"batch must be 1 fact or more, got {batch}.")
    if isinstance(facts, Requests):
        if not len(facts):
            raise ConfigError("The requests have no facts: give one or more.")
        requests = facts
    else:
        given = [facts] if isinstance(facts, Fact) else facts
        known = isinstance(given, Sequence) and given
        if not known or not all(isinstance(fact, Fact) for fact in given):
            raise ConfigError(
                "Expected a Fact, a list of facts or Requests, got "
                f"{type(facts).__name__}."
            )
        if lone is model:
            raise TokenError(
                "A bare model cannot read facts in words: give the language model, "
                "mijax.models.load(...), or Requests.from_ids."
            )
        requests = Requests.from_texts(model.tokenizer, given, method.contexts)
    if not lone.causal:
        raise ShapeError("Facts can be rewritten only in causal language models.")
    check_linear_writes(lone, "rewrite")
    for layer in method.edited:
        read(lone, MLP_OUT, layer)
    method.check(lone)
    vocab, ids = getattr(lone, "vocab", None), np.asarray(requests.target)
    if isinstance(vocab, int) and not (ids.min() >= 0 and ids.max() < vocab):
        raise TokenError(
            f"Targets have tokens {ids.min()} to {ids.max()}, and the model 0 to "
            f"{vocab - 1}: is it another model's tokenizer?"
        )
    return lone, fitted(lone, requests)


def fitted(model: AbstractModel, requests: Requests) -> Requests:
    """Cut padding that does not fit the model's context.

    Raises:
        PositionError: prompts longer than the context.
    """
    context = getattr(model, "context", None)
    longest = int((requests.ends + requests.lengths[:, None] - 1).max())
    longest = max(longest, int(requests.lookup.max()) + 1)
    if context is None or requests.tokens.shape[-1] <= context:
        return requests
    if longest > context:
        raise PositionError(
            f"A prompt with its target has {longest} tokens and the model's context is "
            f"{context}."
        )
    return eqx.tree_at(lambda r: r.tokens, requests, requests.tokens[..., :context])


def values_of(
    method: AbstractRewriter,
    model: AbstractModel,
    requests: Requests,
    *,
    layer: int,
    site: str,
    batch: int,
    report: Report | None = None,
) -> Values:
    """Search for the values of all requests, one batch at a time."""
    parts, total = [], len(requests)
    for at in range(0, total, batch):
        few = requests[at : at + batch]
        parts.append(search(model, few, layer=layer, site=site, settings=method.search))
        if report:
            report(min(at + batch, total), total)
    return jax.tree.map(lambda *a: jnp.concatenate(a), *parts)


def keys_of(
    model: AbstractModel, requests: Requests, layer: int
) -> tuple[Float[np.ndarray, "fact mlp"], Float[np.ndarray, "fact mlp"]]:
    """Return keys at the subject: averaged over contexts, and on the plain prompt.

    Averages are float64.
    """
    facts, prompts, seq = requests.tokens.shape
    tokens = requests.tokens[:, :-1].reshape(-1, seq)
    at = Site(KEYS, layer=layer, position=requests.lookup[:, :-1].reshape(-1))
    found = np.asarray(capture(model, tokens, at).astype(jnp.float32), np.float64)
    found = found.reshape(facts, prompts - 1, -1)
    weights = np.asarray(requests.weights, np.float64)
    return np.einsum("fck,c->fk", found, weights), found[:, 0]


def at_subject(
    model: AbstractModel, requests: Requests, site: str, layer: int
) -> Float[Array, "fact embed"]:
    """Return a site at the subject's last token of the plain prompts."""
    at = Site(site, layer=layer, position=requests.lookup[:, 0])
    return capture(model, requests.tokens[:, 0], at).astype(jnp.float32)
