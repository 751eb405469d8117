#!/usr/bin/env python3
"""Train or evaluate a model that a config describes.

python train_net.py --config-file configs/quick/mask_rcnn_R_18_FPN_shapes.yaml
python train_net.py --config-file ... --num-gpus 8 SOLVER.BASE_LR 0.01
python train_net.py --config-file ... --resume
python train_net.py --config-file ... --eval-only MODEL.WEIGHTS output/model_final.pth
python train_net.py --config-file ... --project my_project:add_my_config
"""

import argparse
import importlib
import logging
from collections.abc import Iterable, Sequence

from torch import nn

from projects_maskrcnn import add_maskrcnn_config, replace_poolers
from projects_maskrcnn.alternating import evaluation_config, train_in_steps
from projects_maskrcnn.checkpoint import MaskRCNNCheckpointer
from projects_maskrcnn.config_check import check_ranges
from projects_maskrcnn.data import RobustMapper, resolve_num_classes, use_coco_files
from projects_maskrcnn.evaluation import check_figures, log_reference_figures
from projects_maskrcnn.framework import (
    FRAMEWORK,
    CfgNode,
    CityscapesInstanceEvaluator,
    COCOEvaluator,
    DatasetEvaluator,
    DatasetMapper,
    DefaultTrainer,
    MetadataCatalog,
    PascalVOCDetectionEvaluator,
    build_detection_test_loader,
    build_detection_train_loader,
    comm,
    default_argument_parser,
    default_setup,
    get_cfg,
    launch,
    setup_logger,
    verify_results,
)
from projects_maskrcnn.modeling import GeneralizedRCNNWithTTA

EVALUATORS = {"cityscapes_instance": CityscapesInstanceEvaluator, "pascal_voc": PascalVOCDetectionEvaluator}
COCO_TYPES = (None, "coco", "coco_panoptic_seg")  # of the last, boxes and masks are measured
NUM_CLASSES_FROM_DATA = -1
logger = logging.getLogger("projects_maskrcnn")


class Trainer(DefaultTrainer):
    """The framework's trainer, with loaders that survive damaged images and the evaluators of our datasets."""

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__(cfg)
        self.checkpointer = MaskRCNNCheckpointer(self.model, cfg.OUTPUT_DIR, **self.checkpointer.checkpointables)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        model = super().build_model(cfg)
        return replace_poolers(model) if cfg.MODEL.ROI_HEADS.REPLACE_POOLERS else model

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable:
        return build_detection_train_loader(cfg, mapper=RobustMapper(DatasetMapper(cfg, is_train=True), is_train=True))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable:
        mapper = RobustMapper(DatasetMapper(cfg, is_train=False), is_train=False)
        return build_detection_test_loader(cfg, dataset_name, mapper=mapper)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None) -> DatasetEvaluator:
        kind = evaluator_type(dataset_name)
        if kind in EVALUATORS and cfg.MODEL.META_ARCHITECTURE != "ProposalNetwork":  # their recall is COCOEvaluator's
            return EVALUATORS[kind](dataset_name)
        return COCOEvaluator(
            dataset_name,
            output_dir=output_folder or f"{cfg.OUTPUT_DIR}/inference",
            kpt_oks_sigmas=cfg.TEST.KEYPOINT_OKS_SIGMAS,
        )

    @classmethod
    def test(
        cls, cfg: CfgNode, model: nn.Module, evaluators: Sequence[DatasetEvaluator] | None = None
    ) -> dict[str, dict[str, float]]:
        """As the framework's; published figures are logged beside the results."""
        results = super().test(cfg, model, evaluators)
        if comm.is_main_process():
            log_reference_figures(cfg, results)
        return results

    @classmethod
    def test_with_TTA(cls, cfg: CfgNode, model: nn.Module) -> dict[str, dict[str, float]]:
        """The results with test-time augmentation, as tasks `bbox_TTA` ..."""
        model = GeneralizedRCNNWithTTA(cfg, model)
        evaluators = [cls.build_evaluator(cfg, name, f"{cfg.OUTPUT_DIR}/inference_TTA") for name in cfg.DATASETS.TEST]
        cfg = cfg.clone()
        cfg.defrost()
        cfg.INPUT.MIN_SIZE_TEST = 0  # images of their own size: the views are made of them
        results = super().test(cfg, model, evaluators)
        results = {f"{task}_TTA": scores for task, scores in results.items()}
        if comm.is_main_process():
            log_reference_figures(cfg, results)
        return results


def evaluator_type(dataset_name: str) -> str | None:
    """How a dataset is to be evaluated: a key of `EVALUATORS`, or one of `COCO_TYPES`.

    Raises:
        ValueError: it is otherwise.
    """
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if kind in EVALUATORS or kind in COCO_TYPES:
        return kind
    raise ValueError(
        f"dataset {dataset_name}: there is no evaluator here for its evaluator_type {kind!r}. Train on it with "
        "DATASETS.TEST (), or with a Trainer of your own that overrides build_evaluator"
    )


def argument_parser() -> argparse.ArgumentParser:
    """The framework's arguments, and the projects whose parts a config may name."""
    parser = default_argument_parser()
    parser.add_argument(
        "--project",
        action="append",
        default=[],
        metavar="MODULE[:FUNCTION]",
        help="import a module, which registers its parts, and call its function, which adds config keys; repeatable",
    )
    return parser


def setup(args: argparse.Namespace) -> CfgNode:
    """The frozen config of `args`, with output folder, log and seed set up."""
    cfg = get_cfg()
    add_maskrcnn_config(cfg)
    for project in args.project:
        name, _, add_config = project.partition(":")
        module = importlib.import_module(name)
        if add_config:
            getattr(module, add_config)(cfg)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = NUM_CLASSES_FROM_DATA
    if args.config_file:
        cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    use_coco_files(cfg)
    resolve_num_classes(cfg)
    for name in cfg.DATASETS.TEST:
        evaluator_type(name)  # what has none shall not fail after the training
    if not cfg.OUTPUT_DIR:
        raise ValueError("OUTPUT_DIR is empty: name a folder for checkpoints, logs and results")
    check_figures(cfg)
    check_ranges(cfg)
    cfg.freeze()
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, comm.get_rank(), name="projects_maskrcnn")
    logger.info("Framework: %s", FRAMEWORK)
    return cfg


def train(cfg: CfgNode, resume: bool) -> dict[str, dict[str, float]] | None:
    """Train and evaluate; returns what `DefaultTrainer.train` does."""
    trainer = Trainer(cfg)
    if cfg.TEST.AUG.ENABLED:
        GeneralizedRCNNWithTTA(cfg, trainer.model)  # what does not fit shall not fail after the training
    trainer.resume_or_load(resume=resume)
    if trainer.start_iter > trainer.max_iter:
        logger.warning(
            "%s has %d iterations already, SOLVER.MAX_ITER is %d: nothing is trained",
            cfg.OUTPUT_DIR,
            trainer.start_iter,
            trainer.max_iter,
        )
    results = trainer.train()
    if cfg.TEST.AUG.ENABLED:
        results = {**(results or {}), **Trainer.test_with_TTA(cfg, trainer.model)}
    return results


def evaluate(cfg: CfgNode, weights: str, resume: bool = False) -> dict[str, dict[str, float]]:
    """The results of `weights`, or with `resume` of the last checkpoint in the output folder, by task and metric."""
    cfg = evaluation_config(cfg)
    model = Trainer.build_model(cfg)
    checkpointer = MaskRCNNCheckpointer(model, save_dir=cfg.OUTPUT_DIR)
    if not weights and not (resume and checkpointer.has_checkpoint()):
        raise ValueError(
            "--eval-only has no weights to evaluate: set MODEL.WEIGHTS, or add --resume for the last checkpoint in "
            f"OUTPUT_DIR {cfg.OUTPUT_DIR}"
        )
    checkpointer.resume_or_load(weights, resume=resume)
    results = Trainer.test(cfg, model)
    if cfg.TEST.AUG.ENABLED:
        results.update(Trainer.test_with_TTA(cfg, model))
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


def main(args: argparse.Namespace) -> dict[str, dict[str, float]] | None:
    """Train, or evaluate with `--eval-only`; returns the results by task and metric."""
    cfg = setup(args)
    if args.eval_only:
        return evaluate(cfg, cfg.MODEL.WEIGHTS, args.resume)
    if cfg.MODEL.PROPOSAL_GENERATOR.TRAINED_IN_STEPS:
        return evaluate(cfg, train_in_steps(cfg, Trainer))
    return train(cfg, args.resume)


if __name__ == "__main__":
    args = argument_parser().parse_args()
    launch(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )
