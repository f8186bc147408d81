"""Tiny encoders and what `transformers` computes with them.

Environment of its own (Python 3.11, CPU): torch==2.13.0, transformers==5.24.0,
safetensors==0.8.0, numpy. No network. Run from anywhere, for all encoders or some:

    python tests/golden/make_encoders.py [NAME ...]

Writes `encoders/<name>.npz`; see README.md of this folder. The weights are not stored:
`tests/family_weights.py` makes them again from the names and shapes in the file.
"""

import importlib.util
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

# A torchvision of another version stops transformers; encoders do not need it.
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *args: (
    None if name.startswith("torchvision") else find(name, *args)
)

import torch  # noqa: E402
from safetensors.numpy import load_file, save_file  # noqa: E402
from transformers import (  # noqa: E402
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
)

sys.path.insert(0, str(Path(__file__).parents[1]))
from family_weights import weights  # noqa: E402

HERE = Path(__file__).parent / "encoders"
VOCAB, SEQ = 64, 10
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 20,
}
DISTIL = {
    "vocab_size": VOCAB,
    "dim": 16,
    "n_layers": 3,
    "n_heads": 4,
    "hidden_dim": 24,
    "max_position_embeddings": 20,
}
BODIES = {
    "bert": SIZES,
    "roberta": SIZES | {"type_vocab_size": 1, "layer_norm_eps": 1e-5},
    "distilbert": DISTIL,
    "albert": SIZES | {"embedding_size": 8},
    # A window of two tokens on each side.
    "modernbert": SIZES
    | {
        "local_attention": 4,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 1000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        },
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
        "pad_token_id": 0,
    },
}
HEADS = {
    "masked": AutoModelForMaskedLM,
    "classes": AutoModelForSequenceClassification,
    "features": AutoModel,
}
ENCODERS = {f"{body}_{head}": (body, head) for body in BODIES for head in HEADS}


def main():
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    HERE.mkdir(exist_ok=True)
    for name in sys.argv[1:] or ENCODERS:
        np.savez_compressed(HERE / f"{name}.npz", **golden(*ENCODERS[name]))


def golden(body, head):
    """Save a model as transformers does, give it other weights, and run it."""
    labels = {"num_labels": 3} if head == "classes" else {}
    config = AutoConfig.for_model(body, **BODIES[body], **labels)
    model = HEADS[head].from_config(config)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        model.save_pretrained(folder)
        shapes = {key: value.shape for key, value in load_file(path).items()}
        save_file(weights(shapes), path, {"format": "pt"})
        model = HEADS[head].from_pretrained(folder, attn_implementation="eager").eval()
        content = (Path(folder) / "config.json").read_text()
    arrays = reference(model)
    print(body, head, f"outputs {arrays['logits'].std():.2f}")
    for key, text in (("config", content), ("shapes", json.dumps(shapes))):
        arrays[key] = np.frombuffer(text.encode(), np.uint8)
    return arrays


def reference(model):
    """Run one prompt, in one segment and, where there are more, in two."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, VOCAB, (1, SEQ), generator=generator)
    segments = (torch.arange(SEQ) > 5).long()[None]
    out = model(tokens, output_hidden_states=True)
    arrays = {
        "tokens": tokens[0].numpy(),
        "logits": outputs(out),
        "embed": out.hidden_states[0][0].numpy(),
        "blocks": torch.cat(blocks(model, tokens, out)).numpy(),
    }
    if getattr(model.config, "type_vocab_size", 0) > 1:
        other = model(tokens, token_type_ids=segments)
        arrays |= {"segments": segments[0].numpy(), "logits_segments": outputs(other)}
    return arrays


def blocks(model, tokens, out):
    """Return the output of every block; a final norm is in the last hidden state."""
    found = list(out.hidden_states[1:])
    if hasattr(model.base_model, "final_norm"):
        kept = []
        keep = lambda _module, _args, out: kept.append(out)  # noqa: E731
        handle = model.base_model.layers[-1].register_forward_hook(keep)
        model(tokens)
        handle.remove()
        found[-1] = kept[0]
    return found


def outputs(out):
    found = out.logits if hasattr(out, "logits") else out.last_hidden_state
    return found[0].numpy()


if __name__ == "__main__":
    main()
