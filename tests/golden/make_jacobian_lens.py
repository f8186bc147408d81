"""Jacobian lens and decompositions by TransformerLens for `hf/gpt2`.

Environment of its own (Python 3.11, CPU): torch==2.13.0, transformer-lens==4.3.0,
transformers==5.24.0, numpy. No network. `-P` keeps the folder `transformer_lens` next
to this file from being imported:

    python -P tests/golden/make_jacobian_lens.py

Writes `jacobian_lens/lens.pt` (as the library saves it, float16) and
`jacobian_lens/gpt2.npz`; token ids go in as texts that a stub tokenizer reads.

| array | shape |
|---|---|
| tokens_0, tokens_1 | [12], [9] |
| jacobian | [layer - 1, embed, embed], of both prompts, two positions skipped |
| logits | [layer, 12, vocab], of the lens on the first prompt |
| vectors | [3, embed], of tokens 7, 11, 19 at layer 1 |
| steered, ablated, swapped, clamped | [12, vocab], logits of the first prompt |
| x, atoms | [4, embed], [90, embed], of a decomposition |
| {exact, gradient}_{support, coordinates, selected, component} | of x, filled |
"""

from pathlib import Path

import numpy as np
import torch
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.tools.analysis.jacobian_lens import JacobianLens
from transformer_lens.tools.analysis.jacobian_lens_decomposition import (
    get_sparse_decomposition,
)

HERE = Path(__file__).parent
OUT = HERE / "jacobian_lens"
K = 12
ALGORITHMS = {
    "exact": "nonnegative_orthogonal_matching_pursuit",
    "gradient": "gradient_pursuit",
}


def main():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    OUT.mkdir(exist_ok=True)
    tokens = np.load(HERE / "hf" / "gpt2.npz")["tokens"]
    rows = [tokens[0], tokens[1][:9]]
    model = TransformerBridge.boot_transformers(
        str(HERE / "hf" / "gpt2"), device="cpu", dtype=torch.float32
    )
    model.eval()
    model.to_tokens = lambda text, **_: torch.tensor([[int(i) for i in text.split()]])
    texts = [" ".join(map(str, row)) for row in rows]
    lens = JacobianLens.fit(
        model,
        texts,
        corpus="hf/gpt2.npz",
        skip_first_positions=2,
        show_progress=False,
    )
    lens.save(OUT / "lens.pt")
    ids = torch.tensor(rows[0])[None]
    read = lens.readout(model, texts[0], return_full_logits=True)
    layers = [read.lens_logits[i].numpy() for i in sorted(read.lens_logits)]
    np.savez_compressed(
        OUT / "gpt2.npz",
        tokens_0=rows[0],
        tokens_1=rows[1],
        jacobian=np.stack([lens.jacobians[i].numpy() for i in lens.source_layers]),
        logits=np.stack(layers),
        vectors=lens.lens_vectors(model, [7, 11, 19], 1).detach().numpy(),
        **interventions(lens, model, ids),
        **decompositions(),
    )


def interventions(lens, model, ids):
    """Logits under hooks at layer 1, or at layers 0 and 1 with clean coordinates."""
    with torch.no_grad():
        _, clean = model.run_with_cache(ids)
        hooks = {
            "steered": lens.steering_hooks(model, 7, [1], alpha=4.0),
            "ablated": lens.ablation_hooks(model, [7, 11], [0, 1]),
            "swapped": lens.swap_hooks(model, 7, 11, [1], alpha=2.0),
            "clamped": lens.swap_hooks(model, 7, 11, [0, 1], clamp_to=clean),
        }
        return {
            name: model.run_with_hooks(ids, fwd_hooks=each)[0].numpy()
            for name, each in hooks.items()
        }


def decompositions():
    generator = np.random.default_rng(0)
    atoms = generator.standard_normal((90, 32)).astype(np.float32)
    atoms[40:] = atoms[:50] + 0.4 * atoms[40:]  # far from orthogonal
    x = generator.standard_normal((4, 32)).astype(np.float32)
    found = {"x": x, "atoms": atoms}
    for name, algorithm in ALGORITHMS.items():
        each = [
            get_sparse_decomposition(
                torch.tensor(row), torch.tensor(atoms), K, algorithm=algorithm
            )
            for row in x
        ]
        found[f"{name}_support"] = filled([one.support for one in each], -1)
        found[f"{name}_coordinates"] = filled([one.coordinates for one in each], 0)
        found[f"{name}_selected"] = filled([one.selected_support for one in each], -1)
        component = [one.j_space_component.numpy() for one in each]
        found[f"{name}_component"] = np.stack(component)
    return found


def filled(rows, value):
    arrays = [row.numpy() for row in rows]
    out = np.full((len(arrays), K), value, arrays[0].dtype)
    for row, array in zip(out, arrays, strict=True):
        row[: len(array)] = array
    return out


if __name__ == "__main__":
    main()
