"""Adapters of the tiny Llama and GPT-2 of `hf`, and what `peft` computes with them.

Environment of its own (Python 3.11, CPU): torch==2.13.0, transformers==5.24.0,
peft==0.21.2, accelerate==1.15.0, safetensors==0.8.0, numpy. No network. Run from
anywhere:

    python tests/golden/make_adapters.py

Writes the folders `adapters/<name>` as peft saves them, and `adapters/<name>.npz`.
"""

from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

HERE = Path(__file__).parent
# GPT-2 stores matrices the other way round; one of its four is square.
ADAPTERS = {
    "llama": LoraConfig(
        r=3,
        lora_alpha=5,
        target_modules=["q_proj", "v_proj", "down_proj"],
        rank_pattern={"layers.1.self_attn.q_proj": 2},
        alpha_pattern={"down_proj": 7},
        use_rslora=True,
    ),
    "gpt2": LoraConfig(
        r=2,
        lora_alpha=3,
        target_modules=["c_attn", "c_proj", "c_fc"],
        fan_in_fan_out=True,
    ),
}


def main():
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    for name, config in ADAPTERS.items():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_pretrained(
            HERE / "hf" / name, attn_implementation="eager"
        )
        tokens = torch.from_numpy(np.load(HERE / "hf" / f"{name}.npz")["tokens"])
        plain = model(tokens).logits
        model.name_or_path = f"hf/{name}"
        model = get_peft_model(model, config).eval()
        for key, value in model.named_parameters():
            if "lora_" in key:
                value.copy_(0.3 * torch.randn(value.shape))
        logits = model(tokens).logits
        folder = HERE / "adapters" / name
        model.save_pretrained(folder)
        (folder / "README.md").unlink()
        np.savez_compressed(
            HERE / "adapters" / f"{name}.npz", tokens=tokens, logits=logits
        )
        print(name, f"logits moved by up to {(logits - plain).abs().max():.2f}")


if __name__ == "__main__":
    main()
