"""Datasets by name and loaders: what is filtered, what a batch holds, and on what the stream depends."""

import itertools
import logging
import os
import pickle
import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset

from projects_maskrcnn.embedded.config import get_cfg
from projects_maskrcnn.embedded.data import (
    DatasetCatalog,
    MetadataCatalog,
    build_batch_data_loader,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
    load_proposals_into_dataset,
    print_instances_class_histogram,
)
from projects_maskrcnn.embedded.data.samplers import (
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)
from projects_maskrcnn.embedded.structures import BoxMode
from projects_maskrcnn.embedded.utils import comm


def take(iterable, n):
    return list(itertools.islice(iterable, n))


def record(i, categories=(0,), crowds=(), visible=0, size=(10, 20)):
    annotations = [{"category_id": c, "iscrowd": 0} for c in categories]
    annotations += [{"category_id": c, "iscrowd": 1} for c in crowds]
    for annotation in annotations[:1]:
        annotation["keypoints"] = [1, 1, 2] * visible + [0, 0, 0]
    return {
        "file_name": f"{i}.png",
        "image_id": i,
        "height": size[0],
        "width": size[1],
        "annotations": annotations,
    }


@pytest.fixture
def register():
    names = []

    def register(dicts, **metadata):
        name = f"build_test_{len(names)}"
        names.append(name)
        DatasetCatalog.register(name, lambda: dicts)
        MetadataCatalog.get(name).set(**metadata)
        return name

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


# Datasets by name


def ids(dicts):
    return [d["image_id"] for d in dicts]


def test_datasets_are_joined_and_filtered(register):
    first = register([record(0), record(1, ()), record(2, (), crowds=(0,)), record(3, visible=2)])
    second = register([record(4, visible=1), record(5, (1,))])
    assert ids(get_detection_dataset_dicts(first)) == [0, 3]
    assert ids(get_detection_dataset_dicts([first, second])) == [0, 3, 4, 5]
    assert ids(get_detection_dataset_dicts(first, filter_empty=False)) == [0, 1, 2, 3]
    assert ids(get_detection_dataset_dicts([first, second], min_keypoints=2)) == [3]
    assert ids(get_detection_dataset_dicts((second,), min_keypoints=1)) == [4]


def test_datasets_without_annotations_are_not_filtered(register):
    name = register([{"file_name": "a", "image_id": 1}])
    assert ids(get_detection_dataset_dicts(name, min_keypoints=3)) == [1]


@pytest.mark.parametrize(
    "dicts, message",
    [([], "'build_test_0' has no images"), ([record(1, ())], "build_test_0.*FILTER_EMPTY_ANNOTATIONS")],
)
def test_datasets_with_nothing_in_them(register, dicts, message):
    with pytest.raises(ValueError, match=message):
        get_detection_dataset_dicts(register(dicts))


def test_no_dataset_and_unknown_dataset():
    with pytest.raises(ValueError, match="DATASETS.TRAIN"):
        get_detection_dataset_dicts(())
    with pytest.raises(KeyError, match="coco_2017_trian.*coco_2017_train"):
        get_detection_dataset_dicts(["coco_2017_trian"])


def test_datasets_of_different_classes(register):
    first, second = register([record(0)], thing_classes=["a"]), register([record(1)], thing_classes=["b"])
    with pytest.raises(ValueError, match="'build_test_0' and 'build_test_1'.*'thing_classes'"):
        get_detection_dataset_dicts([first, second])
    assert len(get_detection_dataset_dicts([first, second], check_consistency=False)) == 2


def test_registered_torch_dataset_is_given_as_it_is(register):
    class Own(Dataset):
        def __len__(self):
            return 3

    own = Own()
    name = register(own)
    assert get_detection_dataset_dicts(name) is own
    assert len(get_detection_dataset_dicts([name, name])) == 6


def test_histogram(caplog):
    dicts = [record(0, (0, 2, 2)), record(1, (2,), crowds=(1,)), record(2, ())]
    with caplog.at_level(logging.INFO):
        print_instances_class_histogram(dicts, ["a", "b", "a rather long name", "d"])
    cells = [cell.strip() for line in caplog.text.splitlines()[3:] for cell in line.strip("| ").split("|")]
    table = dict(zip(cells[::2], cells[1::2], strict=True))
    assert {k: v for k, v in table.items() if k} == {
        "a": "1",
        "b": "0",
        "a rather lo..": "3",
        "d": "0",
        "total": "4",
    }
    with pytest.raises(ValueError, match="1.png has category ids .*0, 4.*4 classes"):
        print_instances_class_histogram([record(1, (0, 4))], list("abcd"))


def test_proposals(register, tmp_path):
    boxes = [np.array([[0, 0, 2, 2], [1, 1, 5, 5]]), np.array([[3.0, 3, 4, 4]])]
    content = {"ids": [7, "6"], "boxes": boxes, "objectness_logits": [np.array([0.1, 0.9]), np.array([0.5])]}
    file = tmp_path / "proposals.pkl"
    file.write_bytes(pickle.dumps(content))
    name = register([record(6), record(7)])
    first, second = get_detection_dataset_dicts(name, proposal_files=[str(file)])
    assert first["proposal_boxes"].tolist() == [[3, 3, 4, 4]] and first["proposal_bbox_mode"] == BoxMode.XYXY_ABS
    assert second["proposal_boxes"].tolist() == [[1, 1, 5, 5], [0, 0, 2, 2]]
    assert second["proposal_objectness_logits"].tolist() == [0.9, 0.1]
    file.write_bytes(pickle.dumps(content | {"bbox_mode": BoxMode.XYWH_ABS.value}))
    assert load_proposals_into_dataset([record(7)], str(file))[0]["proposal_bbox_mode"] == BoxMode.XYWH_ABS
    with pytest.raises(KeyError, match="proposals.pkl has no proposals for image_id 8"):
        load_proposals_into_dataset([record(8)], str(file))
    with pytest.raises(ValueError, match="1 files for 2 datasets"):
        get_detection_dataset_dicts([name, name], proposal_files=[str(file)])


class Command:
    """Unpickled as usual, it would make a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_proposals_run_no_code(tmp_path):
    file = tmp_path / "proposals.pkl"
    file.write_bytes(pickle.dumps({"ids": [Command(str(tmp_path / "made"))]}))
    with pytest.raises(ValueError, match="proposals.pkl.*mkdir"):
        load_proposals_into_dataset([record(7)], str(file))
    assert not (tmp_path / "made").exists()


# Loaders

SIZES = [(10, 20), (20, 10), (10, 10), (9, 20), (20, 9), (20, 11), (5, 6)]
RECORDS = [record(i, size=SIZES[i % 7]) for i in range(15)]


class Noisy:
    """Maps a record to its id and to numbers of all three generators."""

    def __call__(self, record):
        noise = random.random(), float(np.random.rand()), float(torch.rand(()))
        return {"image_id": record["image_id"], "noise": noise}


def train_loader(seed=5, start=0, **arguments):
    defaults = {"mapper": Noisy(), "sampler": TrainingSampler(15, seed=seed), "total_batch_size": 3}
    loader = build_detection_train_loader(RECORDS, **defaults | arguments)
    loader.batch_sampler.start_batch = start
    return loader


def stream(n=12, **arguments):
    return take(train_loader(**arguments), n)


@pytest.mark.parametrize("grouping", [True, False])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_stream_is_a_function_of_seed_and_position(grouping, num_workers):
    whole = stream(aspect_ratio_grouping=grouping)
    random.random(), np.random.rand(), torch.rand(3)
    assert stream(aspect_ratio_grouping=grouping, num_workers=num_workers) == whole
    assert stream(7, start=5, aspect_ratio_grouping=grouping, num_workers=num_workers) == whole[5:]
    assert stream(seed=6, aspect_ratio_grouping=grouping) != whole
    noises = [sample["noise"] for batch in whole for sample in batch]
    assert len(set(noises)) == len(noises)  # also of images that come again


def test_loading_here_leaves_the_global_generators_alone():
    def numbers():
        return random.random(), np.random.rand(), torch.rand(()).item()

    iterator = iter(train_loader())
    next(iterator)
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    expected = numbers()
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    next(iterator)
    assert numbers() == expected


def test_batches_are_those_of_two_buckets():
    expected, buckets = [], ([], [])
    for index in take(TrainingSampler(15, seed=5), 200):
        h, w = SIZES[index % 7]
        bucket = buckets[w > h]
        bucket.append(index)
        if len(bucket) == 3:
            expected.append(bucket[:])
            bucket.clear()
    assert [[s["image_id"] for s in batch] for batch in stream(40)] == expected[:40]
    ungrouped = [s["image_id"] for batch in stream(40, aspect_ratio_grouping=False) for s in batch]
    assert ungrouped == take(TrainingSampler(15, seed=5), 120)


def test_ranks_share_batches(monkeypatch):
    whole = stream(12, aspect_ratio_grouping=False, total_batch_size=6)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    parts = []
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        parts.append(stream(12, aspect_ratio_grouping=False, total_batch_size=6))
    for batch, first, second in zip(whole, *parts, strict=True):
        assert [*itertools.chain.from_iterable(zip(first, second, strict=True))] == batch
    with pytest.raises(ValueError, match="SOLVER.IMS_PER_BATCH.* 5 is not a multiple.* 2"):
        train_loader(total_batch_size=5)


def test_train_loader_defaults(monkeypatch):
    monkeypatch.setattr(comm, "shared_random_seed", lambda: 5)
    assert take(build_detection_train_loader(RECORDS, mapper=Noisy(), total_batch_size=3), 12) == stream()
    batch = next(iter(train_loader(mapper=None)))
    assert all(sample in RECORDS for sample in batch)
    assert next(iter(train_loader(collate_fn=len))) == 3


def test_map_style_datasets_and_own_samplers():
    class Squares(Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, i):
            return {"image_id": i * i, "height": 1, "width": i}

    class Backwards(torch.utils.data.Sampler):
        def __iter__(self):
            return iter([3, 2, 1, 0])

    arguments = {"mapper": lambda d: d["image_id"], "sampler": Backwards(), "total_batch_size": 2}
    loader = build_detection_train_loader(Squares(), **arguments)
    assert list(loader) == [[9, 4], [1, 0]]
    loader = build_batch_data_loader(Squares(), Backwards(), 3, drop_last=False)
    assert [[d["image_id"] for d in batch] for batch in loader] == [[9, 4, 1], [0]]
    loader = build_batch_data_loader(Squares(), Backwards(), 2, aspect_ratio_grouping=True)
    assert [[d["image_id"] for d in batch] for batch in loader] == [[9, 4], [1, 0]]


def test_loaders_refuse_iterable_datasets():
    class Endless(IterableDataset):
        def __iter__(self):
            return itertools.count()

    for build in (build_detection_train_loader, build_detection_test_loader):
        with pytest.raises(TypeError, match="Endless is an IterableDataset"):
            build(
                Endless(),
                mapper=None,
                **({"total_batch_size": 1} if build is build_detection_train_loader else {}),
            )


def test_grouping_needs_sizes():
    with pytest.raises(ValueError, match="'width' and 'height'.*ASPECT_RATIO_GROUPING"):
        build_detection_train_loader([{"file_name": "a"}], mapper=None, total_batch_size=1)


def test_error_of_the_mapper_names_the_file():
    def fail(record):
        raise IndexError("out of range")

    with pytest.raises(RuntimeError, match=r"Cannot map \d+.png: IndexError: out of range"):
        next(iter(train_loader(mapper=fail)))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_unusable_images_are_replaced_the_same_way(num_workers):
    class Picky(Noisy):
        def __call__(self, record):
            return super().__call__(record) if record["image_id"] % 3 else None

    batches = stream(mapper=Picky(), num_workers=num_workers)
    assert batches == stream(mapper=Picky())
    assert all(sample["image_id"] % 3 for batch in batches for sample in batch)


@pytest.mark.parametrize("batch_size, num_workers", [(1, 0), (4, 0), (4, 2)])
def test_test_loader_gives_each_image_once(batch_size, num_workers):
    loader = build_detection_test_loader(
        RECORDS, mapper=lambda d: d["image_id"], batch_size=batch_size, num_workers=num_workers
    )
    batches = list(loader)
    assert [i for batch in batches for i in batch] == list(range(15))
    assert len(batches) == len(loader) == -(-15 // batch_size)


# By config


@pytest.fixture
def cfg(register, tmp_path):
    records = [record(i, (i % 2,), size=SIZES[i % 7]) for i in range(6)]
    for r in records:
        r["file_name"] = str(tmp_path / r["file_name"])
        Image.new("RGB", (r["width"], r["height"]), (r["image_id"], 0, 0)).save(r["file_name"])
        r["annotations"] = [{"category_id": 0, "iscrowd": 0, "bbox": [1, 1, 3, 3], "bbox_mode": BoxMode.XYWH_ABS}]
    records[5]["annotations"] = []
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (register(records, thing_classes=["a"]),)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (16,), 16
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.SEED = 3
    return cfg


def test_loaders_from_config(cfg):
    batches = take(build_detection_train_loader(cfg), 10)
    assert {len(batch) for batch in batches} == {2}
    samples = [sample for batch in batches for sample in batch]
    assert {s["image_id"] for s in samples} == set(range(5))  # number 5 has no objects
    assert all(min(s["image"].shape[1:]) == 16 and len(s["instances"]) == 1 for s in samples)
    assert all((a["width"] > a["height"]) == (b["width"] > b["height"]) for a, b in batches)
    again = [s for batch in take(build_detection_train_loader(cfg), 10) for s in batch]
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(samples, again, strict=True))
    tested = [s for batch in build_detection_test_loader(cfg, cfg.DATASETS.TEST[0]) for s in batch]
    assert [s["image_id"] for s in tested] == list(range(6)) and "instances" not in tested[0]


def test_loaders_from_config_with_overrides(cfg):
    own = {"mapper": lambda d: d["image_id"]}
    assert sorted(i for [i] in build_detection_test_loader(cfg, list(cfg.DATASETS.TEST), **own)) == list(range(6))
    sampler = TrainingSampler(3, shuffle=False)
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    assert take(build_detection_train_loader(cfg, sampler=sampler, **own), 3) == [[0, 1], [2, 0], [1, 2]]
    batches = build_detection_train_loader(cfg, dataset=RECORDS[7:10], sampler=sampler, **own)
    assert take(batches, 2) == [[7, 8], [9, 7]]


def test_images_with_few_keypoints_are_left_out_where_keypoints_are_trained(cfg):
    records = DatasetCatalog.get(cfg.DATASETS.TRAIN[0])
    for r in records[:5]:
        r["annotations"][0]["keypoints"] = [1, 1, 2] * r["image_id"] + [0, 0, 0]
    cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE = 3
    own = {"mapper": lambda d: d["image_id"]}

    def trained_on():
        return {i for batch in take(build_detection_train_loader(cfg, **own), 20) for i in batch}

    assert trained_on() == {0, 1, 2, 3, 4}
    cfg.MODEL.KEYPOINT_ON = True
    assert trained_on() == {3, 4}


def test_repeat_factors_without_the_root(cfg):
    cfg.DATALOADER.SAMPLER_TRAIN, cfg.DATALOADER.REPEAT_THRESHOLD = "RepeatFactorTrainingSampler", 2.0
    cfg.DATALOADER.REPEAT_SQRT = False  # every image has the one category, which is wanted twice as often
    stream = iter(build_detection_train_loader(cfg, mapper=lambda d: d["image_id"]).batch_sampler.sampler)
    assert sorted(take(stream, 10)) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_the_random_subset_is_the_seeds(cfg):
    cfg.DATALOADER.SAMPLER_TRAIN, cfg.DATALOADER.RANDOM_SUBSET_RATIO = "RandomSubsetTrainingSampler", 0.6
    chosen = torch.randperm(5, generator=torch.Generator().manual_seed(3))[:3]  # of the images with objects
    stream = iter(build_detection_train_loader(cfg, mapper=lambda d: d["image_id"]).batch_sampler.sampler)
    assert sorted(take(stream, 3)) == sorted(chosen.tolist())


def test_each_test_set_has_proposals_of_its_own(cfg, register, tmp_path):
    files = []
    for number, ids in enumerate((range(6), (8, 9))):
        boxes = [np.array([[i, 0.0, i + 5, 5]]) for i in ids]
        files.append(tmp_path / f"{number}.pkl")
        content = {"ids": list(ids), "boxes": boxes, "objectness_logits": [np.ones(1)] * len(boxes)}
        files[-1].write_bytes(pickle.dumps(content))
    cfg.DATASETS.TEST = (*cfg.DATASETS.TEST, register([record(8), record(9)], thing_classes=["a"]))
    cfg.DATASETS.PROPOSAL_FILES_TEST = tuple(map(str, files))
    cfg.MODEL.LOAD_PROPOSALS = True
    for name, ids in zip(cfg.DATASETS.TEST, (range(6), (8, 9)), strict=True):
        loader = build_detection_test_loader(cfg, name, mapper=lambda d: d["proposal_boxes"][0, 0])
        assert [corner for [corner] in loader] == list(ids)


def test_negative_seed_is_a_random_one(cfg, monkeypatch):
    cfg.SEED = -1
    monkeypatch.setattr(comm, "shared_random_seed", lambda: 77)
    assert build_detection_train_loader(cfg).batch_sampler.sampler.seed == 77


def test_sampler_from_config(cfg):
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    for name, kind in [
        ("TrainingSampler", TrainingSampler),
        ("RepeatFactorTrainingSampler", RepeatFactorTrainingSampler),
        ("RandomSubsetTrainingSampler", RandomSubsetTrainingSampler),
    ]:
        cfg.DATALOADER.SAMPLER_TRAIN = name
        if name == "RandomSubsetTrainingSampler":
            cfg.DATALOADER.RANDOM_SUBSET_RATIO = 0.5
        sampler = build_detection_train_loader(cfg).batch_sampler.sampler
        assert type(sampler) is kind and sampler.seed == 3 and sampler.size == 6
    assert len(set(take(sampler, 30))) == 3
    cfg.DATALOADER.SAMPLER_TRAIN = "Shuffle"
    with pytest.raises(ValueError, match="SAMPLER_TRAIN: 'Shuffle'.*TrainingSampler"):
        build_detection_train_loader(cfg)
