"""Sites: the places of a model where activations come out and edits go in."""

import dataclasses
from typing import Any, Generic, TypeVar, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Int, Shaped

from mijax._errors import PositionError, ShapeError, SiteError, quoted
from mijax.core._integers import integers, reals
from mijax.core._shown import cut, line

T = TypeVar("T")
# The stop of a span that goes to the end.
END = int(np.iinfo(np.int32).max)
Index = int | np.integer | Int[Array, "..."] | np.ndarray
Position = Index | slice


class BlockSites(eqx.Module, Generic[T]):
    """One value per site of a residual block, in the order of computation.

    Holds arrays (activations), edits, or `None` where a block has no such site.
    Shapes for one block and one example; the token axis always comes first:

    | sites | shape |
    |---|---|
    | `resid_pre attn_out resid_mid mlp_in mlp_out resid_post` | `[seq, embed]` |
    | `attn_norm_scale mlp_norm_scale shared_gate` | `[seq, 1]` |
    | `q k v q_rotated k_rotated z` | `[seq, heads, head_dim]` |
    | `scores pattern` | `[seq, heads, key_seq]` |
    | `result` | `[seq, heads, embed]` |
    | `mlp_pre mlp_gate mlp_up mlp_post` | `[seq, mlp]` |
    | `q_latent kv_latent` | `[seq, latent]` |
    | `router_logits router_weights` | `[seq, experts]` |
    | `expert_out`; `shared_out` | `[seq, experts, embed]`; `[seq, embed]` |
    | `conv_out mixer_scan mixer_gate mixer_out` | `[seq, channels]` |
    | `ssm_delta gdn_alpha gdn_beta` | `[seq, heads, 1]` |
    | `ssm_b ssm_c mixer_state` | `[seq, heads, state]` |
    | `z_gate` | `[seq, heads, head_dim]` |

    `attn_norm_scale` and `mlp_norm_scale` are the numbers that the norms before
    attention and before the MLP divide by. `q` and `k` are what the projections give,
    before a norm of theirs and before rotary embedding, `q_rotated` and `k_rotated`
    what rotary embedding gives; keys and `v` are per-query-head views under
    grouped-query attention; `scores` are what the softmax reads, after a soft cap and
    before the causal mask; `result` is what each head writes, `z` times its output
    weights; `attn_out` and `mlp_out` are what is added to the residual stream, after a
    norm that follows them; `mlp_in` is what the MLP reads, after its norm. In a gated
    MLP `mlp_pre` is the input of the activation function, `mlp_gate` its output and
    `mlp_up` the other factor of `mlp_post`. Mixtures of experts have `router_logits`,
    `router_weights` (0 for experts that are not chosen) and `expert_out`, what each
    expert adds to `mlp_out`, in their place; `shared_out` is what an MLP of all tokens
    adds. Latent attention makes queries, and keys and values of all heads, of
    `q_latent` and `kv_latent`. `z_gate` multiplies what attention reads. Sites of
    recurrent mixers are those of `nn.Mamba`, `nn.Mamba2` and `nn.GatedDeltaNet`.
    """

    resid_pre: T
    attn_norm_scale: T
    q_latent: T
    q: T
    kv_latent: T
    k: T
    v: T
    q_rotated: T
    k_rotated: T
    scores: T
    pattern: T
    z_gate: T
    z: T
    result: T
    attn_out: T
    resid_mid: T
    mlp_norm_scale: T
    mlp_in: T
    conv_out: T
    ssm_delta: T
    ssm_b: T
    ssm_c: T
    gdn_alpha: T
    gdn_beta: T
    mixer_state: T
    mixer_scan: T
    mixer_gate: T
    mixer_out: T
    mlp_pre: T
    mlp_gate: T
    mlp_up: T
    mlp_post: T
    router_logits: T
    router_weights: T
    expert_out: T
    shared_gate: T
    shared_out: T
    mlp_out: T
    resid_post: T

    def __repr__(self) -> str:
        return sites_line(self)


class Sites(eqx.Module, Generic[T]):
    """One value per site of a model: `embed`, every block, `resid_final`, `logits`.

    `resid_final` is the residual stream after the final norm: what the unembedding
    reads. A model returns `Sites` of activations and takes `Sites` of edits.
    In activations every block site has a leading `layer` axis. Edits at sites that only
    a `FunctionModel` has are in `others`, by name.
    """

    embed: T
    blocks: BlockSites[T]
    resid_final: T
    logits: T
    others: dict[str, T] = eqx.field(default_factory=dict)

    def __repr__(self) -> str:
        return sites_line(self)


def sites_line(tree: Any) -> str:
    """Return a record of sites on one line: the values of those that have one."""
    found = {}
    for name in tree.__dataclass_fields__:
        value = getattr(tree, name)
        if name == "others":
            found |= value
            continue
        parts = value if isinstance(value, BlockSites) else None
        if parts is None:
            found |= {} if value is None else {name: value}
            continue
        for part in BLOCK_SITES:
            if getattr(parts, part) is not None:
                found[part] = getattr(parts, part)
    some = list(found)[:3] if len(found) > 4 else list(found)
    inside = [f"{name}={_at_site(found[name])}" for name in some]
    inside += [f"{len(found) - len(some)} more"] if len(some) < len(found) else []
    return cut(f"{type(tree).__name__}({', '.join(inside)})")


def _at_site(value: Any) -> str:
    array = hasattr(value, "shape") and hasattr(value, "dtype")
    return eqx.tree_pformat(value) if array else cut(repr(value), 70)


BLOCK_SITES = tuple(BlockSites.__dataclass_fields__)
SITES = ("embed", *BLOCK_SITES, "resid_final", "logits")
INDICES = ("layer", "position", "head", "feature")
HEAD_SITES = (
    *("q", "k", "v", "q_rotated", "k_rotated"),
    *("scores", "pattern", "z_gate", "z", "result"),
    *("ssm_delta", "ssm_b", "ssm_c", "gdn_alpha", "gdn_beta", "mixer_state"),
)
# Sites whose second axis is not `head`, and its name.
SECOND_AXES = {"expert_out": "expert"}


def empty() -> Sites[Any]:
    """Returns `Sites` with `None` everywhere: no edits.

    Examples:
        >>> empty().blocks.z is None
        True
    """
    return Sites(None, BlockSites(*(None,) * len(BLOCK_SITES)), None, None)


class PerPrompt(eqx.Module):
    """One index, coefficient or value for each prompt of a batch.

    A list of indices would mean all of them in every prompt, and an array of values
    broadcasts against one row, so that one per prompt has to be stated.

    Args:
        values: an index per prompt, `[batch]`; a coefficient of `Add`, `Scale` or
            `Noise` per prompt; or a value of `Set` or `Add` per prompt, `[batch, ...]`.

    Raises:
        ShapeError: a scalar, or values that are not numbers.

    Examples:
        >>> import jax, mijax
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> tokens = jax.numpy.array([[5, 6, 7], [8, 9, 10]])
        >>> both = mijax.Zero().at("z", layer=1, head=[2, 3])  # heads 2 and 3
        >>> each = mijax.Zero().at("z", layer=1, head=mijax.PerPrompt([2, 3]))
        >>> one = mijax.run(model, tokens, mijax.Zero().at("z", layer=1, head=3))
        >>> bool((mijax.run(model, tokens, each)[1] == one[1]).all())
        True
        >>> steer = mijax.Add(mijax.PerPrompt(jax.numpy.eye(2, 32))).at("embed")
        >>> mijax.run(model, tokens, steer).shape
        (2, 3, 64)
    """

    values: Shaped[Array, "batch ..."] | Shaped[np.ndarray, "batch ..."]

    __repr__ = line

    def __init__(self, values: Any):
        leaves = jax.tree.leaves(values)
        kinds = [getattr(leaf, "dtype", type(leaf)) for leaf in leaves]
        floating = any(k is float or jnp.issubdtype(k, jnp.floating) for k in kinds)
        one = "An index per prompt"
        self.values = reals(values) if floating else integers(values, one)
        if not self.values.ndim:
            raise ShapeError("PerPrompt takes one entry per prompt, got a scalar.")


def indices_per_prompt(index: PerPrompt) -> Any:
    """Return one index per prompt.

    Raises:
        ShapeError: entries that are not integers, or more than one per prompt.
    """
    values = integers(index.values, "An index per prompt")
    if values.ndim != 1:
        raise ShapeError(
            f"PerPrompt takes one index per prompt, got shape {values.shape}."
        )
    return values


def as_index(index: Any) -> Any:
    """Return a list of indices as an array, and anything else unchanged."""
    if isinstance(index, PerPrompt):
        return PerPrompt(indices_per_prompt(index))
    if isinstance(index, list | tuple | range):
        return integers(list(index))
    return index


def as_position(index: Any) -> Any:
    """Return positions, of which a list or an array already is one per prompt."""
    return (
        indices_per_prompt(index) if isinstance(index, PerPrompt) else as_index(index)
    )


class Site(eqx.Module):
    """A site and, where given, the part of it that is meant.

    Indices are integers or traced integer arrays, so one compiled program serves them
    all. An index left out means everywhere. A list of layers, heads or features means
    all of them; a list of positions is one per prompt, as `prompts.last` is.

    Args:
        name: name of the site; `mijax.sites(model, example)` lists those of a model.
        layer: index of the block, of the iteration or of the occurrence.
        position: token index, one token index per prompt (`[batch]`), or a `slice`
            of those (half open). Counts from 0.
        head: query head index.
        feature: index on the last axis.
        **axes: indices on the other axes of the site, by the axes' names.

    Raises:
        SiteError: a name that is not a text, or a negative index.
        PositionError: for a negative position (with padded prompts it would not be
            the last token: use `prompts.last`).

    Examples:
        >>> Site("z", layer=9, head=6)
        Site(name='z', layer=9, head=6)
        >>> Site("relu", layer=1, channel=7)
        Site(name='relu', layer=1, axes={channel: 7})
    """

    name: str = eqx.field(static=True)
    layer: Any
    position: Any
    head: Any
    feature: Any
    axes: dict[str, Any] | None

    def __init__(
        self,
        name: str,
        layer: Any = None,
        position: Any = None,
        head: Any = None,
        feature: Any = None,
        **axes: Any,
    ):
        self.name = name
        self.layer, self.head = as_index(layer), as_index(head)
        self.feature, self.position = as_index(feature), as_position(position)
        given = {axis: as_index(i) for axis, i in axes.items() if i is not None}
        self.axes = given or None

    def __check_init__(self):
        """Refuse indices that no model has."""
        if not isinstance(self.name, str):
            raise SiteError(f"A site has a name, got {quoted(self.name)}.")
        for axis, given in self.indices.items():
            if axis == "position" or isinstance(given, slice):
                continue
            each = given.values if isinstance(given, PerPrompt) else given
            index = known(each)
            if index is not None and np.any(index < 0):
                raise SiteError(f"{axis} counts from 0, got {index}.")
            if jnp.ndim(each) > 1:
                raise SiteError(
                    f"{axis} takes an index or a flat list, got shape "
                    f"{jnp.shape(each)}: for groups make one edit per group."
                )
        for end in span_ends(self.position):
            index = known(end)
            if index is not None and np.any(index < 0):
                raise PositionError(
                    f"Positions count from 0, got {index}; for the last token of "
                    "each prompt give `prompts.last`."
                )

    __repr__ = line

    @property
    def indices(self) -> dict[str, Any]:
        """The indices that are given, by axis."""
        named = {axis: getattr(self, axis) for axis in INDICES}
        named |= self.axes or {}
        return {axis: index for axis, index in named.items() if index is not None}

    def replace(self, **indices: Any) -> "Site":
        """Return the same site with other indices."""
        return Site(self.name, **(self.indices | indices))

    @property
    def layered(self) -> bool:
        """True if a decoder's activations of this site have a leading layer axis."""
        return self.name in BLOCK_SITES

    @property
    def rank(self) -> int:
        """Rank of a decoder's activations of one example, layer axis included."""
        return self.layered + 2 + has_second_axis(self.name)


def has_second_axis(name: str | None) -> bool:
    """Return True if a decoder's site has an axis between position and feature."""
    return name in HEAD_SITES or name in SECOND_AXES


def known(index: Any) -> np.ndarray | None:
    """Return an index as a NumPy array, or `None` if absent or traced."""
    if index is None:
        return None
    array = integers(index)
    return None if isinstance(array, Tracer) else np.asarray(array)


def span_ends(position: Any) -> tuple[Any, ...]:
    """Returns the given start and stop of a position, which may be a slice."""
    if isinstance(position, slice):
        if position.step not in (None, 1):
            raise PositionError(f"A span has no step, got {position}.")
        return tuple(e for e in (position.start, position.stop) if e is not None)
    return () if position is None else (position,)


def get(tree: Sites[T], name: str) -> T:
    """Returns the value that `tree` holds at a site.

    Args:
        tree: activations or edits.
        name: name of a site.

    Returns:
        The value there, `None` without one.
    """
    if name not in SITES:
        return cast(T, tree.others.get(name))
    return getattr(tree.blocks if name in BLOCK_SITES else tree, name)


def put(tree: Sites[Any], name: str, value: Any) -> Sites[Any]:
    """Returns `tree` with another value at a site.

    Args:
        tree: activations or edits.
        name: name of a site.
        value: the new value.

    Returns:
        A new record; `tree` is unchanged.
    """
    if name not in SITES:
        return dataclasses.replace(tree, others=tree.others | {name: value})
    return eqx.tree_at(
        lambda t: get(t, name), tree, value, is_leaf=lambda leaf: leaf is None
    )


def filled(tree: Sites[T]) -> tuple[str, ...]:
    """Return the names of the sites at which `tree` holds a value."""
    return tuple(name for name in (*SITES, *tree.others) if get(tree, name) is not None)
