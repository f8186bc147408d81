"""`evaluate`: sparsity and fidelity of a dictionary on activations."""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from mijax._errors import ConfigError, ShapeError
from mijax.core import Interval, interval
from mijax.data import AbstractSource
from mijax.dictionaries._dictionary import Dictionary
from mijax.dictionaries._wiring import check_batch
from mijax.dictionaries.evaluation._baselines import WIDEST, principal, random_like


class Evaluation(eqx.Module):
    r"""How sparse a dictionary is, and what it misses.

    Means over examples with normal intervals; ratios of means with those of the delta
    method. None of them depends on the size of batches.

    Attributes:
        l0: active latents per example.
        fvu: fraction of variance unexplained, $\sum \lVert y - \hat y \rVert^2 /
            \sum \lVert y - \bar y \rVert^2$ with the mean $\bar y$ over examples: 0 is
            perfect, 1 is no better than the mean.
        cosine: cosine of what is written with what it should be.
        bias: relative reconstruction bias, $\sum \lVert \hat y \rVert^2 / \sum \hat y
            \cdot y$ (Rajamanoharan et al. 2024, arXiv:2404.16014): below 1 where
            latents are shrunk.
        density: share of examples in which each latent is active, `[latent]`.
        dead: share of latents that are active in no example.
        dense: share of latents active in more than `threshold` of the examples.
        threshold: what counts as dense.
        examples: how many there were.
        baselines: the same of `"random"`, a dictionary as drawn, and of `"pca"`,
            principal components, both as sparse as this one.
    """

    l0: Interval
    fvu: Interval
    cosine: Interval
    bias: Interval
    density: Float[Array, " latent"]
    dead: float
    dense: float
    threshold: float
    examples: int = eqx.field(static=True)
    baselines: dict[str, "Evaluation"] = eqx.field(default_factory=dict)

    def histogram(self, bins: int = 40) -> tuple[np.ndarray, np.ndarray]:
        """Counts latents by the log10 of their density; dead ones are left out.

        Args:
            bins: how many, from one example in all of them to every example.

        Returns:
            Counts, `[bins]`, and the ends of bins, `[bins + 1]`.
        """
        density = np.asarray(self.density, np.float64)
        active = np.log10(density[density > 0])
        ends = np.linspace(-np.log10(max(self.examples, 2)), 0, bins + 1)
        # Rounding may put the sparsest just below the first end.
        return np.histogram(np.clip(active, ends[0], 0), ends)

    def __str__(self) -> str:
        """Returns a table, a line for the dictionary and one per baseline."""
        heads = ("L0", "FVU", "cosine", "bias", "dead", "dense")
        lines = [" " * 10 + "".join(f"{head:>9}" for head in heads)]
        for name, one in {"dictionary": self, **self.baselines}.items():
            means = (one.l0.mean, one.fvu.mean, one.cosine.mean, one.bias.mean)
            cells = (*(float(mean) for mean in means), one.dead, one.dense)
            lines.append(f"{name:10}" + "".join(f"{x:9.4g}" for x in cells))
        return "\n".join(lines)


def evaluate(
    dictionary: Dictionary,
    data: AbstractSource | Float[Array, "example ..."],
    *,
    examples: int | None = None,
    batch: int = 1024,
    threshold: float = 0.1,
    baselines: bool = True,
    key: PRNGKeyArray | None = None,
) -> Evaluation:
    """Measures how sparse a dictionary is and what it misses.

    Runs over the examples twice. Give examples that it was not trained on.

    Args:
        dictionary: any.
        data: activations, `[example, *reads]`, of a dictionary that writes what it
            reads; or a source of batches of `x` and `y`, from its start.
        examples: how many are used; all of the activations by default. A source needs
            a number.
        batch: examples at a time, of activations.
        threshold: density above which a latent counts as dense.
        baselines: evaluate random directions and principal components too. The latter
            are there where a dictionary writes what it reads, at most 4,096 numbers.
        key: of the random baseline; `jax.random.key(0)` by default.

    Returns:
        The evaluation.

    Raises:
        ConfigError: no number of examples of a source, or a number that makes no sense.
        ShapeError: activations that the dictionary does not read or write.

    Examples:
        >>> from mijax import dictionaries as d
        >>> x = jax.random.normal(jax.random.key(0), (200, 16))
        >>> sae = d.untrained(d.TopK(4), d.SAE(16), latents=32, key=jax.random.key(1))
        >>> found = evaluate(sae, x)
        >>> float(found.l0.mean), sorted(found.baselines)
        (4.0, ['pca', 'random'])
        >>> bool(found.baselines["pca"].fvu.mean < found.fvu.mean)
        True
    """
    n = checked(dictionary, data, examples, batch)
    moments, square = Moments(), False
    main, rivals = Measured(dictionary), {}
    for x, y, mask in chunks(dictionary, data, n, batch):
        square = baselines and x is y and y[0].size <= WIDEST
        moments.add(*_moments(y, mask, square))
        main.add(x, y, mask)
    if baselines:
        l0, shape = main.rows["l0"].mean(), dictionary.wiring.writes
        key = jax.random.key(0) if key is None else key
        drawn = random_like(dictionary, moments.mean, l0, key)
        rivals["random"] = Measured(drawn)
        if square:
            rivals["pca"] = Measured(
                principal(moments.mean, moments.products, l0, shape)
            )
    centre, spreads = jnp.float32(moments.mean), []
    for x, y, mask in chunks(dictionary, data, n, batch):
        keep = np.asarray(mask)
        spreads.append(np.asarray(_spread(y, centre), np.float64)[keep])
        for rival in rivals.values():
            rival.add(x, y, mask)
    spread = np.concatenate(spreads)
    others = {name: one.done(spread, threshold) for name, one in rivals.items()}
    found = main.done(spread, threshold)
    return dataclasses.replace(found, baselines=others)


def checked(dictionary: Dictionary, data: Any, examples: int | None, batch: int) -> int:
    """Returns how many examples are used."""
    if isinstance(data, AbstractSource):
        if examples is None:
            raise ConfigError("A source may be endless: give a number of examples.")
        n = examples
    else:
        check_array(dictionary, np.shape(data))
        n = len(data) if examples is None else examples
        if n > len(data):
            raise ConfigError(f"There are {len(data)} examples, not {n}.")
    if n < 1 or batch < 1:
        raise ConfigError(f"{n} examples in batches of {batch} cannot be evaluated.")
    return n


def check_array(dictionary: Dictionary, shape: tuple[int, ...]) -> None:
    """Refuses activations that are not rows of what a dictionary reads and writes."""
    reads, writes = dictionary.wiring.reads, dictionary.wiring.writes
    if reads != writes:
        raise ShapeError(
            f"The dictionary reads {list(reads)} and writes {list(writes)}: outputs "
            "are others than inputs, so give a source: Examples(x, y, batch=...)."
        )
    if shape[1:] != reads:
        sizes = ", ".join(map(str, reads))
        same = shape[-len(reads) :] == reads
        do = f"give x.reshape(-1, {sizes})." if same else "check site and layer."
        raise ShapeError(
            f"The dictionary reads examples of shape [example, {sizes}], got "
            f"{list(shape)}: {do}"
        )


def chunks(
    dictionary: Dictionary, data: Any, n: int, batch: int
) -> Iterator[tuple[Array, Array, Array]]:
    """Yields inputs, outputs and which of them count, always of one shape."""
    done = 0
    if isinstance(data, AbstractSource):
        state = data.start()
        while done < n:
            state, given = data.batch(state)
            check_batch(dictionary.wiring, given)
            size = given.x.shape[0]
            yield given.x, given.y, jnp.arange(size) < n - done
            done += size
        return
    size = min(batch, n)
    while done < n:
        x = jnp.asarray(data[done : min(done + size, n)])
        x = jnp.pad(x, ((0, size - x.shape[0]), *((0, 0),) * (x.ndim - 1)))
        yield x, x, jnp.arange(size) < n - done
        done += size


class Moments:
    """Mean of examples, and sums of products of what is left of them.

    Batches are joined as in Chan, Golub and LeVeque (1983), in float64.
    """

    def __init__(self) -> None:
        self.n, self.mean, self.products = 0.0, np.zeros(()), np.zeros(())

    def add(self, count: Array, mean: Array, products: Array | None) -> None:
        """Joins a batch."""
        size, here = float(count), np.asarray(mean, np.float64)
        total = self.n + size
        apart = here - self.mean
        if products is not None:
            between = np.outer(apart, apart) if self.n else 0
            between = between * (self.n * size / total)
            self.products = self.products + np.asarray(products, np.float64) + between
        self.mean = self.mean + apart * (size / total)
        self.n = total


class Measured:
    """Running sums over examples and latents, batch by batch."""

    def __init__(self, dictionary: Any) -> None:
        self.dictionary = dictionary
        self.rows: Any = {}
        self.counts = np.zeros(())

    def add(self, x: Array, y: Array, mask: Array) -> None:
        """Measures a batch."""
        found = _measure(self.dictionary, x, y, mask)
        self.counts = self.counts + np.asarray(found.counts, np.float64)
        keep = np.asarray(mask)
        for name, value in found.rows.items():
            old = self.rows.get(name, np.zeros(0))
            new = np.asarray(value, np.float64)[keep]
            self.rows[name] = np.concatenate([old, new])

    def done(self, spread: np.ndarray, threshold: float) -> Evaluation:
        """Returns the record."""
        rows, n = self.rows, len(spread)
        density = self.counts / n
        return Evaluation(
            l0=mean(rows["l0"]),
            fvu=ratio(rows["error"], spread),
            cosine=mean(rows["cosine"]),
            bias=ratio(rows["written"], rows["along"]),
            density=jnp.float32(density),
            dead=float((density == 0).mean()),
            dense=float((density > threshold).mean()),
            threshold=threshold,
            examples=n,
        )


def ratio(above: np.ndarray, below: np.ndarray) -> Interval:
    """Returns a ratio of means, with the interval of the delta method."""
    whole = below.mean()
    value = above.mean() / whole
    return mean(value + (above - value * below) / whole)


def mean(values: np.ndarray) -> Interval:
    """Returns the mean over examples."""
    return interval(jnp.float32(values), method="normal")


class _Rows(NamedTuple):
    """Numbers of each example, and in how many of them each latent is active."""

    rows: dict[str, Array]
    counts: Array


@eqx.filter_jit
def _measure(dictionary: Any, x: Array, y: Array, mask: Array) -> _Rows:
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    latents = dictionary.encode(x)
    out = dictionary.decode(latents, x)
    out, y = out.reshape(len(y), -1), y.reshape(len(y), -1)
    active = latents != 0
    norms = jnp.sqrt((out**2).sum(1) * (y**2).sum(1))
    along = (out * y).sum(1)
    rows = {
        "l0": active.sum(1),
        "error": ((y - out) ** 2).sum(1),
        "written": (out**2).sum(1),
        "along": along,
        "cosine": jnp.where(norms > 0, along / jnp.where(norms > 0, norms, 1), 0),
    }
    return _Rows(rows, (active & mask[:, None]).sum(0))


@eqx.filter_jit
def _moments(y: Array, mask: Array, square: bool) -> tuple[Array, Array, Array | None]:
    """Returns number, mean and, if asked for, products of a batch."""
    y = y.reshape(y.shape[0], -1).astype(jnp.float32)
    weight = mask.astype(jnp.float32)[:, None]
    count = weight.sum()
    # Twice: the first mean of large numbers is a little off.
    about = (weight * y).sum(0) / count
    mean = about + (weight * (y - about)).sum(0) / count
    left = weight * (y - mean)
    return count, mean, left.T @ left if square else None


@eqx.filter_jit
def _spread(y: Array, mean: Array) -> Array:
    """Returns the squared distance of each example from the mean."""
    y = y.reshape(y.shape[0], -1).astype(jnp.float32)
    return ((y - mean) ** 2).sum(1)
