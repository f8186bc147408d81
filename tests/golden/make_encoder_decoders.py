"""Tiny encoder-decoders and what `transformers` computes with them.

Environment of its own (Python 3.11, CPU): torch==2.13.0, transformers==5.24.0,
safetensors==0.8.0, numpy. No network. Run from anywhere, for all models or some:

    python tests/golden/make_encoder_decoders.py [NAME ...]

Writes `encoder_decoders/<name>.npz`; see README.md of this folder. The weights are not
stored: `tests/family_weights.py` makes them again from the names and shapes in the
file.
"""

import importlib.util
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

# A torchvision of another version stops transformers; these models do not need it.
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *args: (
    None if name.startswith("torchvision") else find(name, *args)
)

import torch  # noqa: E402
from safetensors.numpy import load_file, save_file  # noqa: E402
from transformers import (  # noqa: E402
    AutoConfig,
    AutoModelForSeq2SeqLM,
    AutoModelForSpeechSeq2Seq,
    WhisperFeatureExtractor,
)
from transformers.models.t5.modeling_t5 import T5Attention  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[1]))
from family_weights import recording, weights  # noqa: E402

HERE = Path(__file__).parent / "encoder_decoders"
VOCAB, SOURCE, SHORT, TARGET, NEW = 64, 14, 9, 8, 5
TOWERS = ("encoder", "decoder")
T5 = {
    "vocab_size": VOCAB,
    "d_model": 16,
    "d_kv": 6,
    "d_ff": 24,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
GATED = {
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
    "num_layers": 3,
    "num_decoder_layers": 2,
}
WHISPER = {
    "vocab_size": VOCAB,
    "num_mel_bins": 5,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 24,
    "decoder_layers": 3,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 20,
    "d_model": 16,
    "max_source_positions": 7,
    "max_target_positions": 20,
    "decoder_start_token_id": 3,
    "bos_token_id": 4,
    "eos_token_id": 4,
    "pad_token_id": 4,
    "begin_suppress_tokens": None,
}
# Name: `model_type`, config, and the tensors that are saved although they are tied.
MODELS = {
    "t5_relu": (
        "t5",
        {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 6},
        (),
    ),
    "t5_gated": (
        "t5",
        GATED
        | {"relative_attention_num_buckets": 12, "relative_attention_max_distance": 20},
        ("lm_head.weight",),
    ),
    "t5_one_table": ("t5", GATED, ()),
    "whisper": ("whisper", WHISPER, ()),
}


def main():
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    HERE.mkdir(exist_ok=True)
    for name in sys.argv[1:] or MODELS:
        np.savez_compressed(HERE / f"{name}.npz", **golden(name, *MODELS[name]))


def golden(name, kind, changes, extra):
    """Save a model as transformers does, give it other weights, and run it."""
    t5 = kind == "t5"
    config = AutoConfig.for_model(kind, **(T5 | changes if t5 else changes))
    auto = AutoModelForSeq2SeqLM if t5 else AutoModelForSpeechSeq2Seq
    model = auto.from_config(config)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        model.save_pretrained(folder)
        shapes = {key: list(value.shape) for key, value in load_file(path).items()}
        state = model.state_dict()
        shapes |= {key: list(state[key].shape) for key in extra}
        save_file(weights(shapes), path, {"format": "pt"})
        model = auto.from_pretrained(folder, attn_implementation="eager").eval()
        content = (Path(folder) / "config.json").read_text()
    arrays = reference(model)
    arrays |= {"t5_relu": buckets, "whisper": spectrograms}.get(name, dict)()
    print(name, f"logits {arrays['logits'].std():.2f}")
    for key, text in (("config", content), ("shapes", json.dumps(shapes))):
        arrays[key] = np.frombuffer(text.encode(), np.uint8)
    return arrays


def buckets():
    """Buckets of distances from -200 to 200, for some numbers of buckets."""
    found, distance = {}, torch.arange(-200, 201)
    for count, far in ((32, 128), (64, 128), (32, 256), (12, 20), (8, 6)):
        for causal in (False, True):
            found[f"buckets_{count}_{far}_{causal:d}"] = (
                T5Attention._relative_position_bucket(
                    -distance,
                    bidirectional=not causal,
                    num_buckets=count,
                    max_distance=far,
                )
                .numpy()
                .astype(np.int8)
            )
    return found


def spectrograms():
    """Run the preprocessing of Whisper on 0.7 s of tones and noise, after a pause."""
    found = {}
    for mels in (80, 128):
        extract = WhisperFeatureExtractor(feature_size=mels, chunk_length=1)
        spectrogram = extract(recording(), sampling_rate=16000)["input_features"][0]
        # Every third frame of the larger one, to keep the file small.
        found[f"mel_{mels}"] = spectrogram[:, :: 1 if mels == 80 else 3]
    return found


def reference(model):
    """Run two sources, of which the second of texts is padded, with a target each."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randint(3, VOCAB, shape, generator=generator)  # noqa: E731
    config = model.config
    if config.model_type == "whisper":
        shape = (2, config.num_mel_bins, 2 * config.max_source_positions)
        source = torch.randn(shape, generator=generator)
        inputs, padding = {"input_features": source}, {}
        towers = {name: getattr(model.model, name).layers for name in TOWERS}
    else:
        source, lengths = draw(2, SOURCE), torch.tensor([SOURCE, SHORT])
        mask = (torch.arange(SOURCE) < lengths[:, None]).long()
        inputs = {"input_ids": source, "attention_mask": mask}
        padding = {"lengths": lengths.numpy()}
        towers = {name: getattr(model, name).block for name in TOWERS}
    target = draw(2, TARGET)
    target[:, 0] = config.decoder_start_token_id
    seen = {name: [] for name in TOWERS}
    for name, blocks in towers.items():
        for block in blocks:
            block.register_forward_hook(
                lambda _, __, out, to=seen[name]: to.append(
                    out[0] if isinstance(out, tuple) else out
                )
            )
    out = model(**inputs, decoder_input_ids=target, output_attentions=True)
    arrays = padding | {
        "source": source.numpy(),
        "target": target.numpy(),
        "logits": out.logits.numpy(),
        "memory": out.encoder_last_hidden_state.numpy(),
        "cross": torch.stack(out.cross_attentions).numpy(),
    }
    arrays |= {tower: torch.stack(blocks).numpy() for tower, blocks in seen.items()}
    new = target[:, :1]
    for _ in range(NEW):
        logits = model(**inputs, decoder_input_ids=new).logits[:, -1]
        new = torch.cat([new, logits.argmax(-1, keepdim=True)], 1)
    return arrays | {"generated": new[:, 1:].numpy()}


if __name__ == "__main__":
    main()
