import pickle

import numpy as np
import pycocotools.mask
import pytest
import torch

from projects_maskrcnn.embedded.structures import (
    Boxes,
    BoxMode,
    pairwise_intersection,
    pairwise_ioa,
    pairwise_iou,
)


def random_boxes(n, seed):
    corners = torch.rand(n, 2, generator=torch.Generator().manual_seed(seed)) * 60
    sizes = torch.rand(n, 2, generator=torch.Generator().manual_seed(seed + 1)) * 40
    return torch.cat((corners, corners + sizes), dim=1)


class TestBoxMode:
    XYXY, XYWH = [5.0, 6.5, 15.0, 8.0], [5.0, 6.5, 10.0, 1.5]

    def test_values_are_those_of_the_dataset_format(self):
        assert [int(mode) for mode in BoxMode] == [0, 1, 2, 3]

    @pytest.mark.parametrize("make", [list, tuple, lambda b: np.array([b, b]), lambda b: torch.tensor([b, b])])
    def test_both_ways_and_the_type_stays(self, make):
        xyxy, xywh = make(self.XYXY), make(self.XYWH)
        for box, a, b, expected in (
            (xyxy, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS, self.XYWH),
            (xywh, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS, self.XYXY),
        ):
            got = BoxMode.convert(box, a, b)
            assert type(got) is type(box)
            for row in np.asarray(got).reshape(-1, 4).tolist():
                assert row == expected
        assert np.asarray(xyxy).reshape(-1, 4)[0].tolist() == self.XYXY  # the input is left alone

    def test_integers_and_float64_stay(self):
        assert BoxMode.convert([1, 2, 3, 4], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS) == [1, 2, 4, 6]
        box = np.array([[0.1, 0.2, 0.3, 0.4]])
        got = BoxMode.convert(box, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
        assert got.dtype == np.float64 and got[0, 2] == 0.1 + 0.3

    def test_what_is_refused(self):
        with pytest.raises(NotImplementedError, match="XYXY_REL"):
            BoxMode.convert([0, 0, 1, 1], BoxMode.XYXY_REL, BoxMode.XYXY_ABS)
        with pytest.raises(ValueError, match="5"):
            BoxMode.convert([0, 0, 1, 1, 90], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)


class TestBoxes:
    def test_makes_float32_of_anything(self):
        for source in ([[1, 2, 3, 4]], np.array([[1, 2, 3, 4]]), torch.tensor([[1, 2, 3, 4]]).double()):
            assert torch.equal(Boxes(source).tensor, torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
        assert Boxes([]).tensor.shape == Boxes(torch.empty(0)).tensor.shape == (0, 4)
        for bad in ([1, 2, 3, 4], [[1, 2, 3]]):
            with pytest.raises(ValueError, match=r"\(N, 4\)"):
                Boxes(bad)

    def test_geometry(self):
        boxes = Boxes([[0, 0, 10, 5], [3, 4, 3, 9], [-2, 1, 30, 0.5]])
        assert boxes.area().tolist() == [50, 0, -16]
        assert boxes.get_centers().tolist() == [[5, 2.5], [3, 6.5], [14, 0.75]]
        assert boxes.nonempty().tolist() == [True, False, False]
        assert boxes.nonempty(threshold=5).tolist() == [False, False, False]
        assert boxes.inside_box((10, 11)).tolist() == [True, True, False]
        assert boxes.inside_box((9, 10)).tolist() == [False, False, False]  # the far edges are outside
        assert boxes.inside_box((9, 29), boundary_threshold=2).tolist() == [True, True, True]
        boxes.scale(2, 10)
        assert boxes.tensor[0].tolist() == [0, 0, 20, 50]

    def test_clip(self):
        boxes = Boxes([[-1, -2, 30, 40], [5, 6, 7, 8], [21, 0, 25, 1]])
        boxes.clip((10, 20))
        assert boxes.tensor.tolist() == [[0, 0, 20, 10], [5, 6, 7, 8], [20, 0, 20, 1]]
        for bad in (float("nan"), float("inf")):
            with pytest.raises(ValueError, match="infinite or NaN"):
                Boxes([[0, 0, bad, 1]]).clip((10, 20))
        empty = Boxes([])
        empty.clip((10, 20))
        assert empty.tensor.shape == (0, 4)

    @pytest.mark.parametrize(
        ("item", "rows"),
        [
            (1, [1]),
            (-1, [2]),
            (slice(1, None), [1, 2]),
            ([2, 0], [2, 0]),
            (torch.tensor([2, 2]), [2, 2]),
            (torch.tensor([True, False, True]), [0, 2]),
            (torch.tensor([], dtype=torch.int64), []),
        ],
    )
    def test_indexing(self, item, rows):
        tensor = random_boxes(3, seed=0)
        assert torch.equal(Boxes(tensor)[item].tensor, tensor[rows])

    def test_behaves_like_a_sequence(self):
        tensor = random_boxes(3, seed=0)
        boxes = Boxes(tensor)
        assert len(boxes) == 3 and torch.equal(torch.stack(list(boxes)), tensor)
        joined = Boxes.cat([boxes, Boxes([]), boxes[:1]])
        assert torch.equal(joined.tensor, tensor[[0, 1, 2, 0]]) and len(Boxes.cat([])) == 0
        assert torch.equal(pickle.loads(pickle.dumps(boxes)).tensor, tensor)
        assert boxes.to("meta").device.type == "meta" and boxes.device.type == "cpu"
        copy = boxes.clone()
        copy.scale(0, 0)
        assert torch.equal(boxes.tensor, tensor)


def test_pairs_agree_with_pycocotools():
    first, second = random_boxes(7, seed=1), random_boxes(9, seed=3)
    xywh = [BoxMode.convert(b.double().numpy(), BoxMode.XYXY_ABS, BoxMode.XYWH_ABS) for b in (first, second)]
    for crowd, function in ((0, pairwise_iou), (1, lambda a, b: pairwise_ioa(b, a).T)):
        # For a crowd, pycocotools divides by the area of its first argument.
        expected = pycocotools.mask.iou(*xywh, [crowd] * 9)
        torch.testing.assert_close(
            function(Boxes(first), Boxes(second)), torch.from_numpy(expected).float(), rtol=1e-5, atol=1e-6
        )
    assert (expected > 0).sum() > 10


def test_pairs_without_area_or_without_boxes():
    empty, box = Boxes([[2, 2, 2, 2]]), Boxes([[0, 0, 4, 4], [2, 0, 6, 4], [4, 0, 8, 4]])
    assert pairwise_iou(empty, box).tolist() == pairwise_ioa(box, empty).T.tolist() == [[0, 0, 0]]
    assert pairwise_iou(empty, empty).tolist() == [[0]]
    assert pairwise_intersection(box, box).tolist() == [[16, 8, 0], [8, 16, 8], [0, 8, 16]]
    assert pairwise_iou(Boxes([]), box).shape == (0, 3) and pairwise_iou(box, Boxes([])).shape == (3, 0)


def test_iou_agrees_with_detectron2(shared):
    units = np.load(shared / "parity" / "units.npz")
    iou = pairwise_iou(Boxes(units["in_match_gt"]), Boxes(units["in_match_boxes"]))
    np.testing.assert_array_equal(iou.numpy(), units["out_iou"])
