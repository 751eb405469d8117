#!/usr/bin/env python3
"""Train or evaluate a model that a config describes.

python train_net.py --config-file configs/quick/mask_rcnn_R_18_FPN_shapes.yaml
python train_net.py --config-file ... --num-gpus 8 SOLVER.BASE_LR 0.01
python train_net.py --config-file ... --resume
python train_net.py --config-file ... --eval-only MODEL.WEIGHTS output/model_final.pth
"""

import argparse
from typing import Any

from projects_maskrcnn import add_maskrcnn_config
from projects_maskrcnn.data import RobustMapper, resolve_num_classes, use_coco_files
from projects_maskrcnn.framework import (
    CfgNode,
    CityscapesInstanceEvaluator,
    COCOEvaluator,
    DatasetEvaluator,
    DatasetMapper,
    DefaultTrainer,
    DetectionCheckpointer,
    MetadataCatalog,
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

NUM_CLASSES_FROM_DATA = -1


class Trainer(DefaultTrainer):
    """The framework's trainer, with loaders that survive damaged images and the evaluators of our datasets."""

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        return build_detection_train_loader(cfg, mapper=RobustMapper(DatasetMapper(cfg, is_train=True), is_train=True))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        mapper = RobustMapper(DatasetMapper(cfg, is_train=False), is_train=False)
        return build_detection_test_loader(cfg, dataset_name, mapper=mapper)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None) -> DatasetEvaluator:
        if MetadataCatalog.get(dataset_name).get("evaluator_type") == "cityscapes_instance":
            return CityscapesInstanceEvaluator(dataset_name)
        return COCOEvaluator(
            dataset_name,
            output_dir=output_folder or f"{cfg.OUTPUT_DIR}/inference",
            kpt_oks_sigmas=cfg.TEST.KEYPOINT_OKS_SIGMAS,
        )


def setup(args: argparse.Namespace) -> CfgNode:
    """The frozen config of `args`, with output folder, log and seed set up."""
    cfg = get_cfg()
    add_maskrcnn_config(cfg)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = NUM_CLASSES_FROM_DATA
    if args.config_file:
        cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    use_coco_files(cfg)
    resolve_num_classes(cfg)
    cfg.freeze()
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, comm.get_rank(), name="projects_maskrcnn")
    return cfg


def main(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Train, or evaluate with `--eval-only`; returns the results of the last evaluation by task and metric."""
    cfg = setup(args)
    if args.eval_only:
        model = Trainer.build_model(cfg)
        DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR).resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        results = Trainer.test(cfg, model)
        if comm.is_main_process():
            verify_results(cfg, results)
        return results
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


if __name__ == "__main__":
    args = default_argument_parser().parse_args()
    launch(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )
