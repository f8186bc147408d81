"""Makes convnets.npz: small convolutional networks with random weights.

ResNets and a ConvNeXt of timm 1.0.31, an EfficientNet-Lite of efficientnet-lite-pytorch
0.1.0; needs torch 2.13. Arrays are `CASE.weights.NAME`, `CASE.image`, `CASE.blocks.I`
after each block, and `CASE.out`.
"""

from pathlib import Path

import numpy as np
import torch
from efficientnet_lite_pytorch.model import EfficientNet, MBConvBlock
from efficientnet_lite_pytorch.utils import BlockDecoder, GlobalParams
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


def lite():
    """Return a small EfficientNet-Lite."""
    blocks = ["r1_k3_s11_e1_i32_o4", "r2_k5_s22_e2_i4_o8", "r1_k3_s22_e2_i8_o8"]
    sizes = GlobalParams(
        width_coefficient=1.0,
        depth_coefficient=1.0,
        image_size=(48, 64),
        dropout_rate=0.0,
        num_classes=5,
        batch_norm_momentum=0.99,
        batch_norm_epsilon=1e-3,
        drop_connect_rate=0.0,
        depth_divisor=4,
        min_depth=None,
        relu_fn="relu6",
    )
    return EfficientNet(BlockDecoder.decode(blocks), sizes)


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
    cases["lite"] = found(randomized(lite()), MBConvBlock, image)
    arrays = {
        f"{case}.{name}": array.astype("f2") if "weights" in name else array
        for case, arrays in cases.items()
        for name, array in arrays.items()
    }
    np.savez_compressed(HERE / "convnets.npz", **arrays)


if __name__ == "__main__":
    main()
