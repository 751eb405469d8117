"""Transforms and augmentations: sizes against Detectron2's, geometry by hand and by markers in the image."""

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from projects_maskrcnn.embedded.data import transforms as T


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (61, 87, 3), dtype=np.uint8)


def test_resize_shortest_edge_sizes_equal_detectron2(shared):
    units = np.load(shared / "parity" / "units.npz")
    for before, after in zip(units["in_rs_sizes"], units["out_rs_sizes"], strict=True):
        assert T.ResizeShortestEdge.get_output_shape(*before.tolist(), 800, 1333) == tuple(after)


@pytest.mark.parametrize(
    "size, edge, limit, expected",
    [
        ((480, 640), 800, 1333, (800, 1067)),  # 640 * 800 / 480 = 1066.7
        ((200, 1000), 800, 1333, (267, 1333)),  # the longer side decides: 200 * 1.333 = 266.6
        ((3, 2), 5, 100, (8, 5)),  # 7.5 rounds up
        ((10, 10), 7, 5, (5, 5)),
        ((1, 20000), 800, 1333, (1, 1333)),  # less than half a pixel would be none
    ],
)
def test_resize_shortest_edge_sizes_by_hand(size, edge, limit, expected):
    assert T.ResizeShortestEdge.get_output_shape(*size, edge, limit) == expected


def test_resize_shortest_edge_samples(image):
    def heights(*args):
        augmentation = T.ResizeShortestEdge(*args)
        return {augmentation.get_transform(image).new_h for _ in range(200)}

    assert heights((20, 30, 40), 1000, "choice") == {20, 30, 40}
    assert heights((20, 23), 1000, "range") == {20, 21, 22, 23}
    assert isinstance(T.ResizeShortestEdge(0).get_transform(image), T.NoOpTransform)


@pytest.mark.parametrize("interp", [Image.Resampling.BILINEAR, Image.Resampling.NEAREST, Image.Resampling.BICUBIC])
def test_resize_of_uint8_is_pillows(image, interp):
    resize = T.ResizeTransform(61, 87, 30, 40, interp)
    expected = np.asarray(Image.fromarray(image).resize((40, 30), interp))
    np.testing.assert_array_equal(resize.apply_image(image), expected)
    np.testing.assert_array_equal(resize.apply_image(image[:, :, :1]), resize.apply_image(image[:, :, 0])[:, :, None])
    np.testing.assert_array_equal(resize.apply_image(image[:, ::-1, ::-1])[..., 0].shape, (30, 40))


@pytest.mark.parametrize("channels", [(), (1,), (5,)])
def test_resize_of_float_is_torchs(channels):
    image = np.random.default_rng(0).random((20, 30, *channels), dtype=np.float32)
    resized = T.ResizeTransform(20, 30, 41, 13).apply_image(image[:, ::-1])
    flat = torch.from_numpy(image[:, ::-1].copy()).reshape(20, 30, -1)
    for c in range(flat.shape[2]):
        expected = torch.nn.functional.interpolate(flat[None, None, :, :, c], (41, 13), mode="bilinear")[0, 0]
        np.testing.assert_allclose(resized.reshape(41, 13, -1)[..., c], expected, atol=1e-6)
    assert resized.shape == (41, 13, *channels)


def test_resize_coordinates_segmentation_and_inverse(image):
    resize = T.ResizeTransform(61, 87, 122, 29)
    whole = np.array([[87, 61], [3, 4]])  # integers are not truncated
    np.testing.assert_allclose(resize.apply_coords(whole), [[29, 122], [1, 8]])
    np.testing.assert_allclose(resize.inverse().apply_coords(resize.apply_coords(whole)), whole)
    assert resize.apply_coords(whole.astype(np.float32)).dtype == np.float32
    labels = (image[..., 0] // 64).astype(np.uint8) * 10
    assert set(np.unique(resize.apply_segmentation(labels))) <= {0, 10, 20, 30}
    with pytest.raises(ValueError, match=r"\(60, 87\)"):
        resize.apply_image(image[1:])


MARK = (
    40,
    20,
)  # x, y of the upper left corner of a square of 6 pixels, whose middle the transforms must follow


@pytest.mark.parametrize(
    "augmentation",
    [
        T.Resize((90, 50)),
        T.RandomResize([(90, 50), (30, 120)]),
        T.ResizeShortestEdge(100, 130),
        T.ResizeScale(0.8, 1.5, 70, 100),
        T.RandomFlip(1.0),
        T.RandomFlip(1.0, horizontal=False, vertical=True),
        T.RandomRotation([-40, 40]),
        T.RandomRotation([90, 180, 270], sample_style="choice"),
        T.RandomRotation([-20, 20], expand=False, center=[[0.4, 0.4], [0.6, 0.6]]),
        T.RandomRotation([15], expand=False, center=[[0.5, 0.3], [0.4, 0.5]], sample_style="choice"),
        T.RandomCrop("relative", (0.9, 0.9)),
        T.RandomCrop("relative_range", (0.9, 0.9)),
        T.RandomCrop("absolute", (58, 80)),
        T.RandomCrop("absolute_range", (55, 90)),
        T.FixedSizeCrop((57, 95), pad_value=0),
        T.RandomExtent((0.95, 1.3), (0.1, 0.1)),
        T.RandomApply(T.HFlipTransform(87), 0.5),
        T.AugmentationList([T.RandomCrop("relative", (0.9, 0.9)), T.Resize((70, 70)), T.RandomFlip()]),
    ],
    ids=repr,
)
def test_coordinates_follow_the_pixels(augmentation):
    x, y = MARK
    image = np.zeros((61, 87, 3), dtype=np.uint8)
    image[y : y + 6, x : x + 6] = 255
    box = np.array([[x, y, x + 6, y + 6]], dtype=np.float32)
    for seed in range(5):
        np.random.seed(seed)
        aug_input = T.AugInput(image, boxes=box, sem_seg=image[..., 0])
        transform = augmentation(aug_input)
        weights = aug_input.image[..., 0].astype(float)
        rows, columns = np.indices(weights.shape) + 0.5
        middle = np.array([(columns * weights).sum(), (rows * weights).sum()]) / weights.sum()
        np.testing.assert_allclose(transform.apply_coords(np.array([[x + 3.0, y + 3.0]]))[0], middle, atol=0.15)
        x0, y0, x1, y1 = aug_input.boxes[0]
        assert x0 - 1 < middle[0] < x1 + 1 and y0 - 1 < middle[1] < y1 + 1
        seg = aug_input.sem_seg
        assert seg.shape == weights.shape and set(np.unique(seg)) <= {0, 255}
        assert seg[int(middle[1]), int(middle[0])] == 255


@pytest.mark.parametrize(
    "crop_type, crop_size, heights, widths",
    [
        ("relative", (0.5, 0.7), {31}, {61}),  # 61 * 0.5 + 0.5, 87 * 0.7 + 0.5
        ("relative_range", (0.5, 0.7), range(31, 62), range(61, 88)),
        ("absolute", (40, 100), {40}, {87}),
        ("absolute_range", (20, 70), range(20, 62), range(20, 71)),
        ("absolute_range", (100, 200), {61}, {87}),
    ],
)
def test_random_crop_sizes(image, crop_type, crop_size, heights, widths):
    crops = [T.RandomCrop(crop_type, crop_size).get_transform(image) for _ in range(100)]
    assert {c.h for c in crops} <= set(heights) and {c.w for c in crops} <= set(widths)
    assert (len({c.h for c in crops}) > 5) == (len(heights) > 1)
    assert all(c.apply_image(image).shape == (c.h, c.w, 3) for c in crops)
    assert len({(c.x0, c.y0) for c in crops}) > 5 or (crop_size == (100, 200))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: T.RandomCrop("half", (1, 1)), "INPUT.CROP.TYPE"),
        (lambda: T.RandomCrop("relative", (600, 600)), "INPUT.CROP.SIZE"),
        (lambda: T.RandomCrop("absolute_range", (600, 300)), "INPUT.CROP.SIZE"),
        (lambda: T.ResizeShortestEdge((1, 2, 3), sample_style="range"), "INPUT.MIN_SIZE_TRAIN"),
        (lambda: T.ResizeShortestEdge((1, 2), sample_style="chioce"), "MIN_SIZE_TRAIN_SAMPLING.*chioce"),
        (lambda: T.RandomFlip(horizontal=True, vertical=True), "RandomFlip"),
        (lambda: T.RandomApply(T.Resize(3), 1.5), "1.5"),
        (lambda: T.RandomRotation(3, sample_style="any"), "any"),
        (lambda: T.RandomSaturation(1, 2).get_transform(np.zeros((2, 2, 1))), r"\(2, 2, 1\)"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_fixed_size_crop_pads_right_and_below(image):
    aug_input = T.AugInput(image, sem_seg=image[..., 0])
    T.FixedSizeCrop((70, 50), pad_value=7.0)(aug_input)
    assert aug_input.image.shape == (70, 50, 3)
    assert (aug_input.image[61:] == 7).all() and (aug_input.sem_seg[61:] == 255).all()
    assert T.FixedSizeCrop((70, 50), pad=False).get_transform(image).apply_image(image).shape == (61, 50, 3)


@pytest.mark.parametrize("shape", [(40, 80), (41, 63)])
def test_rotation_and_its_inverse(shape):
    h, w = shape
    rotation = T.RotationTransform(h, w, 90)
    image = np.random.default_rng(0).integers(0, 256, (h, w, 3), dtype=np.uint8)
    np.testing.assert_array_equal(rotation.apply_image(image), np.rot90(image))
    # Counter-clockwise: the upper right corner becomes the upper left one.
    np.testing.assert_allclose(rotation.apply_coords(np.array([[w, 0], [0, 0]])), [[0, 0], [0, w]], atol=1e-9)
    oblique = T.RotationTransform(h, w, 30)
    points = np.array([[3.0, 4.0], [w, h]])
    there_and_back = oblique.inverse().apply_coords(oblique.apply_coords(points))
    np.testing.assert_allclose(there_and_back, points, atol=1.0)  # sizes are whole pixels
    with pytest.raises(NotImplementedError):
        T.RotationTransform(h, w, 30, expand=False).inverse()
    assert T.RotationTransform(h, w, 30, interp=cv2.INTER_NEAREST).apply_image(image[:, :, :1]).ndim == 3


def test_colors_by_formula(image):
    def apply(augmentation):
        np.random.seed(3)
        return augmentation.get_transform(image).apply_image(image).astype(float)

    np.random.seed(3)
    w = np.random.uniform(0.5, 1.5)
    grey = image @ np.array([0.299, 0.587, 0.114])
    expected = {
        T.RandomBrightness: w * image,
        T.RandomContrast: w * image + (1 - w) * image.mean(),
        T.RandomSaturation: w * image + (1 - w) * grey[:, :, None],
    }
    for augmentation, values in expected.items():
        np.testing.assert_allclose(apply(augmentation(0.5, 1.5)), np.clip(values, 0, 255), atol=1.001)
    np.random.seed(3)
    shift = T.RandomLighting.eigen_vecs @ (np.random.normal(scale=9.0, size=3) * T.RandomLighting.eigen_vals)
    np.testing.assert_allclose(apply(T.RandomLighting(9.0)), np.clip(image + shift, 0, 255), atol=1.001)
    # Principal components are orthogonal and of length one.
    np.testing.assert_allclose(T.RandomLighting.eigen_vecs.T @ T.RandomLighting.eigen_vecs, np.eye(3), atol=1e-3)


def test_color_transforms_leave_places_alone(image):
    points = np.array([[1.0, 2.0]])
    inverted = T.ColorTransform(lambda x: 255 - x)
    np.testing.assert_array_equal(inverted.apply_image(image), 255 - image)
    by_pillow = T.PILColorTransform(lambda x: x.convert("L").convert("RGB"))
    assert np.ptp(by_pillow.apply_image(image), axis=2).max() == 0
    for transform in (inverted, by_pillow, inverted.inverse()):
        np.testing.assert_array_equal(transform.apply_coords(points), points)
        np.testing.assert_array_equal(transform.apply_segmentation(image[..., 0]), image[..., 0])
    with pytest.raises(TypeError, match="ColorTransform"):
        T.ColorTransform(3)


def test_extent_fills_what_is_outside(image):
    extent = T.ExtentTransform((-10, -5, 20, 25), (30, 30), fill=9)
    result = extent.apply_image(image)
    assert result.shape == (30, 30, 3) and (result[:5] == 9).all() and (result[:, :10] == 9).all()
    np.testing.assert_array_equal(result[5:, 10:], image[:25, :20])


def test_category_area_constraint(image):
    labels = np.zeros((61, 87), dtype=np.uint8)
    labels[:, 43:] = 1  # a crop is acceptable only where it has enough of both
    augmentation = T.RandomCrop_CategoryAreaConstraint("absolute", (20, 20), 0.75)
    shares = []
    for seed in range(30):
        np.random.seed(seed)
        crop = augmentation.get_transform(image, labels)
        shares.append(crop.apply_segmentation(labels).mean())
    assert np.mean([0.25 <= s <= 0.75 for s in shares]) > 0.6  # 1 - (6/7)^10 = 0.79 of the draws
    unconstrained = T.RandomCrop_CategoryAreaConstraint("absolute", (20, 20))
    assert unconstrained.get_transform(image, labels).h == 20


def test_min_iou_random_crop(image):
    boxes = np.array([[10, 10, 60, 50]], dtype=np.float32)
    crops = 0
    for seed in range(30):
        np.random.seed(seed)
        crop = T.MinIoURandomCrop(min_ious=(0.5,)).get_transform(image, boxes)
        if isinstance(crop, T.NoOpTransform):
            continue
        crops += 1
        assert 0 <= crop.x0 <= crop.x0 + crop.w <= 87 and 0 <= crop.y0 <= crop.y0 + crop.h <= 61
        assert crop.x0 < 35 < crop.x0 + crop.w + 1 and crop.y0 < 30 < crop.y0 + crop.h + 1
    assert crops > 10
    assert isinstance(T.MinIoURandomCrop().get_transform(image, None), T.NoOpTransform)


def iou_with_crop(crop, boxes):
    """(N,) of the crop with each box, in plain numpy."""
    x0, y0, x1, y1 = boxes.T
    width = np.minimum(x1, crop.x0 + crop.w) - np.maximum(x0, crop.x0)
    height = np.minimum(y1, crop.y0 + crop.h) - np.maximum(y0, crop.y0)
    shared = np.maximum(width, 0) * np.maximum(height, 0)
    return shared / ((x1 - x0) * (y1 - y0) + crop.w * crop.h - shared)


def test_min_iou_random_crop_keeps_enough_of_every_box():
    boxes = np.array([[0, 0, 80, 45], [40, 45, 120, 90]], dtype=np.float32)
    np.random.seed(0)
    crops = [T.MinIoURandomCrop()._draw(90, 120, boxes, 0.3) for _ in range(500)]
    crops = [crop for crop in crops if crop is not None]
    assert len(crops) > 20
    assert min(iou_with_crop(crop, boxes).min() for crop in crops) > 0.28  # crops are of whole pixels


@pytest.mark.parametrize("h, w", [(200, 60), (60, 200)])
def test_min_iou_random_crop_is_no_narrow_one(h, w):
    np.random.seed(0)
    crops = [T.MinIoURandomCrop()._draw(h, w, np.zeros((0, 4), dtype=np.float32), 0.0) for _ in range(500)]
    shapes = [(crop.h, crop.w) for crop in crops if crop is not None]
    assert len(shapes) > 20
    assert all(height < 2 * (width + 1) and width < 2 * (height + 1) for height, width in shapes)


def test_random_extent_by_hand(image):
    whole = T.RandomExtent((1.0, 1.0), (0.0, 0.0)).get_transform(image)
    assert whole.src_rect == (0, 0, 87, 61) and whole.output_size == (61, 87)
    half = T.RandomExtent((0.5, 0.5), (0.0, 0.0)).get_transform(image)
    assert half.src_rect == (21.75, 15.25, 65.25, 45.75) and half.output_size == (30, 43)
    augmentation = T.RandomExtent((1.0, 1.0), (0.2, 0.4))  # the middle moves by a tenth of the width either way, ...
    shifts = np.array([augmentation.get_transform(image).src_rect[:2] for _ in range(300)]) / (87, 61)
    assert (np.abs(shifts) <= (0.1, 0.2)).all()
    assert (shifts.min(0) < (-0.09, -0.18)).all() and (shifts.max(0) > (0.09, 0.18)).all()


@pytest.mark.parametrize(
    "box, scale, expected",
    [
        ((70, 200), 1.0, (70, 100)),  # 70 / 61 decides: 87 * 70 / 61 = 99.8
        ((200, 70), 1.0, (49, 70)),  # 70 / 87 decides
        ((200, 70), 2.0, (98, 140)),
    ],
)
def test_resize_scale_fits_into_the_box(image, box, scale, expected):
    resize = T.ResizeScale(scale, scale, *box).get_transform(image)
    assert (resize.new_h, resize.new_w) == expected


def test_fixed_size_crop_is_anywhere(image):
    crops = [T.FixedSizeCrop((20, 30)).get_transform(image).transforms[0] for _ in range(300)]
    corners = np.array([(crop.y0, crop.x0) for crop in crops])
    assert (corners.min(0) <= (2, 2)).all() and (corners.max(0) >= (39, 55)).all()  # of 0 to 41, and 0 to 57
    assert (corners >= 0).all() and (corners <= (41, 57)).all()


def test_a_rotation_leaves_its_centre_alone(image):
    rotation = T.RandomRotation([40], expand=False, center=[[0.25, 0.75]], sample_style="choice").get_transform(image)
    centre = np.array([[0.25 * 87, 0.75 * 61]])
    np.testing.assert_allclose(rotation.apply_coords(centre), centre, atol=1e-9)


class NeedsBoxes(T.Augmentation):
    def get_transform(self, image, boxes):
        return T.CropTransform(*boxes[0].astype(int).tolist())


class NeedsDepth(T.Augmentation):
    def get_transform(self, image, depth):
        return T.NoOpTransform()


class Own(T.Augmentation):
    def __init__(self, low=0.0, high=1.0):
        self._init(locals())

    def get_transform(self, img):
        return T.NoOpTransform() if self._rand_range(self.low, self.high) < 5 else None


def test_own_augmentations_get_what_they_name(image):
    aug_input = T.AugInput(image, boxes=np.array([[2, 3, 20, 10]], dtype=np.float32))
    NeedsBoxes()(aug_input)
    np.testing.assert_array_equal(aug_input.image, image[3:13, 2:22])
    with pytest.raises(AttributeError, match="NeedsDepth needs.*depth"):
        NeedsDepth()(aug_input)
    with pytest.raises(TypeError, match="NoneType"):
        Own(5, 6)(aug_input)
    assert repr(Own(0.0, high=3)) == "Own(high=3)"


def test_apply_augmentations(image):
    augmentations = [T.Resize(20), T.HFlipTransform(20)]
    result, transforms = T.apply_augmentations(augmentations, image)
    np.testing.assert_array_equal(result, np.asarray(Image.fromarray(image).resize((20, 20), 2))[:, ::-1])
    assert [type(t) for t in transforms.transforms] == [T.ResizeTransform, T.HFlipTransform]
    aug_input = T.AugInput(image)
    same, _ = T.apply_augmentations(augmentations, aug_input)
    assert same is aug_input and aug_input.image.shape == (20, 20, 3)
    with pytest.raises(TypeError, match="int"):
        T.AugmentationList([3])


@pytest.mark.parametrize("bad", [np.zeros((2, 2), dtype=np.int64), np.zeros(3), [[1, 2]]])
def test_aug_input_refuses(bad):
    with pytest.raises(TypeError, match="image"):
        T.AugInput(bad)
