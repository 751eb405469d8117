"""What is drawn, by its pixels: fills, edges, skeletons, labels, and what stays untouched."""

import random

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from projects_maskrcnn.embedded.structures import BitMasks, Boxes, BoxMode, Instances, Keypoints, PolygonMasks
from projects_maskrcnn.embedded.utils.visualizer import ColorMode, VisImage, Visualizer

H, W = 60, 80
GRAY = np.full((H, W, 3), 100, np.uint8)
SQUARE = np.zeros((H, W), np.uint8)
SQUARE[20:40, 10:50] = 1
RECTANGLE = [10, 20, 50, 20, 50, 40, 10, 40]
RLE = mask_util.encode(np.asfortranarray(SQUARE))
COUNTS = [10 * H + 20, 20, *[40, 20] * 39, 20 + 30 * H]
RED_AT_HALF = [178, 50, 50]  # 0.5 * 100 + 0.5 * 255


def changed(image, original=GRAY):
    return (image != original).any(axis=2)


@pytest.mark.parametrize(
    "masks",
    [
        [SQUARE],
        [SQUARE.astype(bool)],
        torch.from_numpy(SQUARE)[None].bool(),
        [[RECTANGLE]],
        [[[10, 20, 35, 20, 35, 40, 10, 40], np.array([30.0, 20, 50, 20, 50, 40, 30, 40])]],  # overlapping parts
        [RLE],
        [{"size": [H, W], "counts": COUNTS}],
        PolygonMasks([[np.array(RECTANGLE, dtype=float)]]),
        BitMasks(torch.from_numpy(SQUARE)[None]),
    ],
)
@pytest.mark.parametrize("scale", [1, 3])
def test_masks_of_any_format_are_filled_and_outlined(masks, scale):
    image = Visualizer(GRAY, scale=scale).overlay_instances(masks=masks, assigned_colors=["red"], alpha=0.5).get_image()
    assert image.shape == (H * scale, W * scale, 3) and image.dtype == np.uint8
    inside = image[24 * scale : 36 * scale, 14 * scale : 46 * scale]
    assert np.abs(inside.astype(int) - RED_AT_HALF).max() <= 1
    outside = changed(image, 100)
    outside[17 * scale : 43 * scale, 7 * scale : 53 * scale] = False
    assert not outside.any()
    edge = image[30 * scale, 8 * scale : 12 * scale]  # opaque, so redder than the inside
    assert edge[:, 0].max() > 220


def test_holes_stay_open():
    mask = SQUARE.copy()
    mask[26:34, 20:40] = 0
    image = Visualizer(GRAY).draw_binary_mask(mask, color="red").get_image()
    assert (image[29:31, 25:35] == 100).all() and image[23, 30].tolist() == RED_AT_HALF


def test_small_instances_lie_on_large_ones():
    small = np.zeros_like(SQUARE)
    small[25:35, 20:40] = 1
    for order in (1, -1):
        masks, colors = [SQUARE, small][::order], ["red", "blue"][::order]
        image = Visualizer(GRAY).overlay_instances(masks=masks, assigned_colors=colors, alpha=1).get_image()
        assert image[30, 30].tolist() == [0, 0, 255] and image[30, 15].tolist() == [255, 0, 0]


@pytest.mark.parametrize("scale", [1, 4])
def test_box_edges(scale):
    image = Visualizer(GRAY, scale=scale).draw_box((10, 20, 50, 40), alpha=1, edge_color="lime").get_image()
    for y, x in [(20, 30), (40, 30), (30, 10), (30, 50)]:  # an edge lies between two pixels
        near = image[(y - 1) * scale : (y + 1) * scale, (x - 1) * scale : (x + 1) * scale]
        assert (near.reshape(-1, 3).astype(int) @ [-1, 2, -1]).max() > 150
    assert not changed(image, 100)[23 * scale : 37 * scale, 13 * scale : 47 * scale].any()
    assert not changed(image, 100)[: 17 * scale].any()


def test_what_leaves_the_image_is_cut_off():
    for box in [
        (-50, -50, 30, 30),
        (70, 50, 900, 900),
        (-9, -9, 900, 900),
        (200, 200, 300, 300),
        (5, 5, 5, 5),
    ]:
        output = Visualizer(GRAY).overlay_instances(boxes=np.array([box]), labels=["a label that is much too long"])
        assert output.get_image().shape == (H, W, 3)


@pytest.mark.parametrize("position, corner", [((999, 999), np.s_[-30:, -40:]), ((-999, -999), np.s_[:30, :40])])
def test_text_stays_in_the_image(position, corner):
    image = Visualizer(GRAY).draw_text("text", position, color="orange").get_image()
    dark = changed(image)
    assert dark.sum() == dark[corner].sum() > 200
    assert image.max() > 150, "light letters on a dark box"


def test_labels_hide_neither_each_other_nor_centers(monkeypatch):
    places = []
    monkeypatch.setattr(Visualizer, "_put_text", lambda self, text, font, place, color: places.append((text, place)))
    boxes = np.array([[x, y, x + 60, y + 40] for x in range(20, 400, 50) for y in range(20, 400, 30)])
    labels = [str(i) * 3 for i in range(len(boxes))]
    Visualizer(np.zeros((480, 480, 3), np.uint8)).overlay_instances(boxes=boxes, labels=labels)
    assert len(places) > 10
    for i, (text, (x0, y0, x1, y1)) in enumerate(places):
        assert 0 <= x0 < x1 <= 480 and 0 <= y0 < y1 <= 480
        for _, (u0, v0, u1, v1) in places[:i]:
            assert x1 <= u0 or u1 <= x0 or y1 <= v0 or v1 <= y0
        own = labels.index(text)
        centers = (boxes[:, :2] + boxes[:, 2:]) / 2
        hidden = (centers > (x0, y0)).all(axis=1) & (centers < (x1, y1)).all(axis=1)
        assert not np.delete(hidden, own).any()


METADATA = {
    "thing_classes": ["cat", "dog"],
    "thing_colors": [[200, 0, 0], [0, 0, 200]],
    "keypoint_names": ["nose", "tail"],
    "keypoint_connection_rules": [("nose", "tail", (0, 255, 0))],
}


@pytest.mark.parametrize("wrap", [np.array, torch.tensor, lambda k: Keypoints(torch.tensor(k))])
def test_keypoints_are_joined_where_both_are_seen(wrap):
    for score, joined in ((0.9, True), (0.01, False)):
        keypoints = wrap([[[20.5, 30.5, 0.9], [60.5, 30.5, score]]])
        image = Visualizer(GRAY, METADATA).overlay_instances(keypoints=keypoints).get_image()
        assert (image[30, 40].astype(int) @ [-1, 1, -1] > 200) == joined
        assert changed(image)[30, 20] and changed(image)[30, 60] == joined


def test_the_spine_joins_the_middles():
    names = ["nose", "left_shoulder", "right_shoulder", "left_hip", "right_hip"]
    keypoints = [[40.5, 5.5, 2], [30.5, 20.5, 2], [50.5, 20.5, 2], [30.5, 50.5, 2], [50.5, 50.5, 2]]
    image = Visualizer(GRAY, {"keypoint_names": names}).draw_and_connect_keypoints(keypoints).get_image()
    red = image.astype(int) @ [2, -1, -1] > 200
    assert red[12, 40] and red[35, 40] and not red[35, 30]


def predictions(n=2):
    masks = torch.zeros(n, H, W, dtype=torch.bool)
    masks[:, 20:40, 10:30] = True
    masks[1:, :, :] = masks[1:].roll(40, dims=2)
    return Instances(
        (H, W),
        pred_boxes=Boxes(torch.tensor([[10.0, 20, 30, 40], [50, 20, 70, 40]][:n])),
        scores=torch.tensor([0.987, 0.5][:n]),
        pred_classes=torch.tensor([1, 7][:n]),
        pred_masks=masks,
    )


def test_labels_of_predictions_and_annotations(monkeypatch):
    texts = []
    monkeypatch.setattr(Visualizer, "_put_text", lambda self, text, *rest: texts.append(text))
    Visualizer(GRAY, METADATA).draw_instance_predictions(predictions())
    assert sorted(texts) == ["7 50%", "dog 99%"]  # a class without a name shows its number
    texts.clear()
    unnamed = predictions()
    unnamed.remove("pred_classes")
    Visualizer(GRAY).draw_instance_predictions(unnamed)
    assert sorted(texts) == ["50%", "99%"]
    texts.clear()
    crowd = {"bbox": [10, 20, 20, 20], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, "iscrowd": 1}
    Visualizer(GRAY, METADATA).draw_dataset_dict({"annotations": [crowd]})
    assert texts == ["cat|crowd"]


def test_color_modes():
    image = np.random.default_rng(0).integers(0, 255, (H, W, 3)).astype(np.uint8)

    def draw(mode, **kwargs):
        visualizer = Visualizer(image, METADATA, instance_mode=mode)
        return visualizer.draw_instance_predictions(predictions(1), **kwargs).get_image()

    gray = draw(ColorMode.IMAGE_BW)
    assert (gray[50:, :, 0] == gray[50:, :, 1]).all() and (gray[50:, :, 0] == gray[50:, :, 2]).all()
    assert (gray[28:32, 18:22].std(axis=2) > 0).any(), "the mask keeps its colors"
    by_class = draw(ColorMode.SEGMENTATION, jittering=False)
    expected = 0.25 * image[30, 20] + 0.75 * np.array(METADATA["thing_colors"][1])
    assert np.abs(by_class[30, 20] - expected).max() <= 1
    assert (draw(ColorMode.IMAGE)[50:] == image[50:]).all()


def test_nothing_to_draw_leaves_the_image():
    for draw in (
        lambda v: v.overlay_instances(),
        lambda v: v.draw_dataset_dict({"annotations": []}),
        lambda v: v.draw_instance_predictions(predictions()[:0]),
        lambda v: v.overlay_instances(masks=[np.zeros((H, W))], labels=["nowhere"]),
    ):
        assert (draw(Visualizer(GRAY)).get_image() == GRAY).all()
    assert (GRAY == 100).all()


def test_contradicting_arguments_are_named():
    with pytest.raises(ValueError, match="'boxes': 1, 'labels': 2"):
        Visualizer(GRAY).overlay_instances(boxes=np.zeros((1, 4)), labels=["a", "b"])
    with pytest.raises(ValueError, match=r"\(5, 6\).*\(60, 80\)"):
        Visualizer(GRAY).overlay_instances(masks=[np.zeros((5, 6))])


def test_drawing_leaves_the_random_states_alone():
    states = np.random.get_state()[1].copy(), torch.get_rng_state(), random.getstate()
    Visualizer(GRAY, METADATA, instance_mode=ColorMode.SEGMENTATION).draw_instance_predictions(predictions())
    assert (states[0] == np.random.get_state()[1]).all()
    assert torch.equal(states[1], torch.get_rng_state()) and states[2] == random.getstate()


def test_save(tmp_path):
    VisImage(GRAY + np.arange(3, dtype=np.uint8), scale=0.5).save(tmp_path / "drawing.png")
    saved = np.asarray(Image.open(tmp_path / "drawing.png"))
    assert saved.shape == (30, 40, 3) and (saved == [100, 101, 102]).all()


@pytest.mark.parametrize("kind", ["instances", "person_keypoints"])
def test_real_annotations(shared, kind):
    """Each mask of some size is tinted, and far from all instances the photo is as it was."""
    coco = COCO(str(shared / f"data/coco_tiny/annotations/{kind}_val.json"))
    for info in coco.dataset["images"][:8]:
        photo = np.asarray(Image.open(shared / "data/coco_tiny/images" / info["file_name"]).convert("RGB"))
        annotations = [{**a, "bbox_mode": BoxMode.XYWH_ABS} for a in coco.imgToAnns[info["id"]]]
        drawing = Visualizer(photo).draw_dataset_dict({"annotations": annotations}).get_image()
        far = np.ones(photo.shape[:2], bool)
        for annotation in annotations:
            mask = coco.annToMask(annotation).astype(bool)
            assert changed(drawing, photo)[mask].mean() > 0.9 or mask.sum() < 100
            x, y, w, h = np.array(annotation["bbox"], dtype=int)
            far[max(y - 40, 0) : y + h + 40, max(x - 120, 0) : x + w + 120] = False
        assert not changed(drawing, photo)[far].any()
