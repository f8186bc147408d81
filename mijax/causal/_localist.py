"""Hypotheses without a rotation: every variable is a set of neurons."""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment

from mijax._errors import ConfigError
from mijax.causal._align import Alignment
from mijax.causal._run import check_place_of
from mijax.causal._swap import Subspaces
from mijax.core import Site
from mijax.core.internal import checked, integers


@checked
def blocks(width: int, sizes: Sequence[int]) -> Subspaces:
    """Lists every way to give each variable a block of neurons.

    A block of `k` neurons begins at a multiple of `k`. For a brute-force search:
    measure them all.

    Args:
        width: number of neurons.
        sizes: neurons of each variable; 0 where one has none.

    Returns:
        Subspaces `[way, ...]`, in which no two variables share a neuron.

    Raises:
        ConfigError: there is no way.

    Examples:
        >>> blocks(4, (2, 2)).mask.astype(int).tolist()
        [[[1, 1, 0, 0], [0, 0, 1, 1]], [[0, 0, 1, 1], [1, 1, 0, 0]]]
    """
    sizes = [int(integers(k, "A size", ConfigError)) for k in sizes]
    if not sizes or min(sizes) < 0:
        raise ConfigError(f"Give the number of neurons of each variable, got {sizes}.")
    starts = [range(0, width - k + 1, k) if k else range(1) for k in sizes]
    neuron = np.arange(width)
    ways = []
    for way in itertools.product(*starts):
        pairs = zip(way, sizes, strict=True)
        mask = np.stack([(neuron >= at) & (neuron < at + k) for at, k in pairs])
        if mask.sum(0).max() <= 1:
            ways.append(mask)
    if not ways:
        raise ConfigError(f"Blocks of {tuple(sizes)} do not fit {width} neurons.")
    masks = jnp.asarray(np.stack(ways), jnp.float32)
    return Subspaces(_plain(width, (len(ways),)), masks)


@checked
def closest_neurons(subspaces: Subspaces) -> Subspaces:
    r"""Gives each variable the neurons that its subspace is closest to.

    As many neurons as it has dimensions, none of them twice, such that the sum of
    $\lVert P_v e_i \rVert^2$ over neurons `i` of variables `v` is largest, with the
    projection $P_v$ onto the subspace.

    Args:
        subspaces: `[*lane, ...]`, every row of one variable or of none.

    Returns:
        Subspaces of the same shape whose basis is that of neurons.

    Examples:
        >>> turned = Subspaces(jnp.eye(3)[::-1], jnp.array([[1.0, 0.0, 0.0]]))
        >>> closest_neurons(turned).mask.tolist()
        [[0.0, 0.0, 1.0]]
    """
    basis, mask = np.asarray(subspaces.basis), np.asarray(subspaces.mask)
    width = basis.shape[-1]
    near = np.einsum("...vr,...rw->...vw", mask, basis**2)
    lanes = near.shape[:-2]
    flat = [
        _assigned(one, sizes)
        for one, sizes in zip(
            near.reshape(-1, *near.shape[-2:]),
            mask.sum(-1).round().astype(int).reshape(-1, mask.shape[-2]),
            strict=True,
        )
    ]
    found = np.stack(flat).reshape(near.shape)
    return Subspaces(_plain(width, lanes), jnp.asarray(found, jnp.float32))


@checked
def stated(
    subspaces: Subspaces, site: Site | Sequence[Site], task: int | Sequence[int] = 0
) -> Alignment:
    """Puts subspaces at places, to be measured by `iia`.

    Args:
        subspaces: `[*model, search, ...]`.
        site: the place of all, or of each.
        task: index of the counterfactuals of all, or of each.

    Returns:
        The alignment.

    Raises:
        ConfigError: not as many places or tasks as subspaces.

    Examples:
        >>> site = Site("mlp_post", layer=1, position=0)
        >>> stated(blocks(4, (2, 2)), site).site.layer.tolist()
        [1, 1]
    """
    count = subspaces.mask.shape[-3]
    sites = [site] * count if isinstance(site, Site) else list(site)
    numbers = integers(task, "A task", ConfigError)
    tasks = np.broadcast_to(numbers, (count,)) if not numbers.ndim else numbers
    if {len(sites), len(tasks)} != {count}:
        raise ConfigError(
            f"There are {count} subspaces, {len(sites)} places and {len(tasks)} tasks:"
            " give one for all, or one each."
        )
    for one in sites:
        if not isinstance(one, Site):
            raise ConfigError(f"Give a Site, or one for each subspace, got {one!r}.")
        check_place_of(one)
    if len({one.name for one in sites}) > 1:
        raise ConfigError("Places of one alignment are at sites of one name.")
    stack = jax.tree.map(lambda *leaves: jnp.stack(jnp.asarray(leaves)), *sites)
    return Alignment(subspaces, stack, jnp.asarray(tasks, jnp.int32))


def _plain(width: int, lanes: tuple[int, ...]) -> Float[jax.Array, "*lane width width"]:
    return jnp.broadcast_to(jnp.eye(width), (*lanes, width, width))


def _assigned(
    near: Float[np.ndarray, "variable width"], sizes: np.ndarray
) -> np.ndarray:
    """Gives neurons to variables; each dimension of one asks for one neuron."""
    asks = np.repeat(np.arange(len(sizes)), sizes)
    mask = np.zeros(near.shape, bool)
    row, neuron = linear_sum_assignment(near[asks], maximize=True)
    mask[asks[row], neuron] = True
    return mask
