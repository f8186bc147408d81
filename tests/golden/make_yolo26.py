"""Makes yolo26.npz with ultralytics 8.4.190: a tiny YOLO26 with random weights.

Needs torch and ultralytics; the file holds random numbers and what the model computes,
no weights of anybody.
"""

from pathlib import Path

import numpy as np
import torch
import yaml
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import ROOT

HERE = Path(__file__).parent
STAGES = (4, 8, 9, 10, 16, 22)


def main():
    """Write the weights, an image, the outputs of some stages and the detections."""
    file = ROOT / "cfg" / "models" / "26" / "yolo26.yaml"
    config = yaml.safe_load(file.read_text())
    config |= {"scales": {"n": [0.5, 1 / 32, 1024]}, "scale": "n", "nc": 3}
    torch.manual_seed(0)
    model = DetectionModel(config, ch=3, verbose=False).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            width = len(module.weight)
            module.weight.data = 1 + 0.3 * torch.randn(width)
            module.bias.data = 0.3 * torch.randn(width)
            module.running_mean = 0.1 * torch.randn(width)
            module.running_var = 0.5 + torch.rand(width)
        elif isinstance(module, torch.nn.Conv2d):
            fan = module.weight[0].numel()
            module.weight.data = 0.9 * torch.randn(module.weight.shape) / fan**0.5
    model.end2end = True
    model = model.fuse(verbose=False)
    for weight in model.parameters():  # so that the file holds half of the bytes
        weight.data = weight.data.half().float()
    image = torch.rand(1, 3, 64, 96).half().float()
    stages = {}
    for i in STAGES:
        model.model[i].register_forward_hook(
            lambda _, __, out, i=i: stages.update({f"stage.{i}": out[0].numpy()})
        )
    with torch.no_grad():
        found, raw = model(image)
    weights = {
        f"weights.{name}": value.half().numpy()
        for name, value in model.state_dict().items()
    }
    raw = raw.get("one2one", raw) if isinstance(raw, dict) else raw
    np.savez_compressed(
        HERE / "yolo26.npz",
        image=image[0].half().numpy(),
        detections=found[0].numpy(),
        logits=raw["scores"][0].T.numpy(),
        sides=raw["boxes"][0].T.numpy(),
        **stages,
        **weights,
    )


if __name__ == "__main__":
    main()
