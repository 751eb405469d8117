"""Data, schedules, evaluation, events and configs: embedded and Detectron2 side by side, as in `test_behaviour.py`."""

import copy
import itertools
import json
import logging

import numpy as np
import pycocotools.mask as mask_api
import pytest
import torch

pytest.importorskip("detectron2", reason="Detectron2 is not installed")
pytestmark = pytest.mark.usefixtures("after_release_06")

CASES = {}
HEIGHT, WIDTH = 60, 90


def case(function):
    CASES[function.__name__] = function
    return function


# ---- transforms


def augmentations(T):
    """Name and maker of each augmentation that both frameworks have."""
    return {
        "Resize": lambda: T.Resize((37, 120)),
        "ResizeShortestEdge": lambda: T.ResizeShortestEdge([40, 80, 100], 110, "choice"),
        "ResizeShortestEdge range": lambda: T.ResizeShortestEdge((40, 100), 1000, "range"),
        "ResizeScale": lambda: T.ResizeScale(0.5, 1.8, 70, 80),
        "RandomResize": lambda: T.RandomResize([(30, 40), (80, 50)]),
        "RandomFlip": lambda: T.RandomFlip(prob=0.5),
        "RandomFlip vertical": lambda: T.RandomFlip(prob=0.9, horizontal=False, vertical=True),
        "RandomCrop": lambda: T.RandomCrop("relative_range", (0.3, 0.4)),
        "RandomCrop absolute": lambda: T.RandomCrop("absolute_range", (20, 50)),
        "FixedSizeCrop": lambda: T.FixedSizeCrop((80, 70), pad_value=17),
        "RandomExtent": lambda: T.RandomExtent((0.6, 1.4), (0.2, 0.3)),
        "RandomRotation": lambda: T.RandomRotation([-50, 50]),
        "RandomRotation in place": lambda: T.RandomRotation([30, 90], False, [[0.2, 0.3], [0.6, 0.7]]),
        "RandomContrast": lambda: T.RandomContrast(0.5, 1.5),
        "RandomBrightness": lambda: T.RandomBrightness(0.5, 1.5),
        "RandomSaturation": lambda: T.RandomSaturation(0.5, 1.5),
        "RandomLighting": lambda: T.RandomLighting(20.0),
        "RandomApply": lambda: T.RandomApply(T.RandomFlip(prob=1.0), prob=0.5),
        "MinIoURandomCrop": lambda: T.MinIoURandomCrop(),
        "AugmentationList": lambda: T.AugmentationList([T.RandomFlip(), T.RandomCrop("relative", (0.8, 0.7))]),
    }


@case
def transforms(f):
    T, found = f("data.transforms"), {}
    for name, make in augmentations(T).items():
        image = np.random.randint(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        boxes = np.sort(np.random.rand(4, 2, 2) * (WIDTH, HEIGHT), axis=1).reshape(4, 4)
        given = T.AugInput(image.copy(), boxes=boxes.copy(), sem_seg=(image[:, :, 0] > 99).astype(np.uint8))
        transform = make()(given)
        points = np.random.rand(7, 2) * (WIDTH, HEIGHT)
        moved = [a.astype(np.float32) for a in (given.boxes, transform.apply_coords(points.copy()))]
        # Detectron2's extent interpolates labels
        found[name] = [given.image, *moved, given.sem_seg if name != "RandomExtent" else None]
    return found


@case
def annotations_of_a_mapped_image(f):
    T, utils = f("data.transforms"), f("data.detection_utils")
    modes = f("structures").BoxMode
    f("data").MetadataCatalog.get("five_points").set(
        keypoint_names=list("abcde"), keypoint_flip_map=[("a", "c"), ("d", "e")]
    )
    flips = utils.create_keypoint_hflip_indices(["five_points"])
    mask = np.asfortranarray(np.random.rand(HEIGHT, WIDTH) > 0.5)
    annotations = []
    for _ in range(5):
        x, y = np.random.rand(2) * (WIDTH - 30, HEIGHT - 30)
        annotations.append(
            {
                "bbox": [x, y, *np.random.rand(2) * 30],
                "bbox_mode": modes.XYWH_ABS,
                "category_id": int(np.random.randint(4)),
                "segmentation": [(np.random.rand(8) * 30 + np.tile([x, y], 4)).tolist()],
                "keypoints": (np.random.rand(5, 3) * (WIDTH, HEIGHT, 3)).astype(int).flatten().tolist(),
                "iscrowd": 0,
            }
        )
    image, found = np.zeros((HEIGHT, WIDTH, 3), np.uint8), [flips]
    for transform in (T.HFlipTransform(WIDTH), T.VFlipTransform(HEIGHT), T.ResizeTransform(HEIGHT, WIDTH, 90, 70)):
        transforms = T.TransformList([transform])
        size = transform.apply_image(image).shape[:2]
        for mask_format in ("polygon", "bitmask"):
            made = [
                utils.transform_instance_annotations(copy.deepcopy(a), transforms, size, keypoint_hflip_indices=flips)
                for a in annotations
            ]
            instances = utils.annotations_to_instances(made, size, mask_format)
            found += [flips, instances, utils.filter_empty_instances(instances, box_threshold=15)]
        rle = {**annotations[0], "segmentation": mask_api.encode(mask)}
        made = utils.transform_instance_annotations(rle, transforms, size, keypoint_hflip_indices=flips)
        found.append(utils.annotations_to_instances([made], size, "bitmask"))
    return found


@case
def mapped_samples(f, folder=None):
    import cv2

    data, cfg = f("data"), f("config").get_cfg()
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (50, 70), 100, 80
    cfg.INPUT.CROP.ENABLED = True
    path = str(folder / "image.png")
    cv2.imwrite(path, np.random.randint(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))
    record = {"file_name": path, "image_id": 3, "height": HEIGHT, "width": WIDTH}
    # Detectron2 truncates a box of whole numbers wherever a transform takes it
    box = {"bbox": [10.5, 10, 60, 45], "bbox_mode": f("structures").BoxMode.XYXY_ABS, "category_id": 2}
    record["annotations"] = [{**box, "segmentation": [[10, 10, 60, 10, 60, 45, 20.5, 40]], "iscrowd": 0}]
    samples = [data.DatasetMapper(cfg, train)(copy.deepcopy(record)) for train in (True, True, False)]
    return [{key: value for key, value in sample.items() if key != "annotations"} for sample in samples]


# ---- samplers and schedules


@case
def samplers(f):
    s = f("data.samplers")
    dicts = [{"annotations": [{"category_id": c} for c in np.random.randint(0, 1 + i % 5, 3)]} for i in range(20)]
    factors = s.RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(dicts, 0.5)
    made = {
        "training": s.TrainingSampler(13, seed=5),
        "in order": s.TrainingSampler(7, shuffle=False, seed=5),
        "repeated": s.RepeatFactorTrainingSampler(factors, seed=5),
        "subset": s.RandomSubsetTrainingSampler(30, 0.4, seed_shuffle=3, seed_subset=4),
    }
    streams = {name: list(itertools.islice(sampler, 100)) for name, sampler in made.items()}
    return {**streams, "factors": factors, "inference": list(s.InferenceSampler(9))}


SCHEDULES = [
    {"LR_SCHEDULER_NAME": "WarmupMultiStepLR", "STEPS": (30, 45), "WARMUP_ITERS": 10},
    {"LR_SCHEDULER_NAME": "WarmupMultiStepLR", "STEPS": (20,), "WARMUP_METHOD": "constant", "GAMMA": 0.3},
    {"LR_SCHEDULER_NAME": "WarmupMultiStepLR", "STEPS": (5, 30), "WARMUP_ITERS": 20, "RESCALE_INTERVAL": True},
    {"LR_SCHEDULER_NAME": "WarmupMultiStepLR", "STEPS": (), "WARMUP_ITERS": 0},
    {"LR_SCHEDULER_NAME": "WarmupCosineLR", "WARMUP_ITERS": 10},
    {"LR_SCHEDULER_NAME": "WarmupCosineLR", "BASE_LR_END": 0.1, "WARMUP_ITERS": 10, "RESCALE_INTERVAL": True},
    {"LR_SCHEDULER_NAME": "WarmupStepWithFixedGammaLR", "NUM_DECAYS": 3, "WARMUP_ITERS": 10},
]


@case
def schedules(f):
    found = []
    for values in SCHEDULES:
        cfg = f("config").get_cfg()
        cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR, cfg.SOLVER.WARMUP_ITERS = 60, 0.5, 7
        for key, value in values.items():
            cfg.SOLVER[key] = value
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
        scheduler, rates = f("solver").build_lr_scheduler(cfg, optimizer), []
        for _ in range(59):  # Detectron2's fixed gamma fails at the end of the last
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        found.append(rates)
    return found


@case
def optimizers(f):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 2))
    found = []
    for values in (
        {},
        {"WEIGHT_DECAY_NORM": 0.1, "WEIGHT_DECAY_BIAS": 0.2, "BIAS_LR_FACTOR": 2.0, "NESTEROV": True},
        {"CLIP_GRADIENTS.ENABLED": True, "CLIP_GRADIENTS.CLIP_VALUE": 0.01},
        {"CLIP_GRADIENTS.ENABLED": True, "CLIP_GRADIENTS.CLIP_TYPE": "norm", "CLIP_GRADIENTS.CLIP_VALUE": 0.01},
    ):
        cfg, trained = f("config").get_cfg(), copy.deepcopy(model)
        cfg.SOLVER.BASE_LR = 0.1
        cfg.merge_from_list([item for key, value in values.items() for item in (f"SOLVER.{key}", value)])
        optimizer = f("solver").build_optimizer(cfg, trained)
        for _ in range(3):
            for p in trained.parameters():
                p.grad = p.detach().clone() + 0.5
            optimizer.step()
        found += [[p.detach().clone() for p in trained.parameters()], optimizer.defaults["nesterov"]]
    return found


# ---- evaluation


@case
def coco_evaluation(f, folder=None):
    """Results on random detections near random truth, of three classes with gaps in their ids."""
    s = f("structures")
    images = [{"id": 10 + i, "file_name": f"{i}.png", "height": 100, "width": 120} for i in range(6)]
    annotations = []
    for number, image in enumerate(np.repeat(images, 4)):
        x, y, w, h = (np.random.rand(4) * (70, 50, 45, 45) + (0, 0, 5, 5)).tolist()
        corners = [x, y, x + w, y, x + w, y + h, x, y + h]
        points = np.concatenate([np.random.rand(17, 2) * (w, h) + (x, y), np.random.randint(0, 3, (17, 1))], 1)
        annotations.append(
            {
                "id": number + 1,
                "image_id": image["id"],
                "category_id": int(np.random.choice([2, 5, 9])),
                "bbox": [x, y, w, h],
                "area": w * h,
                "iscrowd": int(np.random.rand() < 0.1),
                "segmentation": [corners],
                "keypoints": points.flatten().tolist(),
                "num_keypoints": int((points[:, 2] > 0).sum()),
            }
        )
    categories = [{"id": i, "name": n} for i, n in ((2, "cat"), (5, "dog"), (9, "owl"))]
    content = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
    path = folder / f"{f.package}.json"
    path.write_text(json.dumps(content))
    name = f"random_{path}"
    data = f("data")
    data.datasets.register_coco_instances(name, {}, str(path), str(folder))
    dicts = data.DatasetCatalog.get(name)
    outputs = []
    for record in dicts:
        truth = record["annotations"] * 3
        boxes = np.array([a["bbox"] for a in truth]).reshape(-1, 4) + np.random.randn(len(truth), 4)
        boxes[:, 2:] = boxes[:, :2] + boxes[:, 2:].clip(2)
        masks = np.zeros((len(truth), 100, 120), bool)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.clip(0).astype(int), strict=True):
            mask[y0:y1, x0:x1] = True
        i = s.Instances((100, 120), pred_boxes=s.Boxes(torch.tensor(boxes)), pred_masks=torch.tensor(masks))
        i.scores = torch.rand(len(truth))
        i.pred_classes = torch.tensor([a["category_id"] for a in truth])
        keypoints = np.array([a["keypoints"] for a in truth]).reshape(-1, 17, 3)
        i.pred_keypoints = torch.tensor(keypoints + np.random.randn(*keypoints.shape) * 2)
        outputs.append({"instances": i})
    found = []
    for tasks, options, ids in (
        (None, {}, None),
        (("bbox", "segm"), {"max_dets_per_image": 5}, None),
        (("keypoints",), {"kpt_oks_sigmas": [0.1] * 17}, [10, 12]),
    ):
        evaluator = f("evaluation").COCOEvaluator(name, tasks, False, use_fast_impl=False, **options)
        evaluator.reset()
        for record, output in zip(dicts, outputs, strict=True):
            evaluator.process([record], [copy.deepcopy(output)])  # Detectron2 moves its keypoints
        found.append(evaluator.evaluate(ids))
    return [dicts, found]


# ---- events and configs


@case
def events(f):
    with f("utils.events").EventStorage(5) as storage:
        found = []
        for _ in range(45):
            storage.put_scalar("loss", np.random.randn())
            storage.put_scalars(smoothing_hint=False, lr=np.random.rand(), step=storage.iter)
            with storage.name_scope("inner"):
                storage.put_scalar("loss", np.random.randn())
            storage.step()
            found.append([storage.latest(), storage.latest_with_smoothing_hint(20)])
        history = storage.history("loss")
        found += [history.median(10), history.avg(7), history.global_avg(), history.latest(), history.values()]
        return [found, storage.iter, storage.smoothing_hints(), sorted(storage.histories())]


@case
def configs(f, folder=None):
    folder = folder / f.package
    folder.mkdir(exist_ok=True)
    (folder / "base.yaml").write_text("MODEL:\n  MASK_ON: True\n  PIXEL_STD: [1.0, 2, 3]\nSOLVER:\n  STEPS: (3, 4)\n")
    (folder / "leaf.yaml").write_text(
        "_BASE_: base.yaml\nMODEL: {DEVICE: cpu}\nSOLVER:\n  BASE_LR: 1.0\n  MAX_ITER: 9\n"
    )
    cfg = f("config").get_cfg()
    cfg.merge_from_file(str(folder / "leaf.yaml"))
    cfg.merge_from_list(["SOLVER.BASE_LR", "2e-3", "DATASETS.TRAIN", "('a', 'b')", "SOLVER.STEPS", "[1,2]"])
    cfg.merge_from_list(["MODEL.WEIGHTS", "x.pth", "TEST.EXPECTED_RESULTS", "[['bbox', 'AP', 1.0, 0.5]]"])
    cfg.NEW = f("config").CfgNode({"A": 1, "B": [1.5, "x"]})
    other = cfg.clone()
    other.SOLVER.BASE_LR = 7.0
    cfg.freeze()
    errors = []
    for change in (
        lambda: setattr(cfg, "SEED", 1),
        lambda: other.merge_from_list(["SOLVER.BASE", 1]),
        lambda: other.merge_from_list(["SOLVER.BASE_LR", "fast"]),
        lambda: other.MISSING,
    ):
        with pytest.raises(Exception) as error:  # noqa: B017, PT011
            change()
        errors.append(isinstance(error.value, AttributeError))
    dumped = f("config").CfgNode.load_cfg(cfg.dump())
    sections = [cfg.SOLVER, other.SOLVER, cfg.DATASETS, cfg.TEST, cfg.NEW, dumped.SOLVER, dumped.NEW]
    return [*({k: v for k, v in s.items() if k != "FLOAT32_PRECISION"} for s in sections), cfg.MODEL.PIXEL_STD, errors]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", CASES)
def test_same(name, seed, assert_both_do_the_same, tmp_path):
    logging.getLogger("detectron2").setLevel(logging.ERROR)
    function = CASES[name]
    needs_folder = "folder" in function.__code__.co_varnames[: function.__code__.co_argcount]
    assert_both_do_the_same(lambda f: function(f, tmp_path) if needs_folder else function(f), seed)
