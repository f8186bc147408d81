"""Patching grids of the tiny grouped-query Llama, by a loop in plain torch.

Environment of its own (Python 3.11, CPU): torch==2.13.0, transformers==5.23.0, numpy.
No network. Needs `hf/llama` (run make_hf.py first):

    python tests/golden/make_llama_grids.py

Writes `llama/grids.npz`. Keys and values are patched in the view of one query head:
the other query heads of its group keep theirs.
"""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch_llama import Shape, forward, grid, set_head, set_pattern, set_position
from transformers import LlamaForCausalLM

HERE = Path(__file__).parent
ANSWER, WRONG = 17, 230
DIFFER_FROM = 5


def main():
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    reference = LlamaForCausalLM.from_pretrained(
        HERE / "hf" / "llama", attn_implementation="eager"
    )
    weights = dict(reference.state_dict())
    shape = Shape(layers=3, heads=4, kv_heads=2, head_dim=8, theta=10000.0, eps=1e-6)
    clean, corrupt = pair(300)
    for tokens in (clean, corrupt):
        ours = forward(weights, shape, tokens)
        difference = (ours - reference(tokens).logits).abs().max().item()
        print(f"plain torch against transformers: {difference:.1e}")
        assert difference < 1e-5
    keep_clean, keep_corrupt = {}, {}
    run = partial(forward, weights, shape)
    arrays = {
        "clean": clean,
        "corrupt": corrupt,
        "answer": torch.tensor(ANSWER),
        "wrong": torch.tensor(WRONG),
        "metric_clean": metric(run(clean, keep=keep_clean)),
        "metric_corrupt": metric(run(corrupt, keep=keep_corrupt)),
    }
    into_corrupt = partial(grid, lambda edits: metric(run(corrupt, edits)), range(3))
    into_clean = partial(grid, lambda edits: metric(run(clean, edits)), range(3))
    arrays["resid_pre_position"] = into_corrupt(
        "resid_pre", set_position, keep_clean, clean.shape[1]
    )
    for site in ("z", "q", "k", "v", "pattern"):
        setter = set_pattern if site == "pattern" else set_head
        arrays[f"{site}_head"] = into_corrupt(site, setter, keep_clean, shape.heads)
    arrays["z_head_noising"] = into_clean("z", set_head, keep_corrupt, shape.heads)
    for site in ("q", "k", "v", "z", "pattern"):
        array = torch.stack([keep_clean[site, i] for i in range(3)], 1)
        arrays[f"clean_{site}"] = array.transpose(2, 3) if site == "pattern" else array
    check(arrays)
    (HERE / "llama").mkdir(exist_ok=True)
    arrays = {name: np.asarray(value) for name, value in arrays.items()}
    np.savez_compressed(HERE / "llama" / "grids.npz", **arrays)


def pair(vocab):
    """Two prompts and their twins, equal before position 5 and not at it."""
    generator = torch.Generator().manual_seed(7)
    clean = torch.randint(1, vocab, (2, 12), generator=generator)
    shift = torch.randint(1, vocab - 1, (2, 12), generator=generator)
    corrupt = clean.clone()
    corrupt[:, DIFFER_FROM:] = ((clean + shift - 1) % (vocab - 1) + 1)[:, DIFFER_FROM:]
    return clean, corrupt


def metric(logits):
    return logits[:, -1, ANSWER] - logits[:, -1, WRONG]


def check(arrays):
    """The grids must be able to tell a wrong implementation from a right one."""
    base = arrays["metric_corrupt"][:, None, None]
    assert (arrays["resid_pre_position"][:, :, :DIFFER_FROM] == base).all()
    key = arrays["k_head"]
    within = (key[:, :, 0::2] - key[:, :, 1::2]).abs().min()
    print(f"query heads of one group differ by at least {within:.3f}")
    assert within > 1e-3


if __name__ == "__main__":
    main()
