"""The default mapper: against Detectron2's mapped inputs, and by hand; what its errors name."""

import copy
import json

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from PIL import Image

from projects_maskrcnn.embedded.config import get_cfg
from projects_maskrcnn.embedded.data import DatasetMapper
from projects_maskrcnn.embedded.data import transforms as T
from projects_maskrcnn.embedded.data.datasets import load_coco_json
from projects_maskrcnn.embedded.data.detection_utils import SizeMismatchError
from projects_maskrcnn.embedded.structures import BitMasks, BoxMode, PolygonMasks

SQUARE = [2, 3, 8, 3, 8, 9, 2, 9]


@pytest.fixture
def record(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (10, 20, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "x.png")
    annotation = {
        "bbox": [2, 3, 6, 6],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": 4,
        "segmentation": [SQUARE],
    }
    crowd = annotation | {"iscrowd": 1}
    return {
        "file_name": str(tmp_path / "x.png"),
        "height": 10,
        "width": 20,
        "image_id": 3,
        "annotations": [annotation | {"iscrowd": 0, "keypoints": [3.5, 4.5, 2]}, crowd],
    }


def test_images_equal_detectron2s(shared):
    parity = json.loads((shared / "parity" / "mask_rcnn_R_50_FPN.json").read_text())
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 320, 512
    mapper = DatasetMapper(cfg, is_train=False)
    for entry in parity["inference"]:
        file = shared / "data" / "coco_tiny" / "images" / entry["file_name"].split("/")[-1]
        image = mapper({"file_name": str(file)})["image"]
        expected = entry["input"]
        assert list(image.shape) == expected["shape"] and image.dtype == torch.uint8
        values = image.double()
        assert values.mean().item() == pytest.approx(expected["mean"], rel=1e-6)
        assert values.std().item() == pytest.approx(expected["std"], rel=1e-5)
        assert values.abs().max().item() == expected["absmax"]
        assert image.flatten()[expected["at"]].tolist() == expected["values"]


def test_maps_a_record(record):
    before = copy.deepcopy(record)
    augmentations = [T.Resize((20, 60)), T.RandomFlip(1.0)]
    mapped = DatasetMapper(True, augmentations=augmentations, image_format="RGB", use_instance_mask=True)(record)
    assert record == before
    pixels = np.asarray(Image.open(record["file_name"]).resize((60, 20), Image.Resampling.BILINEAR))[:, ::-1]
    np.testing.assert_array_equal(mapped["image"].numpy(), pixels.transpose(2, 0, 1))
    assert mapped["image"].is_contiguous()
    assert (mapped["height"], mapped["width"], mapped["image_id"]) == (10, 20, 3)
    assert "annotations" not in mapped
    instances = mapped["instances"]
    assert len(instances) == 1 and instances.image_size == (20, 60)  # the crowd is left out
    np.testing.assert_allclose(instances.gt_boxes.tensor, [[36, 6, 54, 18]])
    assert isinstance(instances.gt_masks, PolygonMasks) and not instances.has("gt_keypoints")
    np.testing.assert_allclose(instances.gt_masks.polygons[0][0], [54, 6, 36, 6, 36, 18, 54, 18])


def test_inference_drops_annotations(record):
    mapped = DatasetMapper(False, augmentations=[], image_format="BGR")(record)
    assert "annotations" not in mapped and "instances" not in mapped and mapped["image"].shape == (3, 10, 20)


def test_from_config(record):
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.RANDOM_FLIP = (20,), "none"
    cfg.INPUT.FORMAT, cfg.INPUT.MASK_FORMAT = "L", "bitmask"
    cfg.MODEL.MASK_ON = True
    instances = (mapped := DatasetMapper(cfg, True)(record))["instances"]
    assert mapped["image"].shape == (1, 20, 40)
    assert isinstance(instances.gt_masks, BitMasks)
    expected = np.zeros((20, 40), dtype=bool)
    expected[6:18, 4:16] = True
    np.testing.assert_array_equal(instances.gt_masks.tensor[0].numpy(), expected)
    cfg.MODEL.MASK_ON = False
    assert not DatasetMapper(cfg, True)(record)["instances"].has("gt_masks")


def test_from_config_keypoints(record):
    cfg = get_cfg()
    cfg.MODEL.KEYPOINT_ON, cfg.DATASETS.TRAIN = True, ("keypoints_coco_2017_val",)
    record["annotations"][0]["keypoints"] = [float(v) for i in range(17) for v in (i, 5, 2)]
    mapper = DatasetMapper(cfg, True)
    assert mapper.keypoint_hflip_indices[:5] == [0, 2, 1, 4, 3]
    assert mapper(record)["instances"].gt_keypoints.tensor.shape == (1, 17, 3)


def test_from_config_proposals(record):
    cfg = get_cfg()
    cfg.MODEL.LOAD_PROPOSALS, cfg.DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN = True, 1
    record["proposal_boxes"] = np.array([[1.0, 1, 5, 5], [2, 2, 9, 9]])
    record["proposal_objectness_logits"] = np.array([2.0, 1.0])
    record["proposal_bbox_mode"] = BoxMode.XYXY_ABS
    assert len(DatasetMapper(cfg, True)(record)["proposals"]) == 1
    assert len(DatasetMapper(cfg, False)(record)["proposals"]) == 2


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
def test_crop_recomputes_the_boxes(record, mask_format):
    if mask_format == "polygon":
        pytest.importorskip("shapely")
        segmentation = [[0, 0, 10, 0, 0, 10]]  # below the diagonal from (10, 0) to (0, 10)
    else:
        rows, columns = np.indices((10, 20))
        segmentation = mask_util.encode(np.asfortranarray((rows + columns < 10).astype(np.uint8)))
    record["annotations"] = [{"bbox": [0, 0, 10, 10], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}]
    record["annotations"][0]["segmentation"] = segmentation
    arguments = {
        "augmentations": [T.CropTransform(5, 0, 10, 10)],
        "image_format": "RGB",
        "use_instance_mask": True,
    }
    arguments["instance_mask_format"] = mask_format
    loose = DatasetMapper(True, **arguments)(record)["instances"]
    tight = DatasetMapper(True, recompute_boxes=True, **arguments)(record)["instances"]
    assert loose.gt_boxes.tensor.tolist() == [[0, 0, 5, 10]]
    np.testing.assert_allclose(tight.gt_boxes.tensor, [[0, 0, 5, 5]])


def test_crop_from_config_tightens_masks_only():
    cfg = get_cfg()
    cfg.INPUT.CROP.ENABLED = True
    for mask_on in (True, False):
        cfg.MODEL.MASK_ON = mask_on
        mapper = DatasetMapper(cfg, True)
        assert isinstance(mapper.augmentations.augs[0], T.RandomCrop)
        assert mapper.recompute_boxes == mask_on
    assert not any(isinstance(a, T.RandomCrop) for a in DatasetMapper(cfg, False).augmentations.augs)


def test_instances_that_are_cropped_away_are_left_out(record):
    mapper = DatasetMapper(True, augmentations=[T.CropTransform(9, 0, 10, 10)], image_format="RGB")
    assert len(mapper(record)["instances"]) == 0


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"width": 21}, SizeMismatchError, "x.png is 20 x 10"),
        ({"file_name": "gone.png"}, FileNotFoundError, "gone.png"),
    ],
)
def test_errors_of_the_image_name_it(record, change, error, message):
    with pytest.raises(error, match=message):
        DatasetMapper(True, augmentations=[], image_format="RGB")(record | change)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"segmentation": "mask.png"}, "Annotation 0 .*x.png.*not a str"),
        ({"segmentation": [[1, 2, 3]]}, "Annotation 0 .*x.png"),
        ({"segmentation": {"size": [20, 10], "counts": "PPYo0"}}, "Annotation 0 .*x.png"),
        ({"keypoints": [1, 2]}, "Annotation 0 .*x.png"),
        ({"bbox": [1, 2]}, "Annotation 0 .*x.png"),
        ({"segmentation": mask_util.encode(np.ones((10, 20), np.uint8, order="F"))}, "x.png: .*MASK_FORMAT"),
    ],
)
def test_errors_of_an_annotation_name_the_image(record, change, message):
    record["annotations"][0] |= change
    mapper = DatasetMapper(
        True,
        augmentations=[T.Resize((10, 20))],
        image_format="RGB",
        use_instance_mask=True,
        use_keypoint=True,
    )
    with pytest.raises(ValueError, match=message):
        mapper(record)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"recompute_boxes": True}, "recompute_boxes"),
        ({"instance_mask_format": "rle"}, "INPUT.MASK_FORMAT.*'rle'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        DatasetMapper(True, augmentations=[], image_format="RGB", **arguments)


def test_unknown_flip():
    cfg = get_cfg()
    cfg.INPUT.RANDOM_FLIP = "both"
    with pytest.raises(ValueError, match="INPUT.RANDOM_FLIP.*'both'"):
        DatasetMapper(cfg, True)


def test_real_masks_agree_with_pycocotools(shared):
    folder = shared / "data" / "nuclei"
    records = load_coco_json(folder / "annotations" / "instances_val.json", folder / "images")[:3]
    mapper = DatasetMapper(
        True,
        augmentations=[T.RandomFlip(1.0)],
        image_format="RGB",
        use_instance_mask=True,
        instance_mask_format="bitmask",
    )
    for record in records:
        masks = mapper(record)["instances"].gt_masks.tensor.numpy()
        expected = [mask_util.decode(a["segmentation"])[:, ::-1] for a in record["annotations"]]
        np.testing.assert_array_equal(masks, np.stack(expected))


@pytest.mark.parametrize(("key", "field"), [("MASK_ON", "segmentation"), ("KEYPOINT_ON", "keypoints")])
def test_an_image_without_what_the_model_learns_is_named(record, key, field):
    for anno in record["annotations"]:
        anno.pop(field, None)
    mapper = DatasetMapper(
        True,
        augmentations=[],
        image_format="RGB",
        use_instance_mask=key == "MASK_ON",
        instance_mask_format="bitmask",
        use_keypoint=key == "KEYPOINT_ON",
    )
    with pytest.raises(ValueError, match=f"x.png: MODEL.{key} is on, and no annotation has"):
        mapper(record)
