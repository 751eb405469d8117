"""torchvision's VGG-16 in a Faster R-CNN computes what it did."""

import pytest
import torch
import torch.nn.functional as F

from projects_maskrcnn.framework import build_model
from projects_maskrcnn.weights import load_for

CONVS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


@pytest.fixture
def vgg16():
    """Weights of torchvision's layout and of the size of its convs; its first linear layers are narrower."""
    generator = torch.Generator().manual_seed(0)
    channels = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
    weights = {}
    for number, before, after in zip(CONVS, channels, channels[1:], strict=False):
        deviation = (2 / (9 * before)) ** 0.5
        weights[f"features.{number}.weight"] = torch.randn(after, before, 3, 3, generator=generator) * deviation
        weights[f"features.{number}.bias"] = torch.randn(after, generator=generator) * 0.1
    for number, before, after in ((0, 512 * 49, 8), (3, 8, 8), (6, 8, 1000)):
        weights[f"classifier.{number}.weight"] = torch.randn(after, before, generator=generator) * 0.01
        weights[f"classifier.{number}.bias"] = torch.randn(after, generator=generator)
    return weights


def test_vgg16_of_torchvision(vgg16, root, tmp_path):
    from projects_maskrcnn import add_maskrcnn_config
    from projects_maskrcnn.framework import get_cfg

    cfg = get_cfg()
    add_maskrcnn_config(cfg)
    cfg.merge_from_file(str(root / "configs/paper/faster_rcnn/Base-VGG_16.yaml"))
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.ROI_BOX_HEAD.FC_DIM", 8])
    model = build_model(cfg).eval()
    torch.save(vgg16, tmp_path / "vgg16.pth")
    missing, unexpected = model.load_state_dict(load_for(model, str(tmp_path / "vgg16.pth"))["model"], strict=False)
    assert not unexpected
    assert {name.split(".")[0] for name in missing if "box_predictor" not in name} == {"proposal_generator"}

    rgb = torch.randint(0, 256, (3, 32, 32), generator=torch.Generator().manual_seed(1)).float()
    x = ((rgb / 255 - MEAN[:, None, None]) / STD[:, None, None])[None]
    for number in CONVS:
        if number in (5, 10, 17, 24):
            x = F.max_pool2d(x, 2, 2)
        x = F.conv2d(x, vgg16[f"features.{number}.weight"], vgg16[f"features.{number}.bias"], padding=1).relu()
    with torch.no_grad():
        ours = model.backbone(model.preprocess_image([{"image": rgb.flip(0)}]).tensor)["conv5_3"]  # BGR
    torch.testing.assert_close(ours, x, rtol=1e-3, atol=1e-3)
    pooled = F.interpolate(x, (7, 7))
    fc = F.linear(pooled.flatten(1), vgg16["classifier.0.weight"], vgg16["classifier.0.bias"]).relu()
    fc = F.linear(fc, vgg16["classifier.3.weight"], vgg16["classifier.3.bias"]).relu()
    torch.testing.assert_close(model.roi_heads.box_head(pooled), fc, rtol=1e-4, atol=1e-4)
