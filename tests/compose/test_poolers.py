"""Detectron2's own models, from its own configs, with our RoIAlign: one call, and the numbers stay."""

import copy

import pytest
import torch

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from detectron2 import model_zoo  # noqa: E402

from projects_maskrcnn import replace_poolers  # noqa: E402
from projects_maskrcnn.framework import (  # noqa: E402
    FRAMEWORK,
    BitMasks,
    Boxes,
    EventStorage,
    Instances,
    ROIPooler,
    build_model,
)
from projects_maskrcnn.modeling import MaskRCNNPooler  # noqa: E402

pytestmark = pytest.mark.skipif(FRAMEWORK != "detectron2", reason="the framework in use is the embedded one")

SMALL = {
    "MODEL.DEVICE": "cpu",
    "MODEL.RESNETS.NORM": "GN",
    "MODEL.RESNETS.WIDTH_PER_GROUP": 32,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 32,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 32,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 50,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 20,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
    "TEST.DETECTIONS_PER_IMAGE": 10,
    "INPUT.MASK_FORMAT": "bitmask",
}


@pytest.fixture(params=["mask_rcnn_R_50_FPN_1x", "mask_rcnn_R_50_C4_1x"])
def model(request):
    cfg = model_zoo.get_config(f"COCO-InstanceSegmentation/{request.param}.yaml")
    cfg.merge_from_list([item for pair in SMALL.items() for item in pair])
    torch.manual_seed(0)
    return build_model(cfg)


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(1)
    inputs = []
    for height, width in ((128, 160), (96, 128)):
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(torch.tensor([[10.0, 20, 70, 60], [40, 8, 90, 90]]))
        instances.gt_classes = torch.tensor([3, 60])
        instances.gt_masks = BitMasks(torch.rand(2, height, width, generator=generator) > 0.5)
        image = torch.randint(0, 256, (3, height, width), generator=generator).byte()
        inputs.append({"image": image, "instances": instances, "height": height, "width": width})
    return inputs


def losses_and_gradients(model, inputs):
    model.train()
    torch.manual_seed(2)  # of the sampled proposals
    with EventStorage():
        losses = model(inputs)
    model.zero_grad()
    sum(losses.values()).backward()
    return losses, {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def test_numbers_and_weights_stay(model, inputs):
    ours = replace_poolers(copy.deepcopy(model))
    poolers = {name for name, m in model.named_modules() if type(m) is ROIPooler}
    assert poolers == {name for name, m in ours.named_modules() if type(m) is MaskRCNNPooler}
    assert poolers in ({"roi_heads.box_pooler", "roi_heads.mask_pooler"}, {"roi_heads.pooler"})

    ours.load_state_dict(model.state_dict(), strict=True)
    assert list(ours.state_dict()) == list(model.state_dict())
    torch.testing.assert_close(losses_and_gradients(ours, inputs), losses_and_gradients(model, inputs))

    with torch.no_grad():
        for a, b in zip(ours.eval()(inputs), model.eval()(inputs), strict=True):
            a, b = a["instances"], b["instances"]
            assert len(a) == 10
            torch.testing.assert_close(a.pred_boxes.tensor, b.pred_boxes.tensor, rtol=1e-5, atol=1e-3)
            torch.testing.assert_close(a.scores, b.scores, rtol=1e-5, atol=1e-6)
            assert torch.equal(a.pred_classes, b.pred_classes)
            assert (a.pred_masks != b.pred_masks).float().mean() < 1e-3  # pixels of a probability near one half
