"""COCO's metrics against pycocotools on perturbed real annotations, and against a case computed by hand."""

import json
from collections import OrderedDict

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from projects_maskrcnn.embedded.data import DatasetCatalog, MetadataCatalog
from projects_maskrcnn.embedded.evaluation import COCOEvaluator, instances_to_coco_json
from projects_maskrcnn.embedded.modeling import detector_postprocess
from projects_maskrcnn.embedded.structures import Boxes, BoxMode, Instances
from projects_maskrcnn.embedded.utils import comm

METRICS = {
    "bbox": ["AP", "AP50", "AP75", "APs", "APm", "APl"],
    "segm": ["AP", "AP50", "AP75", "APs", "APm", "APl"],
    "keypoints": ["AP", "AP50", "AP75", "APm", "APl"],
}


def instances(size, boxes, scores, classes, **fields):
    return Instances(
        size,
        pred_boxes=Boxes(torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)),
        scores=torch.as_tensor(scores, dtype=torch.float32),
        pred_classes=torch.as_tensor(classes, dtype=torch.int64),
        **fields,
    )


def perturb(coco, task, seed=0):
    """For each image what a model might give: its annotations shifted, dropped, doubled and mislabeled."""
    rng = np.random.default_rng(seed)
    categories = sorted(coco.cats)
    outputs = {}
    for image in coco.dataset["images"]:
        size = image["height"], image["width"]
        boxes, classes, masks, keypoints = [], [], [], []
        for annotation in coco.imgToAnns[image["id"]]:
            for _ in range(rng.integers(0, 3)):
                x, y, w, h = np.array(annotation["bbox"]) * (1 + rng.normal(0, 0.06, 4))
                boxes.append([x, y, x + w, y + h])
                category = annotation["category_id"] if rng.random() < 0.9 else rng.choice(categories)
                classes.append(categories.index(category))
                shift = tuple(rng.integers(-4, 5, 2))
                masks.append(np.roll(coco.annToMask(annotation), shift, (0, 1)).astype(bool))
                if task == "keypoints":
                    points = np.array(annotation["keypoints"], dtype=np.float32).reshape(-1, 3)
                    points[:, :2] += rng.normal(0, 3, (len(points), 2))
                    keypoints.append(points)
        fields = {}
        if task == "segm":
            fields["pred_masks"] = torch.from_numpy(np.array(masks).reshape(-1, *size))
        if task == "keypoints":
            fields["pred_keypoints"] = torch.from_numpy(np.array(keypoints, dtype=np.float32).reshape(-1, 17, 3))
        outputs[image["id"]] = instances(size, boxes, rng.random(len(boxes)), classes, **fields)
    return outputs


def as_results(outputs, categories):
    """The predictions as COCO results, made without the code under test."""
    results = []
    for image_id, predicted in outputs.items():
        for i in range(len(predicted)):
            x0, y0, x1, y1 = predicted.pred_boxes.tensor[i]
            result = {
                "image_id": image_id,
                "category_id": categories[predicted.pred_classes[i]],
                "bbox": [x0.item(), y0.item(), (x1 - x0).item(), (y1 - y0).item()],
                "score": predicted.scores[i].item(),
            }
            if predicted.has("pred_masks"):
                mask = np.asfortranarray(predicted.pred_masks[i].numpy().astype(np.uint8))
                result["segmentation"] = mask_util.encode(mask)
            if predicted.has("pred_keypoints"):
                result["keypoints"] = (predicted.pred_keypoints[i] - torch.tensor([0.5, 0.5, 0])).flatten().tolist()
            results.append(result)
    return results


def run_pycocotools(path, results, task, max_dets=100, img_ids=None):
    """pycocotools' own statistics, and each category's AP."""
    if task == "segm":  # else the box's area is taken for the mask's
        results = [{k: v for k, v in r.items() if k != "bbox"} for r in results]
    coco = COCO(path)
    evaluation = COCOeval(coco, coco.loadRes(results), task)
    if task != "keypoints":
        evaluation.params.maxDets = [1, 10, max_dets]
    if img_ids:
        evaluation.params.imgIds = img_ids
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    percents = [100 * s if s >= 0 else np.nan for s in evaluation.stats[: len(METRICS[task])]]
    per_category = []
    for k in range(len(evaluation.params.catIds)):
        precision = evaluation.eval["precision"][:, :, k, 0, -1]
        per_category.append(100 * precision[precision > -1].mean() if (precision > -1).any() else np.nan)
    return percents, per_category


def evaluate(name, outputs, batch=3, **kwargs):
    img_ids = kwargs.pop("img_ids", None)
    evaluator = COCOEvaluator(name, **kwargs)
    evaluator.reset()
    items = list(outputs.items())
    for i in range(0, len(items), batch):
        ids, predicted = zip(*items[i : i + batch], strict=True)
        evaluator.process([{"image_id": i} for i in ids], [{"instances": p} for p in predicted])
    return evaluator.evaluate(img_ids=img_ids) if img_ids else evaluator.evaluate()


@pytest.mark.parametrize("task", ["bbox", "segm", "keypoints"])
def test_equals_pycocotools_on_real_data(shared, register, tmp_path, task):
    kind = "person_keypoints" if task == "keypoints" else "instances"
    path = shared / f"data/coco_tiny/annotations/{kind}_val.json"
    name = register(path)
    coco = COCO(str(path))
    outputs = perturb(coco, task)
    before = outputs[next(iter(outputs))].pred_boxes.tensor.clone()
    results = evaluate(name, outputs, output_dir=str(tmp_path / "inference"))

    reference = as_results(outputs, sorted(coco.cats))
    assert list(results) == sorted({"bbox", task})
    for each in results:
        percents, per_category = run_pycocotools(str(path), reference, each)
        names = MetadataCatalog.get(name).thing_classes
        expected = dict(zip(METRICS[each], percents, strict=True))
        if len(names) > 1:
            expected.update({f"AP-{n}": ap for n, ap in zip(names, per_category, strict=True)})
        assert list(results[each]) == list(expected)
        np.testing.assert_array_equal(list(results[each].values()), list(expected.values()))
        assert 5 < results[each]["AP"] < 95

    written = json.loads((tmp_path / "inference/coco_instances_results.json").read_text())
    assert [r["category_id"] for r in written] == [r["category_id"] for r in reference]
    assert run_pycocotools(str(path), written, task)[0] == pytest.approx(list(results[task].values())[:6], nan_ok=True)
    assert len(torch.load(tmp_path / "inference/instances_predictions.pth", weights_only=True)) == len(outputs)
    assert torch.equal(outputs[next(iter(outputs))].pred_boxes.tensor, before)


@pytest.mark.parametrize("kwargs", [{"max_dets_per_image": 4}, {"max_dets_per_image": 300}, {"tasks": ("bbox",)}])
def test_options_equal_pycocotools(shared, register, kwargs):
    path = shared / "data/coco_tiny/annotations/instances_val.json"
    coco = COCO(str(path))
    outputs = perturb(coco, "bbox", seed=1)
    img_ids = sorted(coco.imgs)[:15]
    max_dets = kwargs.get("max_dets_per_image", 100)
    results = evaluate(register(path), outputs, img_ids=img_ids, **kwargs)
    reference = as_results(outputs, sorted(coco.cats))
    percents, per_category = run_pycocotools(str(path), reference, "bbox", max_dets, img_ids)
    if max_dets != 100:  # pycocotools' summary knows AP at 100 detections alone: it is the categories' mean
        percents[0] = np.nanmean(per_category)
    np.testing.assert_allclose(list(results["bbox"].values())[:6], percents, rtol=1e-12)


# Two images, 100 x 100. By hand: category 7 ("a") has two boxes. One is found exactly (score 0.9), the
# other with IoU 80 * 40 / (100 * 40) = 0.8 (score 0.5); between them (score 0.7) is a false positive.
# Recall 0.5 has precision 1; recall 1 has 2/3 where IoU 0.8 counts: at thresholds 0.5 ... 0.8, seven of
# ten. Above them, recall ends at 0.5. On COCO's 101 recall points: 51 at 1 and 50 at 2/3, or 51 at 1 and
# 50 at 0. Category 9 ("b") is not found.
TINY = {
    "images": [{"id": 4, "width": 100, "height": 100}, {"id": 5, "width": 100, "height": 100}],
    "categories": [{"id": 9, "name": "b"}, {"id": 7, "name": "a"}],
    "annotations": [
        {"id": 0, "image_id": 4, "category_id": 7, "bbox": [0, 0, 100, 40], "iscrowd": 0, "area": 4000},
        {"id": 1, "image_id": 5, "category_id": 7, "bbox": [10, 10, 40, 40]},
        {"id": 2, "image_id": 5, "category_id": 9, "bbox": [60, 60, 20, 20]},
    ],
}
TINY_OUTPUTS = {
    4: ([[0, 0, 80, 40], [50, 50, 90, 90]], [0.5, 0.7], [0, 0]),
    5: ([[10, 10, 50, 50]], [0.9], [0]),
}
AP50_A = 100 * (51 + 50 * 2 / 3) / 101
AP_A = (7 * AP50_A + 3 * 100 * 51 / 101) / 10
TINY_AP = {"AP": AP_A / 2, "AP50": AP50_A / 2, "AP75": AP50_A / 2, "APl": np.nan, "AP-a": AP_A, "AP-b": 0}


def tiny_outputs():
    return {i: instances((100, 100), *output) for i, output in TINY_OUTPUTS.items()}


@pytest.mark.parametrize("info", [{}, {"info": {}, "licenses": []}])
def test_tiny_case_by_hand(register, info, caplog, capsys):
    """Annotations of id 0, without iscrowd or area, and files without info or licenses are like any other."""
    caplog.set_level("INFO")
    results = evaluate(register({**TINY, **info}), tiny_outputs())
    assert list(results["bbox"]) == [*METRICS["bbox"], "AP-a", "AP-b"]
    assert {k: results["bbox"][k] for k in TINY_AP} == pytest.approx(TINY_AP, nan_ok=True)
    assert "Average Precision" in caplog.text and not capsys.readouterr().out
    assert f"{AP_A / 2:.3f}" in caplog.text and "Per-category bbox AP" in caplog.text


def test_a_dataset_of_dicts_is_converted(tmp_path):
    """The tiny case without a JSON: its classes are the categories."""
    annotations = [(a["image_id"], a["bbox"], {7: 0, 9: 1}[a["category_id"]]) for a in TINY["annotations"]]
    dicts = [
        {
            "file_name": f"{image['id']}.png",
            "image_id": image["id"],
            "height": 100,
            "width": 100,
            "annotations": [
                {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": category}
                for image_id, box, category in annotations
                if image_id == image["id"]
            ],
        }
        for image in TINY["images"]
    ]
    DatasetCatalog.register("tiny_dicts", lambda: dicts)
    MetadataCatalog.get("tiny_dicts").set(thing_classes=["a", "b"])
    try:
        results = evaluate("tiny_dicts", tiny_outputs(), output_dir=str(tmp_path), allow_cached_coco=False)
    finally:
        DatasetCatalog.pop("tiny_dicts")
        MetadataCatalog.pop("tiny_dicts")
    assert results["bbox"]["AP-a"] == pytest.approx(AP_A) and results["bbox"]["AP-b"] == 0
    assert (tmp_path / "tiny_dicts_coco_format.json").is_file()


def test_missing_area_is_that_of_the_mask(register):
    """A 40 x 40 square as mask is of medium size, though its box is large."""
    square = [10, 10, 50, 10, 50, 50, 10, 50]
    data = {
        **TINY,
        "annotations": [{"id": 1, "image_id": 4, "category_id": 7, "bbox": [0, 0, 100, 100], "segmentation": [square]}],
    }
    results = evaluate(register(data), {4: instances((100, 100), [[0, 0, 100, 100]], [0.9], [0])})
    assert results["bbox"]["APm"] == pytest.approx(100) and np.isnan(results["bbox"]["APl"])


def test_categories_keep_their_names_in_any_order(register):
    name = register(TINY)
    metadata = MetadataCatalog.get(name)
    json_file = metadata.json_file
    MetadataCatalog.pop(name)
    MetadataCatalog.get(name).set(
        json_file=json_file, thing_classes=["b", "a"], thing_dataset_id_to_contiguous_id={9: 0, 7: 1}
    )
    outputs = {i: instances((100, 100), b, s, [1] * len(s)) for i, (b, s, _) in TINY_OUTPUTS.items()}
    results = evaluate(name, outputs)["bbox"]
    assert (results["AP-a"], results["AP-b"]) == pytest.approx((AP_A, 0))


def test_evaluating_twice_and_resetting(register):
    evaluator = COCOEvaluator(register(TINY))
    for image_id, predicted in tiny_outputs().items():
        evaluator.process([{"image_id": image_id}], [{"instances": predicted}])
    first, second = evaluator.evaluate(), evaluator.evaluate()
    assert first["bbox"]["AP-a"] == second["bbox"]["AP-a"] == pytest.approx(AP_A)
    evaluator.reset()
    assert evaluator.evaluate() == {}


@pytest.mark.parametrize("tasks", [None, ("bbox", "segm")])
def test_no_predictions_at_all(register, caplog, tasks):
    empty = {i: instances((100, 100), [], [], []) for i in TINY_OUTPUTS}
    results = evaluate(register(TINY), empty, tasks=tasks)
    assert list(results) == list(tasks or ["bbox"])
    assert all(list(scores) == METRICS[task] for task, scores in results.items())
    assert np.isnan([list(scores.values()) for scores in results.values()]).all()
    assert "No predictions from the model!" in caplog.text


def with_masks(predicted):
    height, width = predicted.image_size
    y, x = torch.arange(height)[:, None] + 0.5, torch.arange(width) + 0.5
    x0, y0, x1, y1 = predicted.pred_boxes.tensor[:, :, None, None].unbind(1)
    predicted.pred_masks = (x > x0) & (x < x1) & (y > y0) & (y < y1)
    return predicted


@pytest.mark.parametrize("mask", [None, [], [[]], [[1, 1, 9, 9]], "absent"], ids=str)
def test_an_object_without_a_mask_is_not_found(register, caplog, mask):
    """The boxes of the tiny case as masks give its numbers; without the one that is found exactly, they are lower."""
    annotations = []
    for annotation in TINY["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotations.append({**annotation, "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]]})
    whole = {i: with_masks(output) for i, output in tiny_outputs().items()}
    assert evaluate(register({**TINY, "annotations": annotations}), whole)["segm"]["AP-a"] == pytest.approx(AP_A)
    if mask == "absent":
        del annotations[1]["segmentation"]
    else:
        annotations[1]["segmentation"] = mask
    results = evaluate(register({**TINY, "annotations": annotations}), whole)
    assert results["bbox"]["AP-a"] == pytest.approx(AP_A)
    # By score: false (its object has no mask), false, found with IoU 0.8: precision 1/3 up to recall 0.5.
    assert results["segm"]["AP-a"] == pytest.approx(100 * 0.7 * 51 / 3 / 101)
    assert "annotations without a mask count as not found: 1" in caplog.text


def test_no_masks_at_all(register, caplog):
    results = evaluate(register(TINY), {i: with_masks(output) for i, output in tiny_outputs().items()})
    assert results["bbox"]["AP-a"] == pytest.approx(AP_A) and np.isnan(list(results["segm"].values())).all()
    assert "no masks to evaluate" in caplog.text


def test_without_annotations_the_results_are_written(register, tmp_path, caplog):
    caplog.set_level("INFO")
    data = {key: value for key, value in TINY.items() if key != "annotations"}
    assert evaluate(register(data), tiny_outputs(), output_dir=str(tmp_path)) == {}
    assert len(json.loads((tmp_path / "coco_instances_results.json").read_text())) == 3
    assert "Annotations are not available" in caplog.text
    assert np.isnan(evaluate(register({**data, "annotations": []}), tiny_outputs())["bbox"]["AP"])


KEYPOINTS = {
    **TINY,
    "annotations": [
        {
            "id": 1,
            "image_id": 4,
            "category_id": 7,
            "bbox": [0, 0, 100, 100],
            "area": 5000,
            "iscrowd": 0,
            "keypoints": [10, 20, 2, 30, 40, 1],
        },
        {"id": 2, "image_id": 5, "category_id": 9, "bbox": [60, 60, 20, 20], "area": 400, "iscrowd": 0},
    ],
}


def keypoint_output(distance):
    """Both keypoints of the annotation at a distance, half a pixel being between index and coordinate."""
    points = torch.tensor([[[10.5 + distance, 20.5, 0.9], [30.5, 40.5 + distance, 0.9]]])
    return {4: instances((100, 100), [[0, 0, 100, 100]], [0.9], [0], pred_keypoints=points)}


@pytest.mark.parametrize(
    "distance, ap",
    [  # OKS exp(-d^2 / (2 * area * (2 * 0.1)^2)) = exp(-d^2 / 400), over thresholds 0.5, 0.55 ... 0.95
        (0, 100),
        (4, 100),  # 0.961
        (10, 60),  # 0.779: 0.5 ... 0.75
        (20, 0),  # 0.368
    ],
)
def test_keypoints_by_hand(register, distance, ap):
    """Two keypoints on one category; the annotation of the other category has none and is left out."""
    results = evaluate(register(KEYPOINTS), keypoint_output(distance), kpt_oks_sigmas=[0.1, 0.1])
    assert results["keypoints"]["AP"] == pytest.approx(ap)
    assert results["keypoints"]["AP-a"] == pytest.approx(ap) and np.isnan(results["keypoints"]["AP-b"])


def test_disagreements_are_named(register):
    name = register(KEYPOINTS)
    with pytest.raises(ValueError, match="(?s)2 predicted.*NUM_KEYPOINTS.*17 sigmas.*KEYPOINT_OKS_SIGMAS"):
        evaluate(name, keypoint_output(0))
    with pytest.raises(ValueError, match="class 2, .* has 2 classes.*MODEL.ROI_HEADS.NUM_CLASSES to 2"):
        evaluate(name, {4: instances((100, 100), [[0, 0, 9, 9]] * 2, [0.9] * 2, [0, 2])})
    with pytest.raises(ValueError, match=r"images.*\[6\]"):
        evaluate(name, {6: instances((100, 100), [[0, 0, 9, 9]], [0.9], [0])})
    with pytest.raises(ValueError, match="'segm'.*no segmentation"):
        evaluate(name, tiny_outputs(), tasks=["segm"])
    with pytest.raises(ValueError, match="panoptic"):
        COCOEvaluator(name, tasks=["panoptic"])
    with pytest.raises(ValueError, match="'unknown_dataset'.*output_dir"):
        COCOEvaluator("unknown_dataset")


def test_predictions_of_all_processes_count_on_the_main_one(register, monkeypatch):
    first, second = tiny_outputs().items()
    evaluators = [COCOEvaluator(register(TINY)) for _ in range(2)]
    for evaluator, (image_id, predicted) in zip(evaluators, (first, second), strict=True):
        evaluator.process([{"image_id": image_id}], [{"instances": predicted}])
    gathered = [evaluator._predictions for evaluator in evaluators]
    monkeypatch.setattr(comm, "gather", lambda data, dst=0: gathered)
    assert evaluators[0].evaluate()["bbox"]["AP-a"] == pytest.approx(AP_A)
    monkeypatch.setattr(comm, "gather", lambda data, dst=0: [])
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    assert evaluators[1].evaluate() == {}


def test_instances_to_coco_json():
    masks = torch.zeros(1, 4, 5, dtype=torch.bool)
    masks[0, 1:3, 2] = True
    keypoints = torch.tensor([[[1.5, 2.5, 0.25]]])
    predicted = instances((4, 5), [[1, 2, 4, 4]], [0.5], [3], pred_masks=masks, pred_keypoints=keypoints)
    [result] = instances_to_coco_json(predicted, 17)
    counts = result.pop("segmentation")["counts"]
    assert isinstance(counts, str)
    assert (mask_util.decode({"size": [4, 5], "counts": counts}) == masks[0].numpy()).all()
    assert result == {
        "image_id": 17,
        "category_id": 3,
        "bbox": [1, 2, 3, 2],
        "score": 0.5,
        "keypoints": [1, 2, 0.25],
    }
    assert keypoints.tolist() == [[[1.5, 2.5, 0.25]]]
    assert instances_to_coco_json(predicted[:0], 17) == []


def test_masks_that_nobody_has_read_are_encoded_without_pasting():
    generator = torch.Generator().manual_seed(0)
    boxes = torch.tensor([[3.0, 4, 30, 20], [-5, 2.5, 12, 60.5], [10, 10, 11, 11]])
    raw = instances((50, 40), boxes, [0.9, 0.8, 0.7], [0, 1, 0])
    raw.pred_masks = torch.rand(3, 1, 14, 14, generator=generator)
    predicted = detector_postprocess(raw, 100, 60)
    results = instances_to_coco_json(predicted, 1)
    assert predicted.deferred("pred_masks") is not None
    pasted = predicted.pred_masks
    assert pasted.shape == (3, 100, 60) and pasted.dtype == torch.bool and pasted.any((1, 2)).all()
    for result, mask in zip(results, pasted, strict=True):
        assert result["segmentation"]["size"] == [100, 60]
        assert (mask_util.decode(result["segmentation"]) == mask.numpy()).all()
    assert instances_to_coco_json(predicted, 1) == results


def test_results_are_ordered_as_evaluated(register):
    evaluator = COCOEvaluator(register(TINY))
    box = torch.tensor([[0.0, 0, 100, 40]])
    proposals = Instances((100, 100), proposal_boxes=Boxes(box), objectness_logits=torch.ones(1))
    both = {"instances": tiny_outputs()[4], "proposals": proposals}
    evaluator.process([{"image_id": 4}], [both])
    results = evaluator.evaluate()
    assert isinstance(results, OrderedDict) and list(results) == ["box_proposals", "bbox"]
    assert results["box_proposals"]["AR@100"] == pytest.approx(100)
