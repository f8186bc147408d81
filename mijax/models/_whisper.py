"""Whisper (Radford et al. 2022, arXiv:2212.04356): speech to text.

Keys have no bias. The source is always 30 s long; recordings are padded with silence.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Float, PRNGKeyArray

from mijax.io import Index, Indices, Only, Size
from mijax.models._audio_input import AudioInput
from mijax.models._config import Activation, HubConfig, divide, read_hub_config
from mijax.models._decoder import attention, biases, plain_mlp
from mijax.models._family import Family, Preset, Rule, Table, same
from mijax.models._init import Normal, layer_norm
from mijax.models._leaves import of_tower, plain_names, rules
from mijax.nn import (
    Block,
    CrossAttention,
    CrossBlock,
    Embedding,
    SpeechToText,
    Stack,
    Transformer,
)

EPS = 1e-5
# Samples of each convolution's kernel.
KERNEL = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class WhisperSpec:
    """Sizes of a Whisper.

    Attributes:
        layers: number of blocks of the decoder.
        encoder_layers: number of blocks of the encoder; `layers` by default.
        embed: width of both residual streams.
        heads: attention heads of a block of the decoder.
        encoder_heads: attention heads of a block of the encoder; `heads` by default.
        mlp: neurons of a block of the decoder.
        encoder_mlp: neurons of a block of the encoder; `mlp` by default.
        vocab: number of tokens.
        context: maximum number of tokens in a target.
        mels: filters of the spectrogram.
        source: positions of the encoder, half of the frames of the spectrogram.
        activation: activation of the MLPs.
        start: tokens that every target begins with.
    """

    layers: Size
    encoder_layers: Size | None = None
    embed: Size
    heads: Size
    encoder_heads: Size | None = None
    mlp: Size
    encoder_mlp: Size | None = None
    vocab: Size
    context: Size = 448
    mels: Size = 80
    source: Size = 1500
    activation: Activation = "gelu"
    start: Indices = (0,)

    # The unembedding is the token embedding in every published model.
    tied: ClassVar[bool] = True

    @property
    def encoder(self) -> "WhisperSpec":
        """Sizes of the encoder."""
        return dataclasses.replace(
            self,
            layers=self.encoder_layers or self.layers,
            heads=self.encoder_heads or self.heads,
            mlp=self.encoder_mlp or self.mlp,
            context=self.source,
        )

    @property
    def input(self) -> AudioInput:
        """Preprocessing of audio."""
        return AudioInput(self.mels, 2 * self.source)


def init(spec: WhisperSpec, key: PRNGKeyArray, dtype: DTypeLike) -> SpeechToText:
    """Draws weights of standard deviation 0.02; positions of the source are waves."""
    normal, embed, tower = Normal(key, dtype), spec.embed, spec.encoder
    norms = [layer_norm(embed, dtype, EPS, layers=spec.layers) for _ in range(3)]
    own = heads(normal, spec, dtype, causal=True)
    cross = heads(normal, spec, dtype, causal=False)
    weights = {
        f"{kind}_{x}": getattr(cross, f"{kind}_{x}") for kind in "wb" for x in "qkvo"
    }
    blocks = CrossBlock(
        norms[0],
        own,
        norms[1],
        CrossAttention(**weights),
        norms[2],
        plain_mlp(normal, spec, dtype),
    )
    decoder = Transformer(
        embedding=Embedding(normal(spec.vocab, embed)),
        positions=Embedding(normal(spec.context, embed)),
        blocks=blocks,
        norm=layer_norm(embed, dtype, EPS),
        unembedding=None,
        context=spec.context,
    )
    return SpeechToText(
        conv_1=convolution(normal, spec.mels, embed, dtype),
        conv_2=convolution(normal, embed, embed, dtype, stride=2),
        positions=Embedding(jnp.asarray(waves(spec.source, embed), dtype)),
        encoder=encoder(normal, tower, dtype),
        decoder=decoder,
        start=tuple(spec.start),
    )


def encoder(normal: Normal, spec: WhisperSpec, dtype: DTypeLike) -> Stack:
    """Draw the blocks of the encoder."""
    size, count = spec.embed, spec.layers
    norm_1, norm_2 = (layer_norm(size, dtype, EPS, layers=count) for _ in range(2))
    own = heads(normal, spec, dtype, causal=False)
    blocks = Block(norm_1, own, norm_2, plain_mlp(normal, spec, dtype))
    return Stack(blocks, layer_norm(size, dtype, EPS))


def heads(normal: Normal, spec: WhisperSpec, dtype: DTypeLike, *, causal: bool) -> Any:
    """Draw attention without key biases."""
    fields = biases(spec, dtype, out=True) | {"b_k": None, "causal": causal}
    return attention(normal, spec, {}, **fields)


def convolution(
    normal: Normal, reads: int, writes: int, dtype: DTypeLike, *, stride: int = 1
) -> eqx.nn.Conv1d:
    """Draw a convolution along the frames."""
    key = next(normal.keys)
    sizes = {"stride": stride, "padding": KERNEL // 2, "dtype": dtype, "key": key}
    return eqx.nn.Conv1d(reads, writes, KERNEL, **sizes)


def waves(count: int, embed: int) -> Float[np.ndarray, "position embed"]:
    """Return sines and cosines of every position, of wavelengths up to 20000 pi."""
    frequency = 1e4 ** -(np.arange(embed // 2) / max(1, embed // 2 - 1))
    angle = np.arange(count)[:, None] * frequency
    return np.concatenate([np.sin(angle), np.cos(angle)], 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WhisperConfig(HubConfig):
    """Keys of config.json, of transformers 4 or 5."""

    ignored: ClassVar[frozenset[str]] = frozenset(
        [
            "activation_dropout",
            "apply_spec_augment",
            "attention_dropout",
            "classifier_proj_size",
            "decoder_layerdrop",
            "dropout",
            "encoder_layerdrop",
            "init_std",
            "mask_feature_length",
            "mask_feature_min_masks",
            "mask_feature_prob",
            "mask_time_length",
            "mask_time_min_masks",
            "mask_time_prob",
            "median_filter_width",
            "num_hidden_layers",
            "use_weighted_layer_sum",
        ]
    )

    d_model: Size
    encoder_layers: Size
    encoder_attention_heads: Size
    encoder_ffn_dim: Size
    decoder_layers: Size
    decoder_attention_heads: Size
    decoder_ffn_dim: Size
    vocab_size: Size
    num_mel_bins: Size = 80
    max_source_positions: Size = 1500
    max_target_positions: Size = 448
    activation_function: Activation = "gelu"
    decoder_start_token_id: Index = 50257
    forced_decoder_ids: list[Any] | None = None
    is_decoder: Annotated[bool, Only(False)] = False
    is_encoder_decoder: Annotated[bool, Only(True)] = True
    scale_embedding: Annotated[bool, Only(False)] = False
    tie_word_embeddings: Annotated[bool, Only(True)] = True


def from_config(config: Mapping[str, Any], path: str) -> WhisperSpec:
    """Reads a Hugging Face config."""
    found = read_hub_config(WhisperConfig, config, path)
    for count in (found.encoder_attention_heads, found.decoder_attention_heads):
        divide(found.d_model, count, path)
    return WhisperSpec(
        layers=found.decoder_layers,
        encoder_layers=found.encoder_layers,
        embed=found.d_model,
        heads=found.decoder_attention_heads,
        encoder_heads=found.encoder_attention_heads,
        mlp=found.decoder_ffn_dim,
        encoder_mlp=found.encoder_ffn_dim,
        vocab=found.vocab_size,
        context=found.max_target_positions,
        mels=found.num_mel_bins,
        source=found.max_source_positions,
        activation=found.activation_function,
        start=(found.decoder_start_token_id, *forced(found.forced_decoder_ids)),
    )


def forced(pairs: list[Any] | None) -> list[int]:
    """Return the forced tokens after the first one, up to the first free token."""
    ids = dict(pair for pair in pairs or [] if len(pair) == 2)
    found: list[int] = []
    while isinstance(ids.get(len(found) + 1), int):
        found.append(ids[len(found) + 1])
    return found


def parts(attention: str, norm: str) -> dict[str, str]:
    """Return names of the parts of an attention."""
    names = {x: f"{attention}.{x}_proj" for x in "qkv"}
    return names | {"o": f"{attention}.out_proj", "norm_1": norm}


MLP = {"norm_2": "final_layer_norm", "in": "fc1", "out": "fc2"}
SELF = parts("self_attn", "self_attn_layer_norm")
CROSS = parts("encoder_attn", "encoder_attn_layer_norm")
WORDS = "decoder.embed_tokens.weight"


def table(spec: WhisperSpec) -> Table:
    """Names in Hugging Face files."""
    third = {"blocks.norm_2.": "blocks.norm_3."}
    crossed = {"blocks.norm_1.": "blocks.norm_2.", "blocks.attention.": "blocks.cross."}
    tops = {
        tower: {
            f"norm.{end}": f"{tower}.layer_norm.{end}" for end in ("weight", "bias")
        }
        for tower in ("encoder", "decoder")
    }
    tops["decoder"] |= {
        "embedding.weight": WORDS,
        "positions.weight": "decoder.embed_positions.weight",
    }
    found = [
        *tower_rules(spec.encoder, "encoder", tops["encoder"], SELF | MLP),
        *tower_rules(spec, "decoder", tops["decoder"], SELF),
        *tower_rules(spec, "decoder", {}, MLP, third),
        *tower_rules(spec, "decoder", {}, CROSS, crossed),
        Rule(
            "encoder.embed_positions.weight",
            (spec.source, spec.embed),
            {"positions.weight": same},
        ),
    ]
    for i, reads in ((1, spec.mels), (2, spec.embed)):
        shape = (spec.embed, reads, KERNEL)
        found.append(Rule(f"encoder.conv{i}.weight", shape, {f"conv_{i}.weight": same}))
        bias = {f"conv_{i}.bias": lambda x: x[:, None]}
        found.append(Rule(f"encoder.conv{i}.bias", shape[:1], bias))
    return Table(rules=tuple(found), same={"proj_out.weight": WORDS}, prefix="model.")


def tower_rules(
    spec: WhisperSpec,
    tower: str,
    top: Mapping[str, str],
    parts: Mapping[str, str],
    renamed: Mapping[str, str] | None = None,
) -> list[Rule]:
    """Return the rules of some parts of a tower.

    Args:
        spec: sizes of the tower.
        tower: its name.
        top: names of what is not in its blocks.
        parts: names of parts of its blocks.
        renamed: what leaves of these parts are called here.
    """
    names = plain_names(top, f"{tower}.layers.{{layer}}.", parts)
    names.pop("blocks.attention.b_k", None)
    return [of_tower(r, tower, spec.layers, renamed) for r in rules(spec, names)]


def whisper(layers: int, embed: int, heads: int, **more: Any) -> WhisperSpec:
    """Return the sizes of a published Whisper."""
    sizes = {"layers": layers, "encoder_layers": layers, "embed": embed}
    sizes |= {"heads": heads, "encoder_heads": heads}
    sizes |= {"mlp": 4 * embed, "encoder_mlp": 4 * embed}
    return WhisperSpec(**sizes, **more)


# English only: the second token turns timestamps off.
ENGLISH = {"vocab": 51864, "start": (50257, 50362)}
MANY = {"vocab": 51865, "start": (50258,)}
SIZES = {
    "tiny": (4, 384, 6),
    "base": (6, 512, 8),
    "small": (12, 768, 12),
    "medium": (24, 1024, 16),
}
PRESETS = {
    f"whisper-{name}{end}": Preset(
        whisper(*size, **more), f"openai/whisper-{name}{end}"
    )
    for name, size in SIZES.items()
    for end, more in ((".en", ENGLISH), ("", MANY))
}
WHISPER = Family(
    name="whisper",
    spec=WhisperSpec,
    init=init,
    presets=PRESETS,
    from_config=from_config,
    table=table,
    reader=lambda spec: spec.input,
)
