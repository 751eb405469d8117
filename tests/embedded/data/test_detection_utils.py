"""Reading images and transforming annotations: against Pillow, pycocotools and hand-computed values."""

from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from PIL import Image, ImageOps

from projects_maskrcnn.embedded.data import MetadataCatalog
from projects_maskrcnn.embedded.data import detection_utils as utils
from projects_maskrcnn.embedded.data import transforms as T
from projects_maskrcnn.embedded.structures import Boxes, BoxMode, Instances


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


@pytest.fixture
def png(pixels, tmp_path):
    Image.fromarray(pixels).save(tmp_path / "x.png")
    return str(tmp_path / "x.png")


def test_read_image_formats(png, pixels):
    np.testing.assert_array_equal(utils.read_image(png), pixels)
    np.testing.assert_array_equal(utils.read_image(png, "RGB"), pixels)
    np.testing.assert_array_equal(utils.read_image(png, "BGR"), pixels[:, :, ::-1])
    grey = utils.read_image(png, "L")
    assert grey.shape == (5, 7, 1) and grey.dtype == np.uint8
    np.testing.assert_allclose(grey[..., 0], pixels @ np.array([0.299, 0.587, 0.114]), atol=1)
    yuv = utils.read_image(png, "YUV-BT.601")
    y = pixels @ np.array([0.299, 0.587, 0.114]) / 255
    u, v = 0.492 * (pixels[..., 2] / 255 - y), 0.877 * (pixels[..., 0] / 255 - y)
    np.testing.assert_allclose(yuv, np.stack([y, u, v], axis=2), atol=1e-3)


@pytest.mark.parametrize("format, tolerance", [("RGB", 0), ("BGR", 0), ("YUV-BT.601", 0.1)])
def test_convert_image_to_rgb_inverts(png, pixels, format, tolerance):
    image = utils.read_image(png, format)
    np.testing.assert_allclose(utils.convert_image_to_rgb(image, format), pixels, atol=tolerance)
    as_tensor = torch.from_numpy(image.copy())
    np.testing.assert_allclose(utils.convert_image_to_rgb(as_tensor, format), pixels, atol=tolerance)


def test_convert_image_to_rgb_of_grey(png):
    grey = utils.read_image(png, "L")
    np.testing.assert_array_equal(utils.convert_image_to_rgb(grey, "L"), np.repeat(grey, 3, axis=2))
    with pytest.raises(ValueError, match="INPUT.FORMAT.*HSV"):
        utils.convert_image_to_rgb(grey, "HSV")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    image = Image.new("RGB", (16, 24), "white")
    image.paste("red", (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "x.jpg", exif=exif, quality=95)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "x.jpg")))
    np.testing.assert_array_equal(utils.read_image(str(tmp_path / "x.jpg"), "RGB"), expected)


@pytest.mark.parametrize("damage", ["text", "empty", "truncated", "header"])
def test_image_that_does_not_decode_is_named(png, tmp_path, damage):
    content = Path(png).read_bytes()
    broken = {"text": b"<html>404</html>", "empty": b"", "truncated": content[:60], "header": content[:8]}[damage]
    (tmp_path / "broken.png").write_bytes(broken)
    with pytest.raises(OSError, match="Cannot decode image .*broken.png.*Replace the file, or remove"):
        utils.read_image(str(tmp_path / "broken.png"), "BGR")


@pytest.mark.parametrize("value, accepted", [(255, True), (256, False)])
def test_more_than_eight_bits_are_not_clipped(tmp_path, value, accepted):
    path = str(tmp_path / "deep.png")
    Image.fromarray(np.full((3, 4), value, np.uint16)).save(path)
    if accepted:
        assert (utils.read_image(path, "BGR") == value).all()
    else:
        with pytest.raises(OSError, match="deep.png.*from 256 to 256"):
            utils.read_image(path, "BGR")


def test_missing_image_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no image .*gone.jpg"):
        utils.read_image(str(tmp_path / "gone.jpg"), "BGR")


def test_check_image_size():
    image = np.zeros((4, 6, 3))
    record = {"height": 4}
    utils.check_image_size(record, image)
    assert record == {"height": 4, "width": 6}
    with pytest.raises(utils.SizeMismatchError, match="a.jpg is 6 x 4 .* say 4 x 6"):
        utils.check_image_size({"file_name": "a.jpg", "height": 6, "width": 4}, image)


TRIANGLE = [2, 3, 8, 3, 8, 9]


def transformed(transforms, size, **fields):
    annotation = {"bbox": [2, 3, 6, 6], "bbox_mode": BoxMode.XYWH_ABS} | fields
    return utils.transform_instance_annotations(annotation, transforms, size, keypoint_hflip_indices=[0, 2, 1])


def test_transform_box_and_polygon_by_hand():
    # An image of 10 x 20 (h x w), half as high and thrice as wide, mirrored.
    transforms = T.TransformList([T.ResizeTransform(10, 20, 5, 60), T.HFlipTransform(60)])
    annotation = transformed(transforms, (5, 60), segmentation=[TRIANGLE])
    np.testing.assert_allclose(annotation["bbox"], [36, 1.5, 54, 4.5])
    assert annotation["bbox_mode"] == BoxMode.XYXY_ABS
    np.testing.assert_allclose(annotation["segmentation"][0], [54, 1.5, 36, 1.5, 36, 4.5])
    np.testing.assert_allclose(transformed(list(transforms.transforms), (5, 60))["bbox"], [36, 1.5, 54, 4.5])


def test_transform_clips_the_box():
    crop = T.TransformList([T.CropTransform(4, 5, 3, 10)])
    np.testing.assert_allclose(transformed(crop, (10, 3))["bbox"], [0, 0, 3, 4])


def test_transform_rle():
    mask = np.zeros((10, 20), dtype=np.uint8, order="F")
    mask[3:9, 2:8] = 1
    annotation = transformed(T.TransformList([T.HFlipTransform(20)]), (10, 20), segmentation=mask_util.encode(mask))
    np.testing.assert_array_equal(annotation["segmentation"], mask[:, ::-1])
    with pytest.raises(utils.SizeMismatchError, match="RLE"):
        transformed(T.TransformList([T.HFlipTransform(20)]), (10, 21), segmentation=mask_util.encode(mask))


def test_transform_refuses_other_segmentations():
    with pytest.raises(ValueError, match="not a str"):
        transformed(T.TransformList([]), (10, 20), segmentation="mask.png")


def test_transform_keypoints_by_hand():
    keypoints = [5, 5, 2, 1, 1, 1, 19, 2, 2]
    mirrored = transformed(T.TransformList([T.HFlipTransform(20)]), (10, 20), keypoints=keypoints)["keypoints"]
    np.testing.assert_allclose(mirrored, [[15, 5, 2], [1, 2, 2], [19, 1, 1]])  # left and right change places
    twice = T.TransformList([T.HFlipTransform(20), T.HFlipTransform(20)])
    np.testing.assert_allclose(
        transformed(twice, (10, 20), keypoints=keypoints)["keypoints"], np.reshape(keypoints, (3, 3))
    )
    cropped = transformed(T.TransformList([T.CropTransform(2, 0, 10, 10)]), (10, 10), keypoints=keypoints)
    np.testing.assert_allclose(cropped["keypoints"], [[3, 5, 2], [0, 0, 0], [0, 0, 0]])
    edges = [0, 0, 2, 20, 10, 2, 20.1, 5, 2]  # the right and lower edge of the image belong to it
    kept = transformed(T.TransformList([]), (10, 20), keypoints=edges)["keypoints"]
    np.testing.assert_allclose(kept, [[0, 0, 2], [20, 10, 2], [0, 0, 0]])
    unlabelled = transformed(T.TransformList([]), (10, 20), keypoints=[0.5, 0.5, 0])["keypoints"]
    np.testing.assert_allclose(unlabelled, [[0, 0, 0]])
    assert keypoints == [5, 5, 2, 1, 1, 1, 19, 2, 2]


@pytest.mark.parametrize("indices, message", [(None, "keypoint_flip_map.*RANDOM_FLIP"), ([0], "2 keypoints.*1")])
def test_mirrored_keypoints_need_partners(indices, message):
    flip = T.TransformList([T.HFlipTransform(20)])
    with pytest.raises(ValueError, match=message):
        utils.transform_keypoint_annotations([1, 1, 2, 2, 2, 2], flip, (10, 20), indices)


def boxed(**fields):
    return {"bbox": [1, 2, 4, 6], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 3} | fields


def test_instances_of_no_annotation():
    instances = utils.annotations_to_instances([], (10, 20))
    assert len(instances) == 0 and instances.image_size == (10, 20)
    assert instances.gt_boxes.tensor.shape == (0, 4) and not instances.has("gt_masks")


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
def test_instances_of_polygons(mask_format):
    annos = [
        boxed(segmentation=[TRIANGLE]),
        boxed(segmentation=[[1, 1, 5, 1, 5, 5, 1, 5], TRIANGLE], category_id=0),
    ]
    instances = utils.annotations_to_instances(annos, (10, 20), mask_format)
    assert instances.gt_classes.tolist() == [3, 0] and instances.gt_classes.dtype == torch.int64
    assert instances.gt_boxes.tensor.tolist() == [[1, 2, 4, 6]] * 2
    if mask_format == "bitmask":
        for mask, anno in zip(instances.gt_masks.tensor, annos, strict=True):
            rle = mask_util.merge(mask_util.frPyObjects(anno["segmentation"], 10, 20))
            np.testing.assert_array_equal(mask.numpy(), mask_util.decode(rle))
    else:
        assert [len(p) for p in instances.gt_masks.polygons] == [1, 2]


def test_instances_of_rle_and_arrays():
    mask = np.zeros((10, 20), dtype=np.uint8, order="F")
    mask[3:9, 2:8] = 1
    annos = [boxed(segmentation=mask_util.encode(mask)), boxed(segmentation=mask[:, ::-1])]
    masks = utils.annotations_to_instances(annos, (10, 20), "bitmask").gt_masks.tensor.numpy()
    np.testing.assert_array_equal(masks, np.stack([mask, mask[:, ::-1]]))
    with pytest.raises(ValueError, match="INPUT.MASK_FORMAT to 'bitmask'"):
        utils.annotations_to_instances(annos, (10, 20), "polygon")
    with pytest.raises(ValueError, match=r"\(10, 21\), not \(10, 20\)"):
        utils.annotations_to_instances(annos, (10, 21), "bitmask")


def test_instances_with_keypoints():
    instances = utils.annotations_to_instances([boxed(keypoints=[1, 2, 2, 0, 0, 0])], (10, 20))
    assert instances.gt_keypoints.tensor.tolist() == [[[1, 2, 2], [0, 0, 0]]]


@pytest.mark.parametrize("key, value", [("segmentation", [TRIANGLE]), ("keypoints", [1, 2, 2])])
def test_instances_of_which_some_lack_something(key, value):
    with pytest.raises(ValueError, match=f"Annotation 1 .* has no '{key}', others have"):
        utils.annotations_to_instances([boxed(**{key: value}), boxed()], (10, 20))


def test_filter_empty_instances():
    boxes = [[0, 0, 5, 5], [3, 3, 3, 9], [0, 0, 5, 5], [1, 1, 2, 2]]
    polygons = [[TRIANGLE], [TRIANGLE], [], [TRIANGLE]]
    annos = [boxed(bbox=b, segmentation=p, category_id=i) for i, (b, p) in enumerate(zip(boxes, polygons, strict=True))]
    instances = utils.annotations_to_instances(annos, (10, 20))

    def kept(**kwargs):
        return utils.filter_empty_instances(instances, **kwargs).gt_classes.tolist()

    assert kept() == [0, 3]
    assert kept(by_mask=False) == [0, 2, 3]
    assert kept(by_box=False) == [0, 1, 3]
    assert kept(box_threshold=1.5) == [0]
    _, mask = utils.filter_empty_instances(instances, return_mask=True)
    assert mask.tolist() == [True, False, False, True]
    without_masks = Instances((10, 20), gt_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32)))
    assert len(utils.filter_empty_instances(without_masks)) == 3
    with pytest.raises(ValueError):
        utils.filter_empty_instances(instances, by_box=False, by_mask=False)


@pytest.fixture
def metadata():
    names = ["utils_test_a", "utils_test_b", "utils_test_c"]
    people = {
        "keypoint_names": ("nose", "left_eye", "right_eye"),
        "keypoint_flip_map": (("left_eye", "right_eye"),),
    }
    for name in names[:2]:
        MetadataCatalog.get(name).set(**people)
    MetadataCatalog.get(names[2]).set(keypoint_names=("nose",), keypoint_flip_map=())
    yield names
    for name in names:
        MetadataCatalog.remove(name)


def test_keypoint_hflip_indices(metadata):
    assert utils.create_keypoint_hflip_indices(metadata[:2]) == [0, 2, 1]
    assert utils.create_keypoint_hflip_indices("utils_test_c") == [0]
    assert utils.create_keypoint_hflip_indices("keypoints_coco_2017_val")[:5] == [0, 2, 1, 4, 3]
    with pytest.raises(ValueError, match="'utils_test_a' and 'utils_test_c'.*'keypoint_names'"):
        utils.create_keypoint_hflip_indices(metadata)
    with pytest.raises(AttributeError, match="'utils_test_a' has no 'thing_classes'"):
        utils.check_metadata_consistency("thing_classes", metadata)
    utils.check_metadata_consistency("thing_classes", [])


def test_crop_with_instance():
    instance = boxed(bbox=[10, 4, 14, 8])
    corners = set()
    for _ in range(200):
        crop = utils.gen_crop_transform_with_instance((5, 6), (10, 20), instance)
        assert (crop.h, crop.w) == (5, 6)
        assert 0 <= crop.x0 <= 12 <= crop.x0 + 6 <= 20 and 0 <= crop.y0 <= 6 <= crop.y0 + 5 <= 10
        corners.add((crop.x0, crop.y0))
    assert len(corners) > 20
    with pytest.raises(ValueError, match="does not fit"):
        utils.gen_crop_transform_with_instance((11, 6), (10, 20), instance)
    with pytest.raises(ValueError, match="outside"):
        utils.gen_crop_transform_with_instance((5, 6), (10, 11), instance)


def test_transform_proposals():
    record = {
        "proposal_boxes": np.array([[0, 0, 4, 4], [2, 3, 2, 9], [1, 1, 3, 2], [5, 5, 30, 9]], dtype=np.float64),
        "proposal_objectness_logits": np.array([3.0, 2.0, 1.0, 0.5]),
        "proposal_bbox_mode": BoxMode.XYXY_ABS,
    }
    resize = T.TransformList([T.ResizeTransform(10, 20, 20, 40)])
    utils.transform_proposals(record, (20, 40), resize, proposal_topk=2)
    proposals = record.pop("proposals")
    assert record == {}
    assert proposals.proposal_boxes.tensor.tolist() == [[0, 0, 8, 8], [2, 2, 6, 4]]
    assert proposals.objectness_logits.tolist() == [3.0, 1.0]
    utils.transform_proposals(record, (20, 40), resize, proposal_topk=2)  # nothing to do
    assert record == {}


def test_proposals_are_clipped_to_the_image_and_small_ones_left_out():
    record = {
        "proposal_boxes": np.array([[15.0, 5, 30, 9], [-4, -4, 2, 12], [0, 0, 1, 8]]),
        "proposal_objectness_logits": np.array([3.0, 2.0, 1.0]),
        "proposal_bbox_mode": BoxMode.XYXY_ABS,
    }
    resize = T.TransformList([T.ResizeTransform(10, 20, 20, 40)])
    utils.transform_proposals(record, (20, 40), resize, proposal_topk=9, min_box_size=2)
    assert record["proposals"].proposal_boxes.tensor.tolist() == [[30, 10, 40, 18], [0, 0, 4, 20]]
