"""The pooler: what its type names, and what it hands over."""

import pytest
import torch
from torch import nn

from projects_maskrcnn import replace_poolers
from projects_maskrcnn.framework import Boxes, ROIPooler, ShapeSpec
from projects_maskrcnn.modeling import ROI_LAYERS, MaskRCNNPooler

# 5 y + x at cell (y, x) of a map of stride 4
SLOPE = torch.arange(25.0).view(1, 1, 5, 5)
BOX = [Boxes(torch.tensor([[4.0, 4.0, 12.0, 16.0]]))]


@pytest.mark.parametrize(
    ("pooler_type", "centre"),
    [("ROIAlignV2", 5 * 2.0 + 1.5), ("ROIAlign", 5 * 2.5 + 2.0)],  # pixel centres at half, at whole coordinates
)
def test_types(pooler_type, centre):
    out = MaskRCNNPooler((3, 2), [0.25], 2, pooler_type)([SLOPE], BOX)
    assert out.shape == (1, 1, 3, 2)  # bins of one cell
    rows, columns = torch.meshgrid(torch.tensor([-1.0, 0, 1]), torch.tensor([-0.5, 0.5]), indexing="ij")
    torch.testing.assert_close(out[0, 0], centre + 5 * rows + columns)


def test_levels():
    pooler = MaskRCNNPooler(1, [1 / 4, 1 / 8], 1, "ROIAlignV2", canonical_box_size=32, canonical_level=3)
    features = [torch.full((1, 2, 64 // s, 64 // s), float(s)) for s in (4, 8)]
    boxes = Boxes(torch.tensor([[10.0, 10, 60, 60], [0, 0, 31, 31], [0, 0, 32, 32]]))
    assert pooler(features, [boxes])[:, 0, 0, 0].tolist() == [8, 4, 8]


def test_a_new_layer(monkeypatch):
    def count_boxes(features, boxes, output_size, spatial_scales, sampling_ratio, **kwargs):
        return torch.tensor([float(len(b)) for b in boxes])

    monkeypatch.setitem(ROI_LAYERS, "Count", count_boxes)
    assert MaskRCNNPooler(7, [0.25], 0, "Count")([SLOPE], BOX).tolist() == [1.0]


def test_of_a_config(config):
    head = config("fpn").MODEL.ROI_MASK_HEAD
    pooler = MaskRCNNPooler.of_head(head, [ShapeSpec(channels=4, stride=s) for s in (4, 8)])
    assert (pooler.output_size, pooler.scales, pooler.sampling_ratio) == (14, [0.25, 0.125], 0)


def test_errors():
    with pytest.raises(ValueError, match="POOLER_TYPE is 'RoIAline'; known are ROIAlignV2, ROIAlign"):
        MaskRCNNPooler(7, [0.25], 0, "RoIAline")
    for scales in ([0.25, 0.0625], [0.3], [0.125, 0.25]):
        with pytest.raises(ValueError, match="powers of two"):
            MaskRCNNPooler(7, scales, 0, "ROIAlignV2")


@pytest.mark.parametrize("canonical", [(224, 4), (20, 3)])
@pytest.mark.parametrize("scales", [(1 / 4, 1 / 8, 1 / 16), (1 / 8,)])
@pytest.mark.parametrize("pooler_type", ["ROIAlignV2", "ROIAlign"])
@pytest.mark.parametrize(("size", "sampling_ratio"), [(7, 0), ((3, 3), 2)])
def test_replaced_poolers_pool_the_same(size, sampling_ratio, pooler_type, scales, canonical):
    generator = torch.Generator().manual_seed(0)
    features = [torch.rand(2, 3, int(64 * s), int(96 * s), generator=generator) for s in scales]
    corner = torch.rand(2, 8, 2, generator=generator) * 50
    boxes = [Boxes(torch.cat([c, c + 2 + torch.rand(8, 2, generator=generator) * 60], dim=1)) for c in corner]
    theirs = ROIPooler(size, scales, sampling_ratio, pooler_type, *canonical)
    model = nn.ModuleDict({"heads": nn.Sequential(theirs), "linear": nn.Linear(1, 1)})
    names = list(model.state_dict())
    assert replace_poolers(model) is model and list(model.state_dict()) == names
    (ours,) = model["heads"]
    assert type(ours) is MaskRCNNPooler
    torch.testing.assert_close(ours(features, boxes), theirs(features, boxes))


def test_a_derived_pooler_is_not_replaced(caplog):
    class Other(ROIPooler):
        pass

    pooler = Other(7, [0.25], 0, "ROIAlignV2")
    with caplog.at_level("INFO"):
        model = replace_poolers(nn.Sequential(pooler, ROIPooler(7, [0.25], 0, "ROIAlign")))
    assert model[0] is pooler
    assert "Poolers replaced: 1; left as they are: Other of ROIAlign" in caplog.text
