"""Outputs of `tuned-lens` for the tiny GPT-2 in `hf/gpt2`.

Environment of its own (Python 3.11, CPU): torch==2.13.0, transformers==5.24.0,
tuned-lens==0.2.0 (installed with --no-deps), numpy. Run from anywhere;
`-P` keeps the folder `transformer_lens` next to this file from being imported:

    python -P tests/golden/make_tuned_lens.py

Writes `tuned_lens/lens/` (config.json, params.pt: a lens with random maps) and
`tuned_lens/gpt2.npz`:

| array | shape |
|---|---|
| tokens | [3, 12] |
| logits | [layer, 3, 12, vocab], of that lens on the inputs of blocks |
| kl | [layer], mean of KL(model || lens) |
| cross_entropy | [layer], mean of the next token under the lens |
| trained_weight, trained_bias | after 4 of 5 updates by SGD as the package has it |
| losses | [4, layer], before each update |
"""

from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM
from tuned_lens.nn.lenses import TunedLens

HERE = Path(__file__).parent
STEPS, DONE = 5, 4


def main():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    folder = HERE / "hf" / "gpt2"
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    model.config.name_or_path = "hf/gpt2"
    tokens = torch.from_numpy(np.load(HERE / "hf" / "gpt2.npz")["tokens"]).long()
    lens = TunedLens.from_model(model, model_revision="main")
    with torch.no_grad():
        for map_ in lens.layer_translators:
            map_.weight.normal_(std=0.05)
            map_.bias.normal_(std=0.1)
        found = model(tokens, output_hidden_states=True)
    hidden = [h.detach() for h in found.hidden_states[:-1]]
    log_p = found.logits.detach().log_softmax(-1)
    lens.save(HERE / "tuned_lens" / "lens")
    with torch.no_grad():
        logits = torch.stack([lens(h, i) for i, h in enumerate(hidden)])
        kl = torch.stack([divergence(log_p, one).mean() for one in logits])
        following = logits[:, :, :-1].log_softmax(-1)
        goal = tokens[None, :, 1:, None].expand(len(hidden), -1, -1, 1)
        cross_entropy = -following.gather(-1, goal).mean((1, 2, 3))
    losses = train(lens, hidden, log_p)
    np.savez_compressed(
        HERE / "tuned_lens" / "gpt2.npz",
        tokens=tokens.numpy(),
        logits=logits.numpy(),
        kl=kl.numpy(),
        cross_entropy=cross_entropy.numpy(),
        losses=losses,
        trained_weight=stacked(lens, "weight"),
        trained_bias=stacked(lens, "bias"),
    )


def divergence(log_p, logits):
    return (log_p.exp() * (log_p - logits.log_softmax(-1))).sum(-1)


def stacked(lens, name):
    maps = [getattr(m, name).detach().numpy() for m in lens.layer_translators]
    return np.stack(maps)


def train(lens, hidden, log_p):
    """Update as the package does: SGD, Nesterov, falling rate, clipped gradients."""
    parameters = [p for p in lens.parameters() if p.requires_grad]
    momentum = 0.9
    optimizer = torch.optim.SGD(
        parameters, lr=1 - momentum, momentum=momentum, nesterov=True, weight_decay=1e-3
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: (STEPS - step) / STEPS
    )
    losses = []
    for _ in range(DONE):
        each = [divergence(log_p, lens(h, i)).mean() for i, h in enumerate(hidden)]
        torch.stack(each).sum().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append([loss.item() for loss in each])
    return np.array(losses, np.float32)


if __name__ == "__main__":
    main()
