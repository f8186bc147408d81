"""`recovered`: what a model loses when it runs on what a dictionary says."""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from mijax._errors import PositionError, ShapeError
from mijax.core import (
    AbstractEdit,
    AbstractModel,
    Interval,
    Place,
    Set,
    Site,
    Zero,
    capture,
)
from mijax.core.internal import as_tokens, masked_lengths
from mijax.data import Prompts
from mijax.dictionaries._dictionary import Dictionary
from mijax.dictionaries._latents import of_one_layer
from mijax.dictionaries._splice import Splice

RUNS = ("spliced", "zero", "mean")
RESAMPLES = 2000


class Recovered(eqx.Module):
    r"""Loss of a model that runs on a dictionary, between clean and ablated runs.

    Every number is a mean over tokens with a bootstrap interval over prompts, in nats
    where it is no share.

    Attributes:
        ce: cross-entropy of the next token, of runs `"clean"`, `"spliced"`, `"zero"`
            and `"mean"` (ablated).
        kl: divergence of the last three from the clean run.
        ce_share: share of the loss that the dictionary gives back,
            $(m_0 - m) / (m_0 - m_\mathrm{clean})$: 1 is the clean run and 0 the
            ablation, `"zero"` or `"mean"`.
        kl_share: the same of the divergence.
        tokens: how many count.
    """

    ce: dict[str, Interval]
    kl: dict[str, Interval]
    ce_share: dict[str, Interval]
    kl_share: dict[str, Interval]
    tokens: int = eqx.field(static=True)

    def __str__(self) -> str:
        """Returns a table, a line per run."""
        heads = ("CE", "KL", "CE share", "KL share")
        lines = [" " * 8 + "".join(f"{head:>10}" for head in heads)]
        for name, ce in self.ce.items():
            parts = (self.kl, self.ce_share, self.kl_share)
            cells = [ce, *(part[name] for part in parts if name in part)]
            row = "".join(f"{float(cell.mean):10.4g}" for cell in cells)
            lines.append(f"{name:8}{row}")
        return "\n".join(lines)


def recovered(
    model: AbstractModel,
    dictionary: Dictionary,
    prompts: Prompts | Int[Array, "batch seq"],
    site: Site,
    *,
    exclude: Sequence[int] = (),
    batch: int = 8,
    key: PRNGKeyArray | None = None,
) -> Recovered:
    """Measures what a model loses when a dictionary replaces an activation.

    Padding and excluded tokens keep their activations in every run, and what is
    predicted from them does not count.

    Args:
        model: any `AbstractModel`.
        dictionary: an SAE of the site.
        prompts: prompts, or tokens without padding.
        site: where, with its layer; with its head for a dictionary of one head: only
            that head is replaced, and ablated.
        exclude: ids of tokens that are left alone, those that the dictionary was not
            trained on: `[tokenizer.bos]`.
        batch: prompts at a time.
        key: of the bootstrap; `jax.random.key(0)` by default.

    Returns:
        Losses and shares.

    Raises:
        SiteError: a site that the model does not have, or without its layer.
        ShapeError: a dictionary that does not write what it reads there; one of a
            single head, and no head in the site.
        PositionError: a site with a position, a feature or several heads, or no tokens
            that count.

    Examples:
        >>> from mijax import dictionaries as d
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> sae = d.untrained(d.TopK(4), d.SAE(32), latents=64, key=jax.random.key(1))
        >>> tokens = jax.random.randint(jax.random.key(2), (4, 6), 0, 64)
        >>> found = recovered(model, sae, tokens, Site("resid_post", layer=1))
        >>> found.tokens, sorted(found.ce)
        (20, ['clean', 'mean', 'spliced', 'zero'])
    """
    tokens = as_tokens(prompts)
    if tokens.ndim != 2:
        raise ShapeError(f"Give a batch of prompts, got tokens {tokens.shape}.")
    lengths = masked_lengths(model, prompts, tokens.shape[1])
    one = site.head is None or (eqx.is_array_like(site.head) and not np.ndim(site.head))
    if site.position is not None or site.feature is not None or not one:
        raise PositionError(
            "A dictionary replaces whole activations, or those of one head: give no "
            "position or feature, and at most one head."
        )
    of_one_layer(site)
    real = (
        prompts.mask if isinstance(prompts, Prompts) else jnp.ones(tokens.shape, bool)
    )
    mask = real & ~jnp.isin(tokens, jnp.asarray(list(exclude), jnp.int32))
    # A token counts if it is followed by one.
    counts = mask & jnp.pad(real[:, 1:], ((0, 0), (0, 1)))
    if not counts.any():
        raise PositionError("No token counts: each is padding, excluded or the last.")
    x = capture(model, prompts, site).astype(jnp.float32)
    reads = dictionary.wiring.reads
    if site.head is None and x.ndim > 3 and reads == x.shape[-1:] != x.shape[2:]:
        raise ShapeError(
            f"The dictionary reads {reads[0]} numbers, one of {x.shape[2]} heads: give "
            f"Site({site.name!r}, layer=..., head=...)."
        )
    weight = mask.reshape(*mask.shape, *(1,) * (x.ndim - 2))
    mean = (x * weight).sum((0, 1)) / mask.sum()
    layer = None if site.layer is None else jnp.asarray(site.layer, jnp.int32)
    head = None if site.head is None else jnp.asarray(site.head, jnp.int32)
    edits = (Splice(dictionary, error=False), Zero(), Set(mean))
    found = _losses(
        *(model, edits, Site(site.name, layer, head=head)),
        (tokens, lengths, mask, counts),
        min(batch, len(tokens)),
    )
    ce, kl = (np.asarray(a, np.float64) for a in found)
    draws = drawn(jax.random.key(0) if key is None else key, len(tokens))
    return summary(ce, kl, np.asarray(counts.sum(1), np.float64), draws)


def summary(
    ce: np.ndarray, kl: np.ndarray, counts: np.ndarray, draws: np.ndarray
) -> Recovered:
    """Makes means and shares of sums over each prompt's tokens."""
    runs = ("clean", *RUNS)
    of = {name: ce[:, i] for i, name in enumerate(runs)}
    apart = {name: kl[:, i] for i, name in enumerate(runs)}
    return Recovered(
        {name: ratio(of[name], counts, draws) for name in runs},
        {name: ratio(apart[name], counts, draws) for name in RUNS},
        {
            name: ratio(of[name] - of["spliced"], of[name] - of["clean"], draws)
            for name in RUNS[1:]
        },
        {
            name: ratio(apart[name] - apart["spliced"], apart[name], draws)
            for name in RUNS[1:]
        },
        int(counts.sum()),
    )


def drawn(key: PRNGKeyArray, n: int) -> Int[np.ndarray, "resample prompt"]:
    """Draws prompts with replacement."""
    return np.asarray(jax.random.randint(key, (RESAMPLES, n), 0, n))


def ratio(above: np.ndarray, below: np.ndarray, draws: np.ndarray) -> Interval:
    """Returns a ratio of sums over prompts, with its percentile bootstrap."""
    with np.errstate(divide="ignore", invalid="ignore"):
        value = above.sum() / below.sum()
        each = above[draws].sum(1) / below[draws].sum(1)
    low, high = np.nanpercentile(each, [2.5, 97.5]) if len(each) else (value, value)
    return Interval(
        *(jnp.float32(value), jnp.float32(low), jnp.float32(high)), len(above), 0.95
    )


@eqx.filter_jit
def _losses(
    model: AbstractModel,
    edits: tuple[AbstractEdit, ...],
    site: Site,
    rows: tuple[Array, Array | None, Array, Array],
    batch: int,
) -> tuple[Float[Array, "prompt run"], Float[Array, "prompt run"]]:
    """Sums cross-entropy and divergence over the tokens of each prompt that count."""

    def one(given: tuple[Array, Array | None, Array, Array]) -> tuple[Array, Array]:
        tokens, length, mask, counts = given
        labels = jnp.roll(tokens, -1)

        def run(clean: Array, which: Array) -> tuple[Array, tuple[Array, Array]]:
            edit = Masked(OneOf(edits, which), mask).at(site)
            logits = model(tokens, edit, length=length)[0].astype(jnp.float32)
            log_p = jax.nn.log_softmax(logits, axis=-1)
            clean = jnp.where(which == 0, log_p, clean)
            ce = -jnp.take_along_axis(log_p, labels[:, None], axis=1)[:, 0]
            kl = (jnp.exp(clean) * (clean - log_p)).sum(-1)
            # 0 times an infinite loss of what does not count would be no number.
            return clean, (counted(ce), counted(kl))

        def counted(values: Array) -> Array:
            return jnp.where(counts, values, 0).sum()

        spec = jax.eval_shape(lambda: model(tokens)[0])
        start = jnp.zeros(spec.shape, jnp.float32)
        return jax.lax.scan(run, start, jnp.arange(1 + len(edits)))[1]

    return jax.lax.map(one, rows, batch_size=batch)


class OneOf(AbstractEdit):
    """None of some edits, or one of them: all runs are one program."""

    edits: tuple[AbstractEdit, ...]
    which: Int[Array, ""]

    def bind(self, site: Site) -> "OneOf":
        """Binds every edit."""
        return OneOf(tuple(edit.bind(site) for edit in self.edits), self.which)

    def __call__(self, x: Float[Array, "rows ..."], place: Place) -> Array:
        """Branches."""
        branches = [lambda x, e=e: e(x, place) for e in self.edits]
        return jax.lax.switch(self.which, [lambda x: x, *branches], x)


class Masked(AbstractEdit):
    """An edit at some positions of one prompt."""

    edit: AbstractEdit
    mask: Bool[Array, " seq"]

    def bind(self, site: Site) -> "Masked":
        """Binds the edit."""
        return Masked(self.edit.bind(site), self.mask)

    def __call__(self, x: Float[Array, "rows ..."], place: Place) -> Array:
        """Returns edited rows where the mask says so."""
        here = self.mask[place.rows.position].reshape(-1, *(1,) * (x.ndim - 1))
        return jnp.where(here, self.edit(x, place), x)
