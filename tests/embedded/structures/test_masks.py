import pickle

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch

from projects_maskrcnn.embedded.structures import (
    BitMasks,
    Boxes,
    PastedMasks,
    PolygonMasks,
    ROIMasks,
    polygons_to_bitmask,
    rasterize_polygons_within_box,
)

SQUARE = [2.0, 1.0, 6.0, 1.0, 6.0, 4.0, 2.0, 4.0]
TRIANGLE = [0.0, 0.0, 8.0, 0.0, 0.0, 8.0]
INDICES = [
    (1, [1]),
    (-1, [2]),
    (slice(1, 3), [1, 2]),
    ([2, 0], [2, 0]),
    (torch.tensor([2, 2, 1]), [2, 2, 1]),
    (torch.tensor([True, False, True]), [0, 2]),
    (torch.tensor([False, False, False]), []),
]


@pytest.fixture(scope="module")
def units(shared):
    """Detectron2's figures."""
    return np.load(shared / "parity" / "units.npz")


@pytest.fixture(scope="module")
def polygons(units):
    parts = np.split(units["in_poly_flat"], np.cumsum(units["in_poly_len"])[:-1])
    instances = [[] for _ in range(units["in_poly_inst"].max() + 1)]
    for part, instance in zip(parts, units["in_poly_inst"], strict=True):
        instances[instance].append(part)
    return PolygonMasks(instances)


class TestPolygons:
    def test_what_is_refused(self):
        for bad in (np.zeros((1, 6)), [np.array(SQUARE)]):
            with pytest.raises(ValueError, match="list of instances"):
                PolygonMasks(bad)
        for bad in ([0, 0, 1, 1], SQUARE[:-1], [SQUARE]):
            with pytest.raises(ValueError, match="instance 1: a polygon has 3 or more points"):
                PolygonMasks([[SQUARE], [SQUARE, bad]])

    def test_rasters_are_pycocotools(self):
        rles = mask_util.frPyObjects([SQUARE, TRIANGLE], 9, 10)
        expected = mask_util.decode(rles).any(axis=2)
        assert np.array_equal(polygons_to_bitmask([np.array(SQUARE), np.array(TRIANGLE)], 9, 10), expected)
        masks = PolygonMasks([[SQUARE, TRIANGLE], []])
        for source in (masks, masks.polygons):
            bitmaps = BitMasks.from_polygon_masks(source, 9, 10)
            assert bitmaps.tensor.shape == (2, 9, 10) and not bitmaps.tensor[1].any()
            assert np.array_equal(bitmaps.tensor[0].numpy(), expected)
        assert BitMasks.from_polygon_masks([], 9, 10).tensor.shape == (0, 9, 10)

    def test_area_and_boxes_by_hand(self):
        moved = (np.array(SQUARE) - 20).tolist()  # above and to the left of the image
        masks = PolygonMasks([[SQUARE], [torch.tensor(TRIANGLE)], [SQUARE, TRIANGLE], [], [moved]])
        assert masks.area().tolist() == [12, 32, 44, 0, 12] and masks.area().dtype == torch.float64
        assert masks.nonempty().tolist() == [True, True, True, False, True]
        assert masks.get_bounding_boxes().tensor.tolist() == [
            [2, 1, 6, 4],
            [0, 0, 8, 8],
            [0, 0, 8, 8],
            [0, 0, 0, 0],
            [-18, -19, -14, -16],
        ]
        assert PolygonMasks([]).get_bounding_boxes().tensor.shape == (0, 4)

    def test_rasterize_within_box_by_hand(self):
        # The box shows the square's left half on its right, as 2 x 3 pixels of 4 x 6 at half the scale.
        box = np.array([0.0, -2.0, 4.0, 4.0], dtype=np.float32)
        mask = rasterize_polygons_within_box([np.array(SQUARE)], box, 4)
        assert mask.dtype == torch.bool and mask.tolist() == [[False, False, row >= 2, row >= 2] for row in range(4)]
        point = rasterize_polygons_within_box([np.array(SQUARE)], np.array([3.0, 2.0, 3.0, 2.0]), 4)
        assert point.shape == (4, 4) and point.all()  # a tenth of a pixel inside the square

    def test_crop_does_not_change_the_polygons(self):
        masks = PolygonMasks([[np.array(SQUARE)]])
        crop = masks.crop_and_resize(torch.tensor([[2.0, 1.0, 6.0, 4.0]]), 28)
        assert crop.shape == (1, 28, 28) and crop.all()
        assert masks.polygons[0][0].tolist() == SQUARE
        with pytest.raises(ValueError, match="2 boxes for 1 masks"):
            masks.crop_and_resize(torch.zeros(2, 4), 28)
        assert PolygonMasks([]).crop_and_resize(torch.zeros(0, 4), 28).shape == (0, 28, 28)

    @pytest.mark.parametrize(("item", "rows"), [*INDICES, ([], []), (np.array([0, 2]), [0, 2])])
    def test_indexing(self, item, rows):
        masks = PolygonMasks([[np.array(SQUARE) + i] for i in range(3)])
        assert [p[0][0] for p in masks[item]] == [2 + row for row in rows]

    def test_behaves_like_a_sequence(self):
        masks = PolygonMasks([[SQUARE], [TRIANGLE, SQUARE]])
        joined = PolygonMasks.cat([masks, masks[:1]])
        assert [len(instance) for instance in joined] == [1, 2, 1] and len(joined) == 3
        assert masks.to("cpu") is masks and masks.device.type == "cpu"
        assert pickle.loads(pickle.dumps(masks)).area().tolist() == masks.area().tolist()

    def test_agree_with_detectron2(self, units, polygons):
        np.testing.assert_allclose(polygons.area().numpy(), units["out_poly_area"], rtol=1e-12)
        np.testing.assert_array_equal(polygons.get_bounding_boxes().tensor.numpy(), units["out_poly_bbox"])
        height, width = units["out_bitmasks"].shape[1:]
        bitmaps = BitMasks.from_polygon_masks(polygons, height, width).tensor
        np.testing.assert_array_equal(bitmaps.numpy(), units["out_bitmasks"])
        for size in (14, 28):
            crops = polygons.crop_and_resize(torch.from_numpy(units["in_crop_boxes"]), size)
            np.testing.assert_array_equal(crops.numpy(), units[f"out_poly_crop_{size}"])


class TestBitMasks:
    def test_makes_bool_of_anything(self):
        tensor = torch.tensor([[[0, 1], [2, 0]]])
        for source in (tensor, tensor.numpy().astype(np.uint8), tensor.float()):
            assert torch.equal(BitMasks(source).tensor, tensor > 0)
        assert tuple(BitMasks(tensor).image_size) == (2, 2)
        with pytest.raises(ValueError, match=r"\(N, H, W\)"):
            BitMasks(tensor[0])

    def test_boxes_agree_with_pycocotools(self):
        tensor = torch.rand(20, 11, 13, generator=torch.Generator().manual_seed(0)) > 0.985
        tensor[0], tensor[1] = False, True
        xywh = mask_util.toBbox(mask_util.encode(np.asfortranarray(tensor.permute(1, 2, 0).numpy().astype(np.uint8))))
        boxes = BitMasks(tensor).get_bounding_boxes().tensor
        np.testing.assert_array_equal(boxes[:, :2].numpy(), xywh[:, :2])
        np.testing.assert_array_equal((boxes[:, 2:] - boxes[:, :2]).numpy(), xywh[:, 2:])
        assert BitMasks(tensor).nonempty().tolist() == (xywh[:, 2] > 0).tolist()
        assert BitMasks(tensor[:0]).get_bounding_boxes().tensor.shape == (0, 4)

    def test_crop_at_scale_one_is_the_crop(self):
        tensor = torch.rand(3, 20, 30, generator=torch.Generator().manual_seed(0)) > 0.5
        boxes = torch.tensor([[4, 5, 14, 15], [0, 0, 10, 10], [20, 10, 30, 20]])
        expected = torch.stack([m[y0:y1, x0:x1] for m, (x0, y0, x1, y1) in zip(tensor, boxes.tolist(), strict=True)])
        assert torch.equal(BitMasks(tensor).crop_and_resize(boxes.float(), 10), expected)
        assert BitMasks(tensor[:0]).crop_and_resize(torch.zeros(0, 4), 10).shape == (0, 10, 10)
        with pytest.raises(ValueError, match="1 boxes for 3 masks"):
            BitMasks(tensor).crop_and_resize(boxes[:1], 10)

    def test_a_pixel_half_on_the_mask_is_on_it(self):
        left_half = torch.tensor([[[True, False], [True, False]]])
        assert BitMasks(left_half).crop_and_resize(torch.tensor([[0.0, 0.0, 2.0, 2.0]]), 1).tolist() == [[[True]]]

    @pytest.mark.parametrize(("item", "rows"), INDICES)
    def test_indexing(self, item, rows):
        tensor = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(0)) > 0.5
        assert torch.equal(BitMasks(tensor)[item].tensor, tensor[rows])

    def test_behaves_like_a_sequence(self):
        tensor = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(0)) > 0.5
        masks = BitMasks(tensor)
        assert len(masks) == 3 and torch.equal(torch.stack(list(masks)), tensor)
        assert torch.equal(BitMasks.cat([masks, masks[:1]]).tensor, tensor[[0, 1, 2, 0]])
        assert masks.to("meta").device.type == "meta"

    def test_agree_with_detectron2(self, units):
        masks = BitMasks(units["out_bitmasks"])
        np.testing.assert_array_equal(masks.get_bounding_boxes().tensor.numpy(), units["out_bit_bbox"])
        for size in (14, 28):
            crops = masks.crop_and_resize(torch.from_numpy(units["in_crop_boxes"]), size)
            np.testing.assert_array_equal(crops.numpy(), units[f"out_bit_crop_{size}"])


class TestPastedMasks:
    def test_the_threshold_stays(self):
        boxes = torch.tensor([[0.0, 0.0, 8.0, 8.0], [2.0, 2.0, 9.0, 9.0]])
        masks = PastedMasks(torch.full((2, 4, 4), 0.6), boxes, (10, 12), threshold=0.7)
        for same in (masks, masks[1:], masks.to("cpu"), PastedMasks.cat([masks, masks])):
            assert same.make().shape == (len(same), 10, 12) and not same.make().any()


class TestROIMasks:
    def test_paste_of_full_masks_fills_the_boxes(self):
        masks = ROIMasks(torch.ones(2, 28, 28))
        boxes = Boxes([[2, 3, 7, 9], [0, 0, 12, 10]])
        bitmaps = masks.to_bitmasks(boxes, 10, 12)
        assert isinstance(bitmaps, BitMasks) and bitmaps.tensor.shape == (2, 10, 12)
        assert torch.equal(bitmaps.get_bounding_boxes().tensor, boxes.tensor)
        assert bitmaps.tensor.sum(dim=(1, 2)).tolist() == [30, 120]
        assert not ROIMasks(torch.full((1, 28, 28), 0.6)).to_bitmasks(boxes[0], 10, 12, threshold=0.7).tensor.any()

    def test_agree_with_detectron2(self, units):
        masks = ROIMasks(torch.from_numpy(units["in_paste_masks"]))
        bitmaps = masks.to_bitmasks(Boxes(units["in_paste_boxes"]), 120, 160).tensor.numpy()
        np.testing.assert_array_equal(np.packbits(bitmaps), units["out_paste_bool"])

    def test_behaves_like_a_tensor(self):
        tensor = torch.rand(3, 4, 4)
        masks = ROIMasks(tensor)
        assert torch.equal(masks[torch.tensor([2, 0])].tensor, tensor[[2, 0]]) and len(masks[1:]) == 2
        assert masks.to("meta").device.type == "meta"
        for bad in (lambda: ROIMasks(tensor[0]), lambda: masks[0]):
            with pytest.raises(ValueError, match=r"\(N, M, M\)"):
                bad()
