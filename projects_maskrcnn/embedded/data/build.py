"""From the names of datasets to loaders of batches."""

import itertools
import logging
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from tabulate import tabulate
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from ...weights import unpickler
from ..config import CfgNode, configurable
from ..structures import BoxMode
from ..utils import comm
from ..utils.file_io import PathManager
from .catalog import DatasetCatalog, MetadataCatalog
from .common import DatasetFromList, MapDataset, SeededDataset
from .dataset_mapper import DatasetMapper
from .detection_utils import check_metadata_consistency
from .samplers import (
    GroupedBatchSampler,
    InferenceSampler,
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)

logger = logging.getLogger(__name__)


def filter_images_with_only_crowd_annotations(dataset_dicts: list[dict]) -> list[dict]:
    """The images with at least one object that is no crowd."""
    kept = [d for d in dataset_dicts if any(not anno.get("iscrowd", 0) for anno in d["annotations"])]
    logger.info("Left out %d images without objects; %d remain.", len(dataset_dicts) - len(kept), len(kept))
    return kept


def filter_images_with_few_keypoints(dataset_dicts: list[dict], min_keypoints_per_image: int) -> list[dict]:
    """The images with at least so many labelled keypoints, over all their objects."""

    def labelled(record: dict) -> int:
        return sum(v > 0 for anno in record["annotations"] for v in anno.get("keypoints", ())[2::3])

    kept = [record for record in dataset_dicts if labelled(record) >= min_keypoints_per_image]
    logger.info(
        "Left out %d images with fewer than %d keypoints; %d remain.",
        len(dataset_dicts) - len(kept),
        min_keypoints_per_image,
        len(kept),
    )
    return kept


def load_proposals_into_dataset(dataset_dicts: list[dict], proposal_file: str) -> list[dict]:
    """Add precomputed proposals, by decreasing score, to dataset dicts, in place.

    Args:
        dataset_dicts: with "image_id".
        proposal_file: a pickled dict of three lists that run parallel, one entry an image, "ids", "boxes"
            (arrays (N, 4)) and "objectness_logits" (arrays (N,)), and "bbox_mode" (a `BoxMode`'s
            number; XYXY_ABS where it is absent). No code in it is run.

    Returns:
        `dataset_dicts`, with "proposal_boxes", "proposal_objectness_logits" and "proposal_bbox_mode".

    Raises:
        KeyError: the file has no proposals for one of the images.
        ValueError: the file holds more than arrays and plain containers, or is damaged.
    """
    with PathManager.open(proposal_file, "rb") as file:
        try:
            proposals = unpickler.load(file)
        except Exception as error:
            raise ValueError(f"{proposal_file} is no file of proposals: {type(error).__name__}: {error}") from error
    rows = {str(i): row for row, i in enumerate(proposals["ids"])}
    for record in dataset_dicts:
        row = rows.get(str(record["image_id"]))
        if row is None:
            raise KeyError(f"{proposal_file} has no proposals for image_id {record['image_id']}")
        logits = np.asarray(proposals["objectness_logits"][row])
        order = logits.argsort()[::-1]
        record["proposal_boxes"] = np.asarray(proposals["boxes"][row])[order]
        record["proposal_objectness_logits"] = logits[order]
        record["proposal_bbox_mode"] = BoxMode(proposals.get("bbox_mode", BoxMode.XYXY_ABS))
    return dataset_dicts


def print_instances_class_histogram(dataset_dicts: list[dict], class_names: Sequence[str]) -> None:
    """Log how many objects of each class there are, crowds aside.

    Raises:
        ValueError: a category_id is not in [0, number of classes).
    """
    counts = np.zeros(len(class_names), dtype=int)
    for record in dataset_dicts:
        classes = np.array([a["category_id"] for a in record["annotations"] if not a.get("iscrowd", 0)], dtype=int)
        if len(classes) and not 0 <= classes.min() <= classes.max() < len(counts):
            raise ValueError(
                f"Image {record.get('file_name')} has category ids {sorted(set(classes.tolist()))}, not "
                f"all within 0 to {len(counts) - 1}, for the {len(counts)} classes in the metadata"
            )
        np.add.at(counts, classes, 1)
    cells = [
        (name if len(name) <= 13 else f"{name[:11]}..", count) for name, count in zip(class_names, counts, strict=True)
    ]
    cells.append(("total", counts.sum()))
    rows = [list(itertools.chain.from_iterable(cells[i : i + 3])) for i in range(0, len(cells), 3)]
    headers = ["category", "#instances"] * min(3, len(cells))
    table = tabulate(rows, headers=headers, tablefmt="pipe", numalign="left", stralign="center")
    logger.info("Distribution of instances among all %d categories:\n%s", len(class_names), table)


def get_detection_dataset_dicts(
    names: str | Sequence[str],
    filter_empty: bool = True,
    min_keypoints: int = 0,
    proposal_files: Sequence[str] | None = None,
    check_consistency: bool = True,
) -> list[dict] | Dataset:
    """Load registered datasets, one after the other, into one list.

    Args:
        names: of one or several.
        filter_empty: leave out images without objects.
        min_keypoints: leave out images with fewer labelled keypoints.
        proposal_files: of precomputed proposals, one a dataset (see `load_proposals_into_dataset`).
        check_consistency: check that the datasets have the same classes.

    Returns:
        Dataset dicts; or, where what is registered is a torch Dataset, that dataset as it is.

    Raises:
        ValueError: nothing (or nothing of use) is in a dataset, or two have different classes.
    """
    names = [names] if isinstance(names, str) else list(names)
    if not names:
        raise ValueError("No dataset is named: set DATASETS.TRAIN and DATASETS.TEST to tuples of registered names")
    loaded = [DatasetCatalog.get(name) for name in names]
    if isinstance(loaded[0], Dataset):
        return loaded[0] if len(loaded) == 1 else torch.utils.data.ConcatDataset(loaded)
    for name, dicts in zip(names, loaded, strict=True):
        if not len(dicts):
            raise ValueError(f"Dataset {name!r} has no images")
    if proposal_files is not None:
        if len(proposal_files) != len(names):
            raise ValueError(
                f"DATASETS.PROPOSAL_FILES_TRAIN or _TEST has {len(proposal_files)} files for {len(names)} "
                "datasets: name one for each"
            )
        for dicts, file in zip(loaded, proposal_files, strict=True):
            load_proposals_into_dataset(dicts, file)

    dataset_dicts = list(itertools.chain.from_iterable(loaded))
    if "annotations" in dataset_dicts[0]:
        if filter_empty:
            dataset_dicts = filter_images_with_only_crowd_annotations(dataset_dicts)
        if min_keypoints > 0:
            dataset_dicts = filter_images_with_few_keypoints(dataset_dicts, min_keypoints)
        if check_consistency and all(MetadataCatalog.get(name).get("thing_classes") for name in names):
            check_metadata_consistency("thing_classes", names)
            print_instances_class_histogram(dataset_dicts, MetadataCatalog.get(names[0]).thing_classes)
    if not dataset_dicts:
        raise ValueError(
            f"No image of {', '.join(names)} has objects to train on. Check its annotations, or set "
            "DATALOADER.FILTER_EMPTY_ANNOTATIONS to False to train on images without any"
        )
    return dataset_dicts


def build_batch_data_loader(
    dataset: Dataset,
    sampler: Sampler,
    total_batch_size: int,
    *,
    aspect_ratio_grouping: bool | Sequence[int] = False,
    num_workers: int = 0,
    collate_fn: Callable[[list], Any] | None = None,
    drop_last: bool = True,
    seed: int | None = None,
    **kwargs: Any,
) -> DataLoader:
    """A loader of batches in which all randomness comes from `seed` and the position in the sampler's stream.

    Its stream does therefore not depend on `num_workers`, and goes on from batch n after
    ``loader.batch_sampler.start_batch = n``.

    Args:
        dataset: map-style.
        sampler: this rank's indices.
        total_batch_size: images in a batch, of all ranks together.
        aspect_ratio_grouping: put images that are wider than high in one batch, and the others in another.
            `dataset` then gives dicts with "width" and "height"; or name the group of each of its elements.
        num_workers: processes that load; 0 loads in this one.
        collate_fn: makes a batch of a list of samples; by default it stays a list.
        drop_last: leave out a last batch that is not full, of a sampler that ends.
        seed: by default the sampler's attribute `seed`, or else a random one.
        **kwargs: of `torch.utils.data.DataLoader`.
    """
    world_size = comm.get_world_size()
    if total_batch_size <= 0 or total_batch_size % world_size:
        raise ValueError(
            f"The total batch size (SOLVER.IMS_PER_BATCH) {total_batch_size} is not a multiple of the "
            f"number of processes, {world_size}"
        )
    if isinstance(aspect_ratio_grouping, bool):
        groups = _wider_than_high(dataset) if aspect_ratio_grouping else np.zeros(len(dataset), dtype=int)
    else:
        groups = aspect_ratio_grouping
    if seed is None:
        seed = getattr(sampler, "seed", None)
    if seed is None:
        seed = comm.shared_random_seed()
    return DataLoader(
        SeededDataset(dataset, seed),
        batch_sampler=GroupedBatchSampler(sampler, groups, total_batch_size // world_size, drop_last),
        num_workers=num_workers,
        collate_fn=collate_fn or trivial_batch_collator,
        worker_init_fn=worker_init_reset_seed,
        **kwargs,
    )


def _wider_than_high(dataset: Dataset | list[dict]) -> list[int]:
    try:
        return [int(dataset[i]["width"] > dataset[i]["height"]) for i in range(len(dataset))]
    except (KeyError, TypeError) as error:
        raise ValueError(
            "Grouping by aspect ratio needs dataset dicts with 'width' and 'height': add them, or set "
            "DATALOADER.ASPECT_RATIO_GROUPING to False (aspect_ratio_grouping=False)"
        ) from error


def _seed_of(cfg: CfgNode) -> int | None:
    """A negative SEED asks for a random one."""
    return cfg.SEED if cfg.SEED >= 0 else None


def _repeat_factor_sampler(cfg: CfgNode, dataset: list[dict]) -> Sampler:
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
        dataset, cfg.DATALOADER.REPEAT_THRESHOLD, sqrt=cfg.DATALOADER.REPEAT_SQRT
    )
    return RepeatFactorTrainingSampler(factors, seed=_seed_of(cfg))


def _random_subset_sampler(cfg: CfgNode, dataset: list[dict]) -> Sampler:
    seed = _seed_of(cfg)
    return RandomSubsetTrainingSampler(
        len(dataset), cfg.DATALOADER.RANDOM_SUBSET_RATIO, seed_shuffle=seed, seed_subset=seed
    )


TRAINING_SAMPLERS: dict[str, Callable[[CfgNode, list[dict]], Sampler]] = {
    "TrainingSampler": lambda cfg, dataset: TrainingSampler(len(dataset), seed=_seed_of(cfg)),
    "RepeatFactorTrainingSampler": _repeat_factor_sampler,
    "RandomSubsetTrainingSampler": _random_subset_sampler,
}


def _train_loader_from_config(
    cfg: CfgNode,
    mapper: Callable[[dict], Any] | None = None,
    *,
    dataset: list[dict] | Dataset | None = None,
    sampler: Sampler | None = None,
) -> dict[str, Any]:
    if dataset is None:
        keypoints = cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE if cfg.MODEL.KEYPOINT_ON else 0
        dataset = get_detection_dataset_dicts(
            cfg.DATASETS.TRAIN,
            filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
            min_keypoints=keypoints,
            proposal_files=cfg.DATASETS.PROPOSAL_FILES_TRAIN if cfg.MODEL.LOAD_PROPOSALS else None,
        )
    if sampler is None:
        name = cfg.DATALOADER.SAMPLER_TRAIN
        if name not in TRAINING_SAMPLERS:
            raise ValueError(f"DATALOADER.SAMPLER_TRAIN: {name!r} is none of {', '.join(TRAINING_SAMPLERS)}")
        sampler = TRAINING_SAMPLERS[name](cfg, dataset)
        logger.info("Using training sampler %s", name)
    return {
        "dataset": dataset,
        "sampler": sampler,
        "mapper": DatasetMapper(cfg, True) if mapper is None else mapper,
        "total_batch_size": cfg.SOLVER.IMS_PER_BATCH,
        "aspect_ratio_grouping": cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
    }


@configurable(from_config=_train_loader_from_config)
def build_detection_train_loader(
    dataset: list[dict] | Dataset,
    *,
    mapper: Callable[[dict], Any] | None,
    sampler: Sampler | None = None,
    total_batch_size: int,
    aspect_ratio_grouping: bool = True,
    num_workers: int = 0,
    collate_fn: Callable[[list], Any] | None = None,
    **kwargs: Any,
) -> DataLoader:
    """The loader to train on, endless: ``build_detection_train_loader(cfg)``, or with the arguments below.

    Args:
        dataset: dataset dicts, or a map-style dataset.
        mapper: applied to each; with a config by default `DatasetMapper(cfg, True)`.
        sampler: by default `TrainingSampler(len(dataset))`.
        total_batch_size, aspect_ratio_grouping, num_workers, collate_fn, **kwargs: see
            `build_batch_data_loader`, which also says how to resume.

    Returns:
        A loader of lists of `total_batch_size / world_size` mapped samples.
    """
    _check_map_style(dataset)
    if sampler is None:
        sampler = TrainingSampler(len(dataset))
    # Before the list is serialized, and before the mapper: sizes are needed, images are not.
    grouping = _wider_than_high(dataset) if aspect_ratio_grouping else False
    return build_batch_data_loader(
        _mapped(dataset, mapper),
        sampler,
        total_batch_size,
        aspect_ratio_grouping=grouping,
        num_workers=num_workers,
        collate_fn=collate_fn,
        **kwargs,
    )


def _test_loader_from_config(
    cfg: CfgNode, dataset_name: str | Sequence[str], mapper: Callable[[dict], Any] | None = None
) -> dict[str, Any]:
    names = [dataset_name] if isinstance(dataset_name, str) else list(dataset_name)
    proposal_files = None
    if cfg.MODEL.LOAD_PROPOSALS:
        files = dict(zip(cfg.DATASETS.TEST, cfg.DATASETS.PROPOSAL_FILES_TEST, strict=True))
        proposal_files = [files[name] for name in names]
    return {
        "dataset": get_detection_dataset_dicts(names, filter_empty=False, proposal_files=proposal_files),
        "mapper": DatasetMapper(cfg, False) if mapper is None else mapper,
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
    }


@configurable(from_config=_test_loader_from_config)
def build_detection_test_loader(
    dataset: list[dict] | Dataset,
    *,
    mapper: Callable[[dict], Any] | None,
    sampler: Sampler | None = None,
    batch_size: int = 1,
    num_workers: int = 0,
    collate_fn: Callable[[list], Any] | None = None,
) -> DataLoader:
    """The loader to evaluate on: ``build_detection_test_loader(cfg, "name")``, or with the arguments below.

    Args:
        dataset: dataset dicts, or a map-style dataset.
        mapper: applied to each; with a config by default `DatasetMapper(cfg, False)`.
        sampler: by default `InferenceSampler(len(dataset))`: each image once, over all ranks together.
        batch_size: images in a batch, of this rank.
        num_workers: processes that load; 0 loads in this one.
        collate_fn: makes a batch of a list of samples; by default it stays a list.
    """
    _check_map_style(dataset)
    return DataLoader(
        _mapped(dataset, mapper),
        batch_size=batch_size,
        sampler=InferenceSampler(len(dataset)) if sampler is None else sampler,
        num_workers=num_workers,
        collate_fn=collate_fn or trivial_batch_collator,
    )


def _check_map_style(dataset: list | Dataset) -> None:
    if isinstance(dataset, IterableDataset):
        raise TypeError(
            f"{type(dataset).__name__} is an IterableDataset, whose stream could not be resumed: "
            "give a list of dataset dicts or a map-style dataset"
        )


def _mapped(dataset: list | Dataset, mapper: Callable[[dict], Any] | None) -> Dataset:
    if isinstance(dataset, list):
        dataset = DatasetFromList(dataset, copy=False)
    return dataset if mapper is None else MapDataset(dataset, mapper)


def trivial_batch_collator(batch: list) -> list:
    """The batch as it is."""
    return batch


def worker_init_reset_seed(worker_id: int) -> None:
    """Seed `random`, numpy and torch in a worker of a loader, from torch's seed and the worker's number."""
    seed = (torch.initial_seed() + worker_id) % 2**31
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
