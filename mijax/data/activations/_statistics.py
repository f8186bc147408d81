"""Statistics of activations: what they are centred and scaled by."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mijax._errors import ShapeError
from mijax.data._source import AbstractSource

STEPS = 1000


class Statistics(eqx.Module):
    r"""What rows are like, feature by feature, `[embed]` or `[site, embed]`.

    `scale` is the number by which rows are multiplied so that
    \(E\|x\|^2 = d\), the number of features:

    \[ \mathrm{scale} = \sqrt{d / E\|x\|^2},\quad
       E\|x\|^2 = \sum_j (\mathrm{variance}_j + \mathrm{mean}_j^2). \]

    Attributes:
        mean: mean of each feature.
        variance: variance of each feature around its mean, divided by the number of
            rows.
        mean_norm: mean of the Euclidean norms, one per site.
        rows: number of rows.
    """

    mean: Float[Array, "*site embed"]
    variance: Float[Array, "*site embed"]
    mean_norm: Float[Array, "*site"]
    rows: int = eqx.field(static=True)

    @property
    def scale(self) -> Float[Array, "*site"]:
        """What to multiply rows by, one number per site."""
        square = (self.variance + self.mean**2).sum(-1)
        return jnp.sqrt(self.mean.shape[-1] / square)


def statistics(source: AbstractSource, n: int, *, targets: bool = False) -> Statistics:
    r"""Measures rows of a source, batch by batch, in float32.

    Means and sums of squares around them are joined as in Chan, Golub and LeVeque
    (1983), so that an offset that is large beside the spread does no harm:

    \[ \delta = m_B - m_A,\quad m = m_A + \delta \frac{n_B}{n},\quad
       S = S_A + S_B + \delta^2 \frac{n_A n_B}{n}. \]

    Args:
        source: where batches come from, from its start; it is not used up.
        n: number of rows, rounded up to whole batches.
        targets: whether to measure what is to be predicted, `batch.y`.

    Returns:
        The statistics.

    Raises:
        ShapeError: no rows.
        TokenError: the source ends before.

    Examples:
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> corpus = mijax.data.Corpus.from_ids([range(60)])
        >>> tokens = mijax.data.Tokens(corpus, seq=10, batch=2)
        >>> site = mijax.Site("resid_post", layer=1)
        >>> found = statistics(
        ...     mijax.data.Activations(model, tokens, site, batch=8), 100
        ... )
        >>> found.rows, found.mean.shape, found.scale.shape
        (104, (32,), ())
    """
    if n < 1:
        raise ShapeError(f"Statistics need a row at least, got {n}.")
    state, total, rows = source.start(), None, 0
    while rows < n:
        state, batch = source.batch(state)
        x = batch.y if targets else batch.x
        here = of_batch(x)
        total = here if total is None else joined(total, here, jnp.float32(rows))
        rows += x.shape[0]
    assert total is not None
    mean, square, norm, _ = total
    return Statistics(mean, square / rows, norm, rows)


Sums = tuple[Array, Array, Array, Array]


@jax.jit
def of_batch(x: Float[Array, "batch *site embed"]) -> Sums:
    """Returns mean, sum of squares around it, mean norm and number of rows."""
    x = x.astype(jnp.float32)
    # Twice: the first mean of large numbers is a little off.
    about = x.mean(0)
    mean = about + (x - about).mean(0)
    square = ((x - mean) ** 2).sum(0)
    norm = jnp.sqrt((x**2).sum(-1)).mean(0)
    return mean, square, norm, jnp.float32(x.shape[0])


@jax.jit
def joined(before: Sums, here: Sums, rows: Array) -> Sums:
    """Joins the sums of `rows` rows and of a batch."""
    mean, square, norm, _ = before
    more, spread, more_norm, count = here
    share = count / (rows + count)
    delta = more - mean
    mean = mean + delta * share
    square = square + spread + delta**2 * (rows * share)
    return mean, square, norm + (more_norm - norm) * share, rows + count


def geometric_median(
    x: Float[Array, "rows *site embed"] | Float[np.ndarray, "rows *site embed"],
    *,
    tolerance: float = 1e-6,
) -> Float[Array, "*site embed"]:
    r"""Finds the point with the smallest sum of distances to rows.

    \[ \arg\min_m \sum_i \|x_i - m\| \]

    by the algorithm of Weiszfeld, in the form that also leaves a row on which it
    stands (Vardi and Zhang 2000). Unlike the mean it hardly moves with outliers, which
    makes it the usual start of a dictionary's bias. Computed in float32.

    Args:
        x: rows.
        tolerance: it ends when a step is shorter than this share of the mean distance
            from rows to it, or after 1000 steps.

    Returns:
        The point, one per site.

    Raises:
        ShapeError: there are no rows.

    Examples:
        >>> rows = jnp.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> geometric_median(rows).tolist()
        [0.5, 0.5]
    """
    if x.ndim < 2 or not x.shape[0]:
        raise ShapeError(f"Give rows, [rows, embed] and not none, got {x.shape}.")
    rows = jnp.asarray(x).reshape(x.shape[0], -1, x.shape[-1])
    found = _medians(rows, jnp.float32(tolerance))
    return found.reshape(x.shape[1:])


@jax.jit
def _medians(x: Float[Array, "rows site embed"], tolerance: Array) -> Array:
    return jax.vmap(_median, in_axes=(1, None))(x.astype(jnp.float32), tolerance)


def _median(x: Float[Array, "rows embed"], tolerance: Array) -> Array:
    centre = x.mean(0)
    x = x - centre

    def step(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        count, here, _ = carry
        distance = jnp.linalg.norm(x - here, axis=1)
        apart = distance > 0
        weight = jnp.where(apart, 1 / jnp.where(apart, distance, 1), 0)
        total = jnp.maximum(weight.sum(), jnp.finfo(jnp.float32).tiny)
        aim = weight @ x / total
        # Rows on the point itself pull with a force of 1 each, the others with this.
        pull = jnp.linalg.norm(weight @ x - total * here)
        stay = jnp.minimum(1.0, (~apart).sum() / jnp.maximum(pull, 1e-30))
        moved = (1 - stay) * (aim - here)
        small = jnp.linalg.norm(moved) <= tolerance * distance.mean()
        return count + 1, here + moved, small

    def going(carry: tuple[Array, Array, Array]) -> Array:
        return (carry[0] < STEPS) & ~carry[2]

    start = (jnp.int32(0), jnp.zeros_like(centre), jnp.bool_(False))
    return centre + jax.lax.while_loop(going, step, start)[1]
