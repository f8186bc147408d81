"""Makes yolo26.npz and yolo11.npz with ultralytics 8.4.190: tiny, random weights.

Needs torch and ultralytics; the files hold random numbers and what the models compute,
no weights of anybody.
"""

from pathlib import Path

import numpy as np
import torch
import yaml
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import ROOT
from ultralytics.utils.nms import non_max_suppression
from ultralytics.utils.ops import xywh2xyxy

HERE = Path(__file__).parent
STAGES = (4, 8, 9, 10, 16, 22)


def main():
    """Write what a YOLO26 and a YOLO11 compute."""
    model = tiny("26", "yolo26.yaml")
    model.end2end = True
    found, raw, arrays = ran(model.fuse(verbose=False))
    raw = raw.get("one2one", raw) if isinstance(raw, dict) else raw
    np.savez_compressed(
        HERE / "yolo26.npz",
        detections=found[0].numpy(),
        logits=raw["scores"][0].T.numpy(),
        sides=raw["boxes"][0].T.numpy(),
        **arrays,
    )
    # Fewer bins than the 16 of published models, so that the file is small.
    model = tiny("11", "yolo11.yaml", reg_max=8)
    assert isinstance(model.model[9].cv1.act, torch.nn.SiLU)
    for branch in (*model.model[23].cv2, *model.model[23].cv3):
        branch[-1].bias.data = torch.randn(branch[-1].bias.shape)
    found, raw, arrays = ran(model.fuse(verbose=False))
    lists = {}
    for overlap in (0.7, 0.3):
        rows, kept = non_max_suppression(
            found, 0.25, overlap, return_idxs=True, max_det=300
        )
        lists[f"detections.{overlap}"] = rows[0].numpy()
        lists[f"anchors.{overlap}"] = kept[0].numpy().astype(np.int32)
    np.savez_compressed(
        HERE / "yolo11.npz",
        logits=raw["scores"][0].T.numpy(),
        boxes=xywh2xyxy(found[0, :4].T).numpy(),
        **lists,
        **arrays,
    )


def tiny(version, name, **more):
    """Return a model of 1/32 of the width with random weights."""
    config = yaml.safe_load((ROOT / "cfg" / "models" / version / name).read_text())
    config |= {"scales": {"n": [0.5, 1 / 32, 1024]}, "scale": "n", "nc": 3, **more}
    torch.manual_seed(0)
    model = DetectionModel(config, ch=3, verbose=False).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            width = len(module.weight)
            module.weight.data = 1 + 0.3 * torch.randn(width)
            module.bias.data = 0.3 * torch.randn(width)
            module.running_mean = 0.1 * torch.randn(width)
            module.running_var = 0.5 + torch.rand(width)
        elif isinstance(module, torch.nn.Conv2d) and module.weight.requires_grad:
            fan = module.weight[0].numel()
            module.weight.data = 0.9 * torch.randn(module.weight.shape) / fan**0.5
    return model


def ran(model):
    """Return weights, image, stages and outputs of a fused model."""
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
    return found, raw, {"image": image[0].half().numpy(), **stages, **weights}


if __name__ == "__main__":
    main()
