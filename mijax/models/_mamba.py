"""Mamba (Gu and Dao 2023, arXiv:2312.00752): selective state spaces, no attention.

A block is a norm and a mixer (`nn.Mamba`). There are no positions and no limit to the
length of a prompt.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import PRNGKeyArray

from mijax.io import NonNegative, Only, Positive, Size
from mijax.models._config import ACTIVATIONS, Activation, HubConfig, read_hub_config
from mijax.models._decoder import decoder
from mijax.models._family import Family, Preset, Rule, Table, same
from mijax.models._init import Normal, rms_norm
from mijax.models._leaves import tied_head, turned
from mijax.nn import CausalConv, Mamba, MixerBlock, Transformer


@dataclasses.dataclass(frozen=True)
class MambaSpec:
    """Sizes of a Mamba.

    A layer has `channels` channels with a state of `state` features each; `rank` is
    that of the matrix which makes step sizes, `taps` the width of the convolution.
    """

    layers: Size
    embed: Size
    channels: Size
    vocab: Size
    state: Size = 16
    rank: Size = 48
    taps: Size = 4
    eps: NonNegative = 1e-5
    activation: Activation = "silu"
    bias: bool = False
    conv_bias: bool = True
    tied: bool = True
    context: ClassVar[None] = None


def init(spec: MambaSpec, key: PRNGKeyArray, dtype: DTypeLike) -> Transformer:
    """Draws weights of standard deviation 0.02; $A_{cn} = -n$ as Mamba begins."""
    normal, n, embed = Normal(key, dtype), spec.layers, spec.embed
    channels, state, rank = spec.channels, spec.state, spec.rank
    zeros = lambda *shape: jnp.zeros((n, *shape), dtype)  # noqa: E731
    rates = jnp.log(jnp.arange(1, state + 1, dtype=jnp.float32)).astype(dtype)
    bias: dict[str, Any] = {
        "b_in": zeros(channels),
        "b_gate": zeros(channels),
        "b_out": zeros(embed),
    }
    mixer = Mamba(
        w_in=normal(n, embed, channels),
        w_gate=normal(n, embed, channels),
        conv=draw_conv(normal, spec, channels),
        w_delta_in=normal(n, channels, rank),
        w_delta=normal(n, rank, channels),
        b_delta=zeros(channels),
        w_b=normal(n, channels, state),
        w_c=normal(n, channels, state),
        a_log=jnp.broadcast_to(rates, (n, channels, state)),
        skip=jnp.ones((n, channels), dtype),
        w_out=normal(n, channels, embed),
        **(bias if spec.bias else {}),
    )
    blocks = MixerBlock(rms_norm(embed, dtype, spec.eps, layers=n), mixer)
    return decoder(normal, spec, blocks, rms_norm(embed, dtype, spec.eps))


def draw_conv(normal: Normal, spec: Any, channels: int) -> CausalConv:
    """Draws the convolutions of all layers."""
    bias = jnp.zeros((spec.layers, channels), normal.dtype)
    return CausalConv(
        weight=normal(spec.layers, spec.taps, channels),
        bias=bias if spec.conv_bias else None,
        activation=ACTIVATIONS[spec.activation],
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class StateSpaceConfig(HubConfig):
    """Keys of config.json that Mamba and Mamba-2 share."""

    # How weights were drawn, and which program computes the scan.
    ignored: ClassVar[frozenset[str]] = frozenset(
        [
            "rescale_prenorm_residual",
            "residual_in_fp32",
            "time_step_floor",
            "time_step_init_scheme",
            "time_step_max",
            "time_step_min",
            "time_step_scale",
            "use_associative_scan",
            "use_mambapy",
        ]
    )

    num_hidden_layers: Size
    hidden_size: Size
    vocab_size: Size
    state_size: Size
    expand: Positive = 2.0
    conv_kernel: Size = 4
    layer_norm_epsilon: NonNegative = 1e-5
    hidden_act: Activation = "silu"
    use_bias: bool = False
    use_conv_bias: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class MambaConfig(StateSpaceConfig):
    """Keys of config.json."""

    # Sizes as the first checkpoints repeat them.
    d_inner: Size | None = None
    d_model: Size | None = None
    intermediate_size: Size | None = None
    n_layer: Size | None = None
    ssm_cfg: Annotated[Any, Only({}, None)] = None
    rms_norm: Annotated[bool, Only(True)] = True
    fused_add_norm: bool = True
    pad_vocab_size_multiple: Size | None = None
    time_step_rank: Size | Annotated[str, Only("auto")] = "auto"
    tie_word_embeddings: bool = True


def from_config(config: Mapping[str, Any], path: str) -> MambaSpec:
    """Reads a Hugging Face config."""
    found = read_hub_config(MambaConfig, config, path)
    rank = found.time_step_rank
    return MambaSpec(
        **state_space_sizes(found),
        channels=int(found.expand * found.hidden_size),
        rank=math.ceil(found.hidden_size / 16) if isinstance(rank, str) else rank,
        bias=found.use_bias,
        tied=found.tie_word_embeddings,
    )


def state_space_sizes(found: StateSpaceConfig) -> dict[str, Any]:
    """Returns values of fields that the specs of Mamba and Mamba-2 share."""
    return {
        "layers": found.num_hidden_layers,
        "embed": found.hidden_size,
        "vocab": found.vocab_size,
        "state": found.state_size,
        "taps": found.conv_kernel,
        "eps": found.layer_norm_epsilon,
        "activation": found.hidden_act,
        "conv_bias": found.use_conv_bias,
    }


LAYER = "backbone.layers.{layer}."
MIXER = f"{LAYER}mixer."
NAMES = {
    "embedding.weight": "backbone.embeddings.weight",
    "norm.weight": "backbone.norm_f.weight",
    "unembedding.weight": "lm_head.weight",
    "blocks.norm.weight": f"{LAYER}norm.weight",
}


def table(spec: MambaSpec) -> Table:
    """Names in Hugging Face files."""
    embed, channels, state, rank = spec.embed, spec.channels, spec.state, spec.rank
    into = f"{MIXER}in_proj"
    cuts = (rank, rank + state)
    parts = ("w_delta_in", "w_b", "w_c")
    rules = [
        *outer_rules(spec, NAMES),
        *conv_rules(spec, channels),
        Rule(
            f"{into}.weight",
            (2 * channels, embed),
            {
                "blocks.mixer.w_in": lambda x: x[:channels].T,
                "blocks.mixer.w_gate": lambda x: x[channels:].T,
            },
        ),
        Rule(
            f"{MIXER}x_proj.weight",
            (rank + 2 * state, channels),
            {f"blocks.mixer.{n}": rows_of(i, cuts) for i, n in enumerate(parts)},
        ),
        one_rule("w_delta", "dt_proj.weight", (channels, rank), turned),
        one_rule("b_delta", "dt_proj.bias", (channels,)),
        one_rule("a_log", "A_log", (channels, state)),
        one_rule("skip", "D", (channels,)),
    ]
    if spec.bias:
        biases = {
            "blocks.mixer.b_in": lambda x: x[:channels],
            "blocks.mixer.b_gate": lambda x: x[channels:],
        }
        rules += [Rule(f"{into}.bias", (2 * channels,), biases)]
    return Table(rules=tuple(rules), same=tied_head(spec, NAMES))


def outer_rules(spec: Any, names: Mapping[str, str]) -> list[Rule]:
    """Returns the rules of the norms, the embedding, and the output of the mixer."""
    shapes = {
        "embedding.weight": (spec.vocab, spec.embed),
        "unembedding.weight": (spec.vocab, spec.embed),
        "norm.weight": (spec.embed,),
        "blocks.norm.weight": (spec.embed,),
    }
    kept = [n for n in names if not (spec.tied and n == "unembedding.weight")]
    rules = [Rule(names[name], shapes[name], {name: same}) for name in kept]
    rules += [one_rule("w_out", "out_proj.weight", (spec.embed, spec.channels), turned)]
    bias = one_rule("b_out", "out_proj.bias", (spec.embed,))
    return [*rules, bias] if spec.bias else rules


def conv_rules(spec: Any, channels: int, mixer: str = MIXER) -> list[Rule]:
    """Returns the rules of a convolution."""
    weight = one_rule(
        "conv.weight",
        "conv1d.weight",
        (channels, 1, spec.taps),
        lambda x: x[:, 0].T,
        mixer,
    )
    bias = one_rule("conv.bias", "conv1d.bias", (channels,), same, mixer)
    return [weight, bias] if spec.conv_bias else [weight]


def one_rule(
    leaf: str,
    name: str,
    shape: tuple[int, ...],
    make: Any = same,
    mixer: str = MIXER,
) -> Rule:
    """Returns the rule of a tensor of the mixer that is one leaf."""
    return Rule(f"{mixer}{name}", shape, {f"blocks.mixer.{leaf}": make})


def rows_of(index: int, cuts: tuple[int, ...]) -> Any:
    """Return a function that slices one of several matrices joined by rows."""
    return lambda x: np.split(x, cuts)[index].T


def mamba(layers: int, embed: int) -> MambaSpec:
    """A Mamba as it was published."""
    return MambaSpec(
        layers=layers,
        embed=embed,
        channels=2 * embed,
        vocab=50280,
        rank=math.ceil(embed / 16),
    )


PRESETS = {
    "mamba-130m": Preset(mamba(24, 768), "state-spaces/mamba-130m-hf"),
    "mamba-370m": Preset(mamba(48, 1024), "state-spaces/mamba-370m-hf"),
    "mamba-790m": Preset(mamba(48, 1536), "state-spaces/mamba-790m-hf"),
    "mamba-1.4b": Preset(mamba(48, 2048), "state-spaces/mamba-1.4b-hf"),
    "mamba-2.8b": Preset(mamba(64, 2560), "state-spaces/mamba-2.8b-hf"),
}
MAMBA = Family(
    name="mamba",
    spec=MambaSpec,
    init=init,
    presets=PRESETS,
    from_config=from_config,
    table=table,
)
