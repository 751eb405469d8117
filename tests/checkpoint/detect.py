"""Not a test: detections of one model, in a process of its own, for `test_round_trip.py`.

python detect.py (ours | detectron2) CONFIG FOLDER [WEIGHTS]

Loads WEIGHTS, or draws some, and saves the model's into FOLDER as `weights.pth`; and, as `output.pt`, the detections
and the warnings that loading gave.
"""

import logging
import sys
import zlib
from pathlib import Path

import torch

SIDES = ((128, 160), (96, 200))
OPTIONS = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.RPN.POST_NMS_TOPK_TEST", 60]
OPTIONS += ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.02, "TEST.DETECTIONS_PER_IMAGE", 30]
GAINS = {"anchor_deltas": 0.2, "cls_score": 3.0, "bbox_pred": 0.2}
"""Of output layers: they spread the answers."""


def draw(model: torch.nn.Module) -> None:
    for name, value in model.state_dict().items():
        noise = torch.randn(value.shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
        layer, _, leaf = name.rpartition(".")
        if leaf == "running_var":
            noise = 1 + 0.1 * noise.abs()
        elif leaf == "bias" or leaf == "running_mean":
            noise = 0.1 * noise
        elif layer.endswith("norm"):
            noise = (0.25 if ".conv3." in name else 1.0) * (1 + 0.1 * noise)
        else:
            inputs = len(noise) if layer.endswith(("deconv", "score_lowres")) else noise[0].numel()
            noise *= (2 / inputs) ** 0.5 * GAINS.get(layer.rpartition(".")[2], 1.0)
            if layer.endswith("stem.conv1"):
                noise *= model.pixel_std.mean().item() / 58
        value.copy_(noise)


def main(who: str, config: str, folder: Path, weights: str = "") -> None:
    if who == "ours":
        from projects_maskrcnn import add_maskrcnn_config
        from projects_maskrcnn.checkpoint import MaskRCNNCheckpointer as Checkpointer
        from projects_maskrcnn.framework import build_model, get_cfg

        cfg = get_cfg()
        add_maskrcnn_config(cfg)
        cfg.merge_from_file(str(Path(__file__).resolve().parents[2] / "configs" / config))
    else:
        from detectron2 import model_zoo
        from detectron2.checkpoint import DetectionCheckpointer as Checkpointer
        from detectron2.config import get_cfg
        from detectron2.modeling import build_model

        cfg = get_cfg()
        cfg.merge_from_file(model_zoo.get_config_file(config))
    cfg.merge_from_list(OPTIONS)
    model = build_model(cfg).eval()
    said = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger().addHandler(handler)
    checkpointer = Checkpointer(model, str(folder))
    if weights:
        checkpointer.load(weights)
    else:
        draw(model)
    checkpointer.save("weights")
    generator = torch.Generator().manual_seed(0)
    images = [{"image": torch.randint(0, 256, (3, *s), generator=generator).float()} for s in SIDES]
    with torch.no_grad():
        found = [o["instances"].get_fields() for o in model(images)]
    found = [{k: getattr(v, "tensor", v) for k, v in fields.items()} for fields in found]
    torch.save({"found": found, "said": said}, folder / "output.pt")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), *sys.argv[4:])
