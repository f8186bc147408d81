"""Makes inception.npz: a tiny InceptionV3 with random weights, and what it computes.

Needs torch 2.13 and timm 1.0.31. All channels are divided by 16. Arrays are
`weights.NAME`, `image`, `logits` and `NAME` for the output of each mixed block.
"""

import importlib
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent
# `timm.models.inception_v3` is also a function.
reference = importlib.import_module("timm.models.inception_v3")


class Narrow(reference.ConvNormAct):
    """A convolution of 1/16 of the channels."""

    def __init__(self, inputs, outputs, **more):
        super().__init__(inputs if inputs == 3 else inputs // 16, outputs // 16, **more)


def main():
    """Write the file."""
    torch.manual_seed(0)
    reference.ConvNormAct = Narrow
    model = reference.InceptionV3(num_classes=5)
    model.fc = torch.nn.Linear(128, 5)
    for name, value in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        noise = torch.randn(value.shape)
        if value.ndim > 1:
            new = 1.5 * noise / value[0].numel() ** 0.5
        elif name.endswith("running_var"):
            new = 0.5 + torch.rand(value.shape)
        else:
            new = 0.3 * noise + float("bn.weight" in name)
        value.copy_(new.half().float())
    blocks, image = {}, torch.rand(1, 3, 95, 107).half().float()
    for name, module in model.named_children():
        if name.startswith("Mixed"):
            module.register_forward_hook(
                lambda _, __, out, name=name: blocks.update({name: out[0].numpy()})
            )
    with torch.no_grad():
        logits = model.eval()(image)
    weights = {
        f"weights.{name}": value.half().numpy()
        for name, value in model.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    np.savez_compressed(
        HERE / "inception.npz",
        image=image[0].half().numpy(),
        logits=logits[0].numpy(),
        **blocks,
        **weights,
    )


if __name__ == "__main__":
    main()
