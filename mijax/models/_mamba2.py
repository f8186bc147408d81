"""Mamba-2 (Dao and Gu 2024, arXiv:2405.21060): state spaces with heads, no attention.

A block is a norm and a mixer (`nn.Mamba2`). There are no positions and no limit to the
length of a prompt.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import PRNGKeyArray

from mijax._errors import LoadError
from mijax.io import NonNegative, Only, Size
from mijax.models._config import Activation, divide, read_hub_config
from mijax.models._decoder import decoder
from mijax.models._family import Family, Preset, Rule, Table
from mijax.models._init import Normal, rms_norm
from mijax.models._leaves import tied_head
from mijax.models._mamba import (
    MIXER,
    NAMES,
    StateSpaceConfig,
    conv_rules,
    draw_conv,
    one_rule,
    outer_rules,
    rows_of,
    state_space_sizes,
)
from mijax.nn import Mamba2, MixerBlock, Transformer


@dataclasses.dataclass(frozen=True)
class Mamba2Spec:
    """Sizes of a Mamba-2.

    A layer has `heads` heads of `head_dim` features, with a state of `state` features
    for each of them; `groups` vectors $B$ and $C$; and a convolution of width `taps`.
    """

    layers: Size
    embed: Size
    heads: Size
    head_dim: Size
    vocab: Size
    state: Size = 128
    groups: Size = 8
    taps: Size = 4
    eps: NonNegative = 1e-5
    activation: Activation = "silu"
    conv_bias: bool = True
    tied: bool = False
    context: ClassVar[None] = None
    bias: ClassVar[bool] = False

    @property
    def channels(self) -> int:
        """Number of features of all heads together."""
        return self.heads * self.head_dim


def init(spec: Mamba2Spec, key: PRNGKeyArray, dtype: DTypeLike) -> Transformer:
    """Draws weights of standard deviation 0.02; $A_h = -h$ as Mamba-2 begins."""
    normal, n, embed = Normal(key, dtype), spec.layers, spec.embed
    channels, heads = spec.channels, spec.heads
    mixed = channels + 2 * spec.groups * spec.state
    zeros = lambda *shape: jnp.zeros((n, *shape), dtype)  # noqa: E731
    rates = jnp.log(jnp.arange(1, heads + 1, dtype=jnp.float32)).astype(dtype)
    mixer = Mamba2(
        w_in=normal(n, embed, mixed),
        w_gate=normal(n, embed, channels),
        w_delta=normal(n, embed, heads),
        conv=draw_conv(normal, spec, mixed),
        b_delta=zeros(heads),
        a_log=jnp.broadcast_to(rates, (n, heads)),
        skip=jnp.ones((n, heads), dtype),
        norm=rms_norm(channels, dtype, spec.eps, layers=n),
        w_out=normal(n, channels, embed),
        groups=spec.groups,
    )
    blocks = MixerBlock(rms_norm(embed, dtype, spec.eps, layers=n), mixer)
    return decoder(normal, spec, blocks, rms_norm(embed, dtype, spec.eps))


UNLIMITED = [0.0, {"__float__": "Infinity"}]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mamba2Config(StateSpaceConfig):
    """Keys of config.json."""

    ignored: ClassVar[frozenset[str]] = StateSpaceConfig.ignored | {
        "chunk_size",
        "norm_before_gate",
        "time_step_rank",
    }

    num_heads: Size
    head_dim: Size
    n_groups: Size
    # JSON has no word for a step size without limit.
    time_step_limit: Annotated[Any, Only(None, UNLIMITED)] = None
    intermediate_size: Size | None = None
    use_bias: Annotated[bool, Only(False)] = False
    rms_norm: Annotated[bool, Only(True)] = True
    tie_word_embeddings: bool = False


def from_config(config: Mapping[str, Any], path: str) -> Mamba2Spec:
    """Reads a Hugging Face config."""
    found = read_hub_config(Mamba2Config, config, path)
    spec = Mamba2Spec(
        **state_space_sizes(found),
        heads=found.num_heads,
        head_dim=found.head_dim,
        groups=found.n_groups,
        tied=found.tie_word_embeddings,
    )
    if spec.channels != int(found.expand * found.hidden_size):
        raise LoadError(
            f"{path}: {found.num_heads} heads of {found.head_dim} features are not "
            f"{found.expand} times 'hidden_size'. Use the config of these weights."
        )
    divide(spec.heads, spec.groups, path)
    return spec


def table(spec: Mamba2Spec) -> Table:
    """Names in Hugging Face files."""
    channels, heads = spec.channels, spec.heads
    mixed = channels + 2 * spec.groups * spec.state
    cuts, parts = (channels, channels + mixed), ("w_gate", "w_in", "w_delta")
    joined = channels + mixed + heads
    rules = [
        *outer_rules(spec, NAMES),
        *conv_rules(spec, mixed),
        Rule(
            f"{MIXER}in_proj.weight",
            (joined, spec.embed),
            {f"blocks.mixer.{name}": rows_of(i, cuts) for i, name in enumerate(parts)},
        ),
        one_rule("b_delta", "dt_bias", (heads,)),
        one_rule("a_log", "A_log", (heads,)),
        one_rule("skip", "D", (heads,)),
        one_rule("norm.weight", "norm.weight", (channels,)),
    ]
    return Table(rules=tuple(rules), same=tied_head(spec, NAMES))


PRESETS = {
    "mamba-codestral-7b-v0.1": Preset(
        Mamba2Spec(layers=64, embed=4096, heads=128, head_dim=64, vocab=32768),
        "mistralai/Mamba-Codestral-7B-v0.1",
    ),
}
MAMBA2 = Family(
    name="mamba2",
    spec=Mamba2Spec,
    init=init,
    presets=PRESETS,
    from_config=from_config,
    table=table,
)
