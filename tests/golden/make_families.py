"""Tiny models of many decoder families and what `transformers` computes with them.

Environment of its own (Python 3.11, CPU): torch==2.13.0, transformers==5.24.0,
safetensors==0.8.0, numpy. No network. Run from anywhere, for all families or some:

    python tests/golden/make_families.py [NAME ...]

Writes `families/<name>.npz`; see README.md of this folder. The weights are not stored:
`tests/family_weights.py` makes them again from the names and shapes in the file.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
)

sys.path.insert(0, str(Path(__file__).parents[1]))
from family_weights import weights

HERE = Path(__file__).parent / "families"
VOCAB, SEQ, SHORT, STEPS = 64, 10, 6, 4
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": None,
}
ROPE = {"rope_type": "default", "rope_theta": 100.0}
FULL, LOCAL = "full_attention", "sliding_attention"
MIXED = [LOCAL, FULL, LOCAL]
NAMELESS = dict.fromkeys(
    (
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "intermediate_size",
    ),
    ...,
)
# Eager attention of transformers 5.24 adds Falcon's ALiBi twice; the default does not.
SDPA = {"falcon_alibi"}
# A clamp that is reached, and a ramp between pairs.
GPT_OSS = {
    "model_type": "gpt_oss",
    "head_dim": 8,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 100.0,
        "factor": 8.0,
        "original_max_position_embeddings": 12,
        "beta_fast": 1.5,
        "beta_slow": 0.5,
        "truncate": False,
    },
    "sliding_window": 3,
    "layer_types": MIXED,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "swiglu_limit": 0.8,
    "swiglu_alpha": 1.3,
}
DEEPSEEK = {
    "model_type": "deepseek_v3",
    "num_key_value_heads": 4,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 100.0,
        "factor": 8.0,
        "original_max_position_embeddings": 12,
        "beta_fast": 1.5,
        "beta_slow": 0.5,
        "mscale": 1.0,
        "mscale_all_dim": 0.7,
    },
    "q_lora_rank": 12,
    "kv_lora_rank": 10,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 6,
    "v_head_dim": 5,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 8,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
}
FALCON = {"num_key_value_heads": ..., "intermediate_size": ...}
LINEAR = {
    "linear_conv_kernel_dim": 3,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
# Windows are shorter than the prompt, so that they matter; `...` leaves a key out.
FAMILIES = {
    "mistral": {
        "model_type": "mistral",
        "head_dim": 8,
        "sliding_window": 3,
        "rope_parameters": ROPE,
        "rms_norm_eps": 1e-5,
    },
    "qwen2": {
        "model_type": "qwen2",
        "rope_parameters": ROPE,
        "tie_word_embeddings": True,
    },
    "qwen2_window": {
        "model_type": "qwen2",
        "rope_parameters": ROPE,
        "use_sliding_window": True,
        "sliding_window": 3,
        "max_window_layers": 1,
    },
    "qwen3": {
        "model_type": "qwen3",
        "head_dim": 8,
        "rope_parameters": ROPE,
        "tie_word_embeddings": True,
    },
    "gpt_neox": {
        "model_type": "gpt_neox",
        "hidden_size": 32,
        "num_key_value_heads": ...,
        "rope_parameters": ROPE | {"partial_rotary_factor": 0.5},
        "layer_norm_eps": 1e-5,
    },
    "gpt_neox_serial": {
        "model_type": "gpt_neox",
        "num_key_value_heads": ...,
        "rope_parameters": ROPE | {"partial_rotary_factor": 1.0},
        "use_parallel_residual": False,
        "attention_bias": False,
        "tie_word_embeddings": True,
    },
    "gemma": {
        "model_type": "gemma",
        "head_dim": 8,
        "rope_parameters": ROPE,
    },
    "gemma2": {
        "model_type": "gemma2",
        "head_dim": 8,
        "rope_parameters": ROPE,
        "sliding_window": 3,
        "layer_types": MIXED,
        "query_pre_attn_scalar": 5,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
    },
    "gemma3_text": {
        "model_type": "gemma3_text",
        "head_dim": 8,
        "rope_parameters": {
            LOCAL: ROPE,
            FULL: {"rope_type": "linear", "rope_theta": 1000.0, "factor": 4.0},
        },
        "sliding_window": 3,
        "layer_types": MIXED,
        "query_pre_attn_scalar": 5,
    },
    "olmo2": {
        "model_type": "olmo2",
        "rope_parameters": ROPE,
        "rms_norm_eps": 1e-6,
    },
    "olmo3": {
        "model_type": "olmo3",
        "rope_parameters": {
            LOCAL: ROPE,
            FULL: {
                "rope_type": "yarn",
                "rope_theta": 100.0,
                "factor": 8.0,
                "original_max_position_embeddings": 12,
                "attention_factor": 1.2,
                "beta_fast": 1.5,
                "beta_slow": 0.5,
            },
        },
        "sliding_window": 3,
        "layer_types": MIXED,
    },
    "phi3": {
        "model_type": "phi3",
        "rope_parameters": ROPE | {"partial_rotary_factor": 0.5},
        "hidden_size": 32,
        "sliding_window": 5,
    },
    "smollm3": {
        "model_type": "smollm3",
        "rope_parameters": ROPE,
        "no_rope_layers": [1, 0, 1],
    },
    "granite": {
        "model_type": "granite",
        "rope_parameters": ROPE,
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.6,
        "residual_multiplier": 0.7,
        "logits_scaling": 2.5,
        "tie_word_embeddings": True,
    },
    "phi": {
        "model_type": "phi",
        "hidden_size": 32,
        "num_key_value_heads": 4,
        "rope_parameters": ROPE | {"partial_rotary_factor": 0.5},
    },
    "gpt_neo": {
        "model_type": "gpt_neo",
        **NAMELESS,
        "num_layers": 3,
        "num_heads": 4,
        "attention_types": [[["local"], 1], [["global", "local"], 1]],
        "window_size": 3,
    },
    "gptj": {
        "model_type": "gptj",
        **NAMELESS,
        "hidden_size": ...,
        "max_position_embeddings": ...,
        "n_embd": 32,
        "n_head": 4,
        "n_layer": 3,
        "n_positions": 64,
        "n_inner": 24,
        "rotary_dim": 4,
    },
    "opt": {
        "model_type": "opt",
        "num_key_value_heads": ...,
        "intermediate_size": ...,
        "ffn_dim": 24,
    },
    "mixtral": {
        "model_type": "mixtral",
        "rope_parameters": ROPE,
        "sliding_window": 5,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
    "qwen3_moe": {
        "model_type": "qwen3_moe",
        "head_dim": 8,
        "rope_parameters": ROPE,
        "moe_intermediate_size": 12,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
        "tie_word_embeddings": True,
    },
    "qwen3_moe_unscaled": {
        "model_type": "qwen3_moe",
        "head_dim": 8,
        "rope_parameters": ROPE,
        "moe_intermediate_size": 12,
        "num_experts": 4,
        "num_experts_per_tok": 3,
    },
    "olmoe": {
        "model_type": "olmoe",
        "rope_parameters": ROPE,
        "num_experts": 4,
        "num_experts_per_tok": 2,
    },
    "mamba": {
        "model_type": "mamba",
        **NAMELESS,
        "max_position_embeddings": ...,
        "num_hidden_layers": 3,
        "state_size": 4,
        "time_step_rank": 2,
    },
    "mamba_bias": {
        "model_type": "mamba",
        **NAMELESS,
        "max_position_embeddings": ...,
        "num_hidden_layers": 3,
        "state_size": 3,
        "conv_kernel": 3,
        "use_bias": True,
        "use_conv_bias": False,
        "tie_word_embeddings": False,
    },
    "mamba2": {
        "model_type": "mamba2",
        **NAMELESS,
        "max_position_embeddings": ...,
        "num_hidden_layers": 3,
        "state_size": 3,
        "num_heads": 8,
        "head_dim": 4,
        "n_groups": 2,
        "chunk_size": 4,
    },
    "qwen3_next": {
        "model_type": "qwen3_next",
        "num_hidden_layers": 4,
        "head_dim": 8,
        "rope_parameters": ROPE | {"partial_rotary_factor": 0.5},
        "moe_intermediate_size": 12,
        "shared_expert_intermediate_size": 10,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        **LINEAR,
    },
    "qwen3_5_text": {
        "model_type": "qwen3_5_text",
        "head_dim": 8,
        "rope_parameters": ROPE
        | {
            "partial_rotary_factor": 0.5,
            "mrope_section": [1, 1, 0],
            "mrope_interleaved": True,
        },
        "layer_types": [FULL, "linear_attention", FULL],
        "tie_word_embeddings": True,
        **LINEAR,
    },
    # The text model of a multimodal checkpoint.
    "gemma3": {
        "model_type": "gemma3",
        **dict.fromkeys(SIZES, ...),
        "mm_tokens_per_image": 1,
        "text_config": SIZES
        | {
            "head_dim": 8,
            "rope_parameters": {
                LOCAL: ROPE,
                FULL: {"rope_type": "linear", "rope_theta": 1000.0, "factor": 4.0},
            },
            "sliding_window": 3,
            "layer_types": MIXED,
            "query_pre_attn_scalar": 5,
        },
        "vision_config": {
            "hidden_size": 8,
            "intermediate_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "image_size": 4,
            "patch_size": 2,
        },
        "image_token_index": 62,
        "boi_token_index": 61,
        "eoi_token_index": 63,
    },
    "bloom": {
        "model_type": "bloom",
        **NAMELESS,
        "max_position_embeddings": ...,
        "n_layer": 3,
        "n_head": 4,
    },
    "falcon": {
        "model_type": "falcon",
        **FALCON,
        "rope_parameters": ROPE,
    },
    "falcon_grouped": {
        "model_type": "falcon",
        **FALCON,
        "rope_parameters": ROPE,
        "new_decoder_architecture": True,
        "num_kv_heads": 2,
        "ffn_hidden_size": 24,
        "tie_word_embeddings": False,
    },
    # With 16 heads some slopes are not values of bfloat16.
    "falcon_alibi": {
        "model_type": "falcon",
        **FALCON,
        "hidden_size": 32,
        "num_attention_heads": 16,
        "alibi": True,
        "bias": True,
        "multi_query": False,
        "parallel_attn": False,
    },
    "deepseek_v3": DEEPSEEK,
    "deepseek_v3_plain": DEEPSEEK
    | {
        "rope_parameters": ROPE,
        "rope_interleave": False,
        "q_lora_rank": None,
        "norm_topk_prob": False,
        "first_k_dense_replace": 0,
        "tie_word_embeddings": True,
    },
    "gpt_oss": GPT_OSS,
    "gpt_oss_mxfp4": GPT_OSS
    | {
        "hidden_size": 32,
        "intermediate_size": 32,
        "quantization_config": {"quant_method": "mxfp4"},
    },
}


def main():
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    HERE.mkdir(exist_ok=True)
    for name in sys.argv[1:] or FAMILIES:
        np.savez_compressed(HERE / f"{name}.npz", **golden(name, FAMILIES[name]))


def golden(name, keys):
    """Save a model as transformers does, give it other weights, and run it."""
    keys = {key: value for key, value in (SIZES | keys).items() if value is not ...}
    quantized = keys.pop("quantization_config", None)
    config = AutoConfig.for_model(**keys)
    whole = hasattr(config, "vision_config")
    kind = AutoModelForImageTextToText if whole else AutoModelForCausalLM
    model = kind.from_config(config)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        model.save_pretrained(folder)
        shapes = {key: value.shape for key, value in load_file(path).items()}
        if quantized:
            shapes = packed(shapes)
            note(Path(folder) / "config.json", quantized)
        save_file(weights(shapes), path, {"format": "pt"})
        attention = "sdpa" if name in SDPA else "eager"
        model = kind.from_pretrained(
            folder, attn_implementation=attention, dtype=torch.float32
        ).eval()
        content = (Path(folder) / "config.json").read_text()
    arrays = next(filter(None, (reference(model, seed) for seed in range(50))))
    print(name, model.config.model_type, f"logits {arrays['logits'].std():.2f}")
    for key, text in (("config", content), ("shapes", json.dumps(shapes))):
        arrays[key] = np.frombuffer(text.encode(), np.uint8)
    return arrays


def packed(shapes):
    """Replace the matrices of experts by transposed blocks of four bits and scales."""
    found = {}
    for name, shape in shapes.items():
        if not name.endswith(("gate_up_proj", "down_proj")):
            found[name] = shape
            continue
        count, rows, columns = shape
        found[f"{name}_blocks"] = (count, columns, rows // 32, 16)
        found[f"{name}_scales"] = (count, columns, rows // 32)
    return found


def note(path, quantized):
    """Add the format of the weights to a config."""
    config = json.loads(path.read_text()) | {"quantization_config": quantized}
    path.write_text(json.dumps(config))


def reference(model, seed):
    """Run a prompt; `None` if a greedy choice of a continuation is not clear."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, VOCAB, (1, SEQ), generator=generator)
    outputs, handles = [], []
    for layer in layers_of(model):
        keep = lambda _module, _args, out: outputs.append(  # noqa: E731
            (out if isinstance(out, torch.Tensor) else out[0])[0].numpy()
        )
        handles.append(layer.register_forward_hook(keep))
    logits = model(tokens).logits[0].numpy()
    for handle in handles:
        handle.remove()
    arrays = {
        "tokens": tokens[0].numpy(),
        "logits": logits,
        "blocks": np.stack(outputs),
    }
    for length in (SEQ, SHORT):
        new = greedy(model, tokens[:, :length])
        if new is None:
            return None
        arrays[f"generated_{length}"] = new
    return arrays


def layers_of(model):
    """Return the blocks: the longest list of modules."""
    lists = [m for m in model.modules() if isinstance(m, torch.nn.ModuleList)]
    return max(lists, key=len)


def greedy(model, prompt):
    new = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=STEPS,
        min_new_tokens=STEPS, do_sample=False, pad_token_id=0, eos_token_id=None,
    )[0, prompt.shape[1]:]  # fmt: skip
    whole = torch.cat([prompt[0], new])[None]
    top = model(whole).logits[0, prompt.shape[1] - 1 : -1].topk(2)
    if not torch.equal(top.indices[:, 0], new):
        raise ValueError("generation with a cache differs from the whole text")
    clear = (top.values[:, 0] - top.values[:, 1]).min() > 1e-2
    return new.numpy() if clear else None


if __name__ == "__main__":
    main()
