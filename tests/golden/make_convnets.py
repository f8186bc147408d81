"""Makes convnets.npz with timm 1.0.31: small ResNets and a ConvNeXt, random weights.

Needs torch 2.13 and timm. Arrays are `CASE.weights.NAME`, `CASE.image`, `CASE.blocks.I`
after each block, and `CASE.out`.
"""

from pathlib import Path

import numpy as np
import torch
from timm.models.convnext import ConvNeXt, ConvNeXtBlock
from timm.models.resnet import BasicBlock, Bottleneck, ResNet

HERE = Path(__file__).parent


def randomized(model):
    """Give a model random weights, statistics that are not trivial, and few bits."""
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if "num_batches" in name:
            continue
        noise = torch.randn(value.shape)
        if value.ndim > 1:
            new = 1.4 * noise / value[0].numel() ** 0.5
        elif "var" in name:
            new = 0.5 + noise.abs()
        else:
            new = 0.3 * noise + float(name.endswith("weight") or "gamma" in name)
        value.data = new.half().float()
    return model.eval()


def found(model, kinds, image):
    """Return the arrays of a case."""
    blocks = []
    for module in model.modules():
        if isinstance(module, kinds):
            module.register_forward_hook(lambda _, __, out: blocks.append(out[0]))
    arrays = {"image": image[0].numpy(), "out": model(image)[0].detach().numpy()}
    for i, block in enumerate(blocks):
        arrays[f"blocks.{i}"] = block.detach().numpy()
    state = model.state_dict()
    return arrays | {f"weights.{k}": v.numpy() for k, v in state.items()}


def main():
    """Write all cases."""
    torch.manual_seed(0)
    image = torch.randn(1, 3, 48, 64).half().float()
    cases = {}
    for name, kind, blocks in (
        ("basic", BasicBlock, (1, 2, 1, 1)),
        ("bottleneck", Bottleneck, (2, 1, 1, 1)),
    ):
        model = ResNet(kind, blocks, channels=(4, 4, 8, 8), num_classes=5)
        cases[name] = found(randomized(model), kind, image)
    model = ConvNeXt(num_classes=5, depths=(1, 2, 1, 1), dims=(4, 8, 8, 12))
    cases["convnext"] = found(randomized(model), ConvNeXtBlock, image)
    arrays = {
        f"{case}.{name}": array.astype("f2") if "weights" in name else array
        for case, arrays in cases.items()
        for name, array in arrays.items()
    }
    np.savez_compressed(HERE / "convnets.npz", **arrays)


if __name__ == "__main__":
    main()
