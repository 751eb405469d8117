"""Test-time augmentation, of a model whose answers are known."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from projects_maskrcnn.framework import FRAMEWORK, Boxes, Instances, MetadataCatalog, build_model
from projects_maskrcnn.modeling import GeneralizedRCNNWithTTA
from projects_maskrcnn.modeling.test_time_augmentation import View

HEIGHT, WIDTH = 40, 60
# a bright object of rows 8 to 19 and columns 12 to 29, whose left half has the first keypoint
OBJECT = torch.tensor([12.0, 8.0, 30.0, 20.0])


class Oracle(nn.Module):
    """Finds the bright object in the image that it gets, with a mask and heatmaps of what is inside the given boxes."""

    def __init__(self, wrong_at_width=None):
        super().__init__()
        self.wrong_at_width = wrong_at_width
        self.sizes = []

    def inference(self, batched_inputs, detected_instances=None, do_postprocess=True):
        assert not do_postprocess
        (x,) = batched_inputs
        image = x["image"]
        assert image.shape[0] == 3
        if detected_instances is None:
            self.sizes.append(tuple(image.shape[1:]))
            rows = (image[0].amax(1) > 127).nonzero()
            columns = (image[0].amax(0) > 127).nonzero()
            found = Instances(tuple(image.shape[1:]))
            box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            found.pred_boxes = Boxes(torch.tensor([box], dtype=torch.float32))
            # the score tells the view, so that one can see which is kept
            found.scores = torch.tensor([image.shape[2] / 1000])
            found.pred_classes = torch.tensor([3])
            return [found]
        (given,) = detected_instances
        x0, y0, x1, y1 = given.pred_boxes.tensor[0].round().int().tolist()
        # green is brighter in the object's left part: the mask
        crop = image[1:2, y0:y1, x0:x1][None] / 255
        mask = nn.functional.interpolate(crop, (8, 8), mode="area")
        given.pred_masks = mask
        # two keypoints that change places in a mirror: the first is where green is, in the image as it is seen
        left = mask[0, 0].mean(0).argmax() < 4
        first, second = (mask, 1 - mask) if left else (1 - mask, mask)
        given.pred_keypoint_heatmaps = torch.cat([first, second], dim=1) * 10
        given.pred_keypoints = torch.zeros(1, 2, 3)
        return [given]


def scene():
    image = torch.zeros(3, HEIGHT, WIDTH, dtype=torch.uint8)
    image[0, 8:20, 12:30] = 255
    image[1, 8:20, 12:21] = 255
    return {"image": image, "height": HEIGHT, "width": WIDTH}


@pytest.fixture
def augmented(config):
    """A function from TEST.AUG's keys and a model to the augmented model."""
    MetadataCatalog.get("two_hands").set(keypoint_names=["left", "right"], keypoint_flip_map=[("left", "right")])

    def augmented(model, **values):
        cfg = config("fpn", "MODEL.KEYPOINT_ON", True, "DATASETS.TRAIN", ("two_hands",))
        for key, value in values.items():
            cfg.TEST.AUG[key] = value
        return GeneralizedRCNNWithTTA(cfg, model)

    yield augmented
    MetadataCatalog.remove("two_hands")


def test_views(augmented):
    model = Oracle()
    augmented(model, MIN_SIZES=(20, 80), MAX_SIZE=90, FLIP=True)([scene()])
    assert model.sizes == [(20, 30), (20, 30), (60, 90), (60, 90)]
    model = Oracle()
    augmented(model, MIN_SIZES=(40,), FLIP=False)([scene()])
    assert model.sizes == [(40, 60)]


@pytest.mark.parametrize("size", [(10, 17), (100, 90)])
def test_a_view_is_resized_as_the_test_images_are(size):
    image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    for flip in (False, True):
        view = View(*size, flip).of_image(torch.from_numpy(image.transpose(2, 0, 1).copy())).numpy()
        assert np.abs(view - expected[:, :, :: -1 if flip else 1]).max() < 1.5  # Pillow rounds each of two passes


@pytest.mark.parametrize("limit", [2, 3, 10])
def test_detections_are_merged_within_classes_and_limited(config, limit):
    def found(*rows):
        return Instances(
            (HEIGHT, WIDTH), scores=torch.tensor([r[0] for r in rows]), pred_classes=torch.tensor([r[1] for r in rows])
        )

    cfg = config("fpn", "TEST.DETECTIONS_PER_IMAGE", limit)
    views = [found((0.7, 0), (0.8, 1)), found((0.9, 0), (0.6, 0))]
    boxes = [torch.tensor([[0, 0, 10, 10], [0, 0, 10, 10.0]]), torch.tensor([[0, 0, 10, 9], [30, 0, 40, 10.0]])]
    merged = GeneralizedRCNNWithTTA(cfg, Oracle())._merge(boxes, views, (HEIGHT, WIDTH))
    expected = [(0.9, 0), (0.8, 1), (0.6, 0)][:limit]  # the 0.7 is the 0.9 again, the 0.8 of another class
    assert merged.scores.tolist() == pytest.approx([score for score, _ in expected])
    assert merged.pred_classes.tolist() == [category for _, category in expected]


@pytest.mark.parametrize(("values", "is_object"), [((0.3, 0.6), False), ((0.3, 0.8), True)])
def test_masks_are_means_over_views(augmented, values, is_object):
    class Unsure(Oracle):
        left = list(values)

        def inference(self, batched_inputs, detected_instances=None, do_postprocess=True):
            (result,) = super().inference(batched_inputs, detected_instances, do_postprocess)
            if detected_instances is not None:
                result.pred_masks = torch.full((1, 1, 8, 8), self.left.pop())
            return [result]

    (output,) = augmented(Unsure(), MIN_SIZES=(40,), FLIP=True)([scene()])
    assert output["instances"].pred_masks.any().item() == is_object


def test_what_all_views_agree_on_comes_out(augmented):
    (output,) = augmented(Oracle(), MIN_SIZES=(20, 40, 80), FLIP=True)([scene()])
    found = output["instances"]
    assert len(found) == 1 and found.image_size == (HEIGHT, WIDTH) and found.pred_classes.tolist() == [3]
    assert found.scores.tolist() == pytest.approx([0.12])  # of the largest view, which suppressed the others
    torch.testing.assert_close(found.pred_boxes.tensor[0], OBJECT, rtol=0, atol=0.5)
    assert found.pred_masks.shape == (1, HEIGHT, WIDTH)
    expected = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    expected[8:20, 12:21] = True
    assert (found.pred_masks[0] != expected).sum() <= 24  # one column on either side
    # the mirrored views' keypoints have changed places back: the first lies on the left half
    x = found.pred_keypoints[0, :, 0]
    assert 12 <= x[0] <= 21 <= x[1] <= 30


def test_the_original_size_may_be_another_than_the_images(augmented):
    x = {**scene(), "height": 3 * HEIGHT, "width": 2 * WIDTH}
    (output,) = augmented(Oracle(), MIN_SIZES=(40,), FLIP=True)([x])
    found = output["instances"]
    expected = OBJECT * torch.tensor([2.0, 3.0, 2.0, 3.0])
    torch.testing.assert_close(found.pred_boxes.tensor[0], expected, rtol=0, atol=1e-3)
    assert found.pred_masks.shape == (1, 3 * HEIGHT, 2 * WIDTH)


@pytest.mark.parametrize("kind", ["fpn", "c4"])
def test_one_view_of_the_images_own_size_is_the_model_itself(kind, config, random_image):
    torch.manual_seed(0)
    cfg = config(kind, "TEST.AUG.MIN_SIZES", (64,), "TEST.AUG.FLIP", False)
    model = build_model(cfg).eval()
    with torch.no_grad():
        (expected,), (output,) = model([random_image()]), GeneralizedRCNNWithTTA(cfg, model)([random_image()])
    expected, output = expected["instances"], output["instances"]
    torch.testing.assert_close(output.pred_boxes.tensor, expected.pred_boxes.tensor)
    torch.testing.assert_close(output.scores, expected.scores)
    assert torch.equal(output.pred_classes, expected.pred_classes)
    assert (output.pred_masks != expected.pred_masks).float().mean() < 1e-3


def test_no_detections(config, random_image):
    MetadataCatalog.get("unpaired").set(keypoint_names=list("abcde"), keypoint_flip_map=[])
    options = ("MODEL.KEYPOINT_ON", True, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 1.1, "DATASETS.TRAIN", ("unpaired",))
    cfg = config("fpn", *options, "TEST.AUG.MIN_SIZES", (64,))
    with torch.no_grad():
        (output,) = GeneralizedRCNNWithTTA(cfg, build_model(cfg).eval())([random_image()])
    found = output["instances"]
    assert len(found) == 0 and found.pred_masks.shape == (0, 64, 96) and found.pred_keypoints.shape == (0, 5, 3)


def test_precomputed_proposals_are_refused(config):
    with pytest.raises(ValueError, match="MODEL.LOAD_PROPOSALS"):
        GeneralizedRCNNWithTTA(config("fpn", "MODEL.LOAD_PROPOSALS", True), Oracle())


@pytest.mark.parametrize("kind", ["RetinaNet", "PanopticFPN"])
def test_a_model_of_another_kind_is_refused(kind, config):
    model = torch.nn.Identity() if kind == "RetinaNet" else Oracle()
    with pytest.raises(ValueError, match=f"MODEL.META_ARCHITECTURE is {kind}: set TEST.AUG.ENABLED False"):
        GeneralizedRCNNWithTTA(config("fpn", "MODEL.META_ARCHITECTURE", kind), model)


def test_the_models_mode_stays_as_it_is(config):
    for training in (True, False):
        model = Oracle().train(training)
        assert GeneralizedRCNNWithTTA(config("fpn"), model).training == training == model.training


@pytest.mark.parametrize("kind", ["fpn", "c4"])
def test_mirrored_views_are_merged_as_detectron2_merges_them(kind, config, random_image):
    if FRAMEWORK != "detectron2":
        pytest.skip("Detectron2 is not the framework in use")
    from detectron2.modeling import GeneralizedRCNNWithTTA as Detectron2s

    torch.manual_seed(0)
    cfg = config(kind, "TEST.AUG.MIN_SIZES", (64,), "TEST.AUG.FLIP", True)
    model = build_model(cfg).eval()
    with torch.no_grad():
        expected, found = (
            tta(cfg, model)([random_image()])[0]["instances"] for tta in (Detectron2s, GeneralizedRCNNWithTTA)
        )
    assert len(found) == len(expected) == 6
    torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor, rtol=0, atol=1e-3)
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-3, atol=1e-5)
    assert torch.equal(found.pred_classes, expected.pred_classes)
    assert (found.pred_masks != expected.pred_masks).float().mean() < 1e-3
