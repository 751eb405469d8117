"""Training proposals and heads in steps, one after the other.

The paper's ablations train a region proposal network apart, and the heads from its proposals: two steps, two networks.
Faster R-CNN (section 3.2, "4-Step Alternating Training") goes on: proposals again on the heads' convolutions, which are
no longer trained, and last the heads on the same ones, so that both become one network.

A config asks for it with `MODEL.PROPOSAL_GENERATOR.TRAINED_IN_STEPS`. Each step runs the whole schedule in a folder of
its own, and is left out where it is done, so that an interrupted training goes on. The folder keeps the step's config,
so that a step is not taken for one of another training.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from .checkpoint import MaskRCNNCheckpointer
from .evaluation import ProposalWriter
from .framework import CfgNode, DefaultTrainer, FrozenBatchNorm2d, comm
from .weights import read_weights, write_weights

logger = logging.getLogger(__name__)

WEIGHTS = "model_final.pth"


def proposals_config(cfg: CfgNode, folder: Path, weights: str) -> CfgNode:
    """The config of a region proposal network alone, which is trained from `weights` in `folder`."""
    return _step(_changed(cfg, {"MODEL.META_ARCHITECTURE": "ProposalNetwork"}), folder, weights)


def heads_config(cfg: CfgNode, folder: Path, weights: str, proposals: Path) -> CfgNode:
    """The config of heads that are trained from `weights` in `folder`, on the proposals that a folder has."""
    return _step(from_proposals(cfg, proposals), folder, weights)


def from_proposals(cfg: CfgNode, proposals: Path) -> CfgNode:
    """The config of a model without a proposal generator of its own."""
    return _changed(
        cfg,
        {
            "MODEL.LOAD_PROPOSALS": True,
            "MODEL.PROPOSAL_GENERATOR.NAME": "PrecomputedProposals",
            "DATASETS.PROPOSAL_FILES_TRAIN": tuple(str(proposals / f"{name}.pkl") for name in cfg.DATASETS.TRAIN),
            "DATASETS.PROPOSAL_FILES_TEST": tuple(str(proposals / f"{name}.pkl") for name in cfg.DATASETS.TEST),
            "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN": cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN,
            "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST": cfg.MODEL.RPN.POST_NMS_TOPK_TEST,
        },
    )


def evaluation_config(cfg: CfgNode) -> CfgNode:
    """The config for evaluating the weights that `train_in_steps` returns: after two steps, from proposals."""
    if cfg.MODEL.PROPOSAL_GENERATOR.TRAINED_IN_STEPS != 2:
        return cfg
    return from_proposals(cfg, Path(cfg.OUTPUT_DIR) / "step_1_proposals")


def train_in_steps(cfg: CfgNode, trainer_class: type[DefaultTrainer]) -> str:
    """Train as `TRAINED_IN_STEPS` says; returns the path of the weights, `model_final.pth` in `OUTPUT_DIR`.

    Args:
        trainer_class: trains each step.

    Raises:
        ValueError: the number of steps is not 2 or 4, or a step in `OUTPUT_DIR` was trained with another config.
        CheckpointError: the weights of a step cannot be read, or `model_final.pth` not be written.
    """
    steps = cfg.MODEL.PROPOSAL_GENERATOR.TRAINED_IN_STEPS
    if steps not in (2, 4):
        raise ValueError(f"MODEL.PROPOSAL_GENERATOR.TRAINED_IN_STEPS is {steps}: set 2, 4, or 0 to train all at once")
    output = Path(cfg.OUTPUT_DIR)
    folders = [output / f"step_{i}_{part}" for i, part in enumerate(("proposals", "heads") * (steps // 2), start=1)]
    weights = [str(folder / WEIGHTS) for folder in folders]

    _train_proposals(proposals_config(cfg, folders[0], cfg.MODEL.WEIGHTS), cfg, trainer_class)
    _train(heads_config(cfg, folders[1], cfg.MODEL.WEIGHTS, folders[0]), trainer_class)
    if steps == 4:

        class FixedBackbone(trainer_class):
            """Trains what lies on the convolutions that proposals and heads share, not these."""

            @classmethod
            def build_model(cls, cfg: CfgNode) -> nn.Module:
                model = super().build_model(cfg)
                model.backbone = FrozenBatchNorm2d.convert_frozen_batchnorm(model.backbone)
                model.backbone.requires_grad_(False)
                return model

        _train_proposals(proposals_config(cfg, folders[2], weights[1]), cfg, FixedBackbone)
        _train(heads_config(cfg, folders[3], weights[1], folders[2]), FixedBackbone)
    if comm.is_main_process():
        model = read_weights(weights[-1])["model"]
        if steps == 4:
            proposals = read_weights(weights[2])["model"]
            model |= {name: value for name, value in proposals.items() if name.startswith("proposal_generator.")}
        write_weights(output / WEIGHTS, model)
    comm.synchronize()
    return str(output / WEIGHTS)


def _train(cfg: CfgNode, trainer_class: type[DefaultTrainer]) -> None:
    _keep_config(cfg)
    if (Path(cfg.OUTPUT_DIR) / WEIGHTS).exists():
        logger.info("%s is trained", cfg.OUTPUT_DIR)
        return
    logger.info("Training %s", cfg.OUTPUT_DIR)
    trainer = trainer_class(cfg)
    trainer.resume_or_load(resume=True)
    trainer.train()
    comm.synchronize()  # the main process writes the weights that all read next


def _keep_config(cfg: CfgNode) -> None:
    """Write the config into its folder, or hold it against the one that is there in all that its weights depend on."""
    path = Path(cfg.OUTPUT_DIR) / "config.yaml"
    text = cfg.dump()
    if path.exists():
        before, now = (dict(_leaves(yaml.safe_load(content))) for content in (path.read_text(), text))
        for key, value in now.items():
            matters = key.startswith(("MODEL.", "INPUT.", "DATASETS.", "SOLVER.")) and key != "MODEL.DEVICE"
            if matters and before.get(key) != value:
                raise ValueError(
                    f"{path.parent} was trained with {key} {before.get(key)}, which is now {value}: set OUTPUT_DIR to "
                    f"another folder, or remove {path.parent} and the steps after it to train them anew"
                )
        return
    comm.synchronize()  # all have seen that there is none
    if comm.is_main_process():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _train_proposals(cfg: CfgNode, whole: CfgNode, trainer_class: type[DefaultTrainer]) -> None:
    """Train a region proposal network, and write its proposals for the datasets of the config `whole` that need them.

    These are the training ones, and where proposals and heads stay two networks the test ones.
    """
    _train(cfg, trainer_class)
    folder = Path(cfg.OUTPUT_DIR)
    rpn = cfg.MODEL.RPN
    two_networks = whole.MODEL.PROPOSAL_GENERATOR.TRAINED_IN_STEPS == 2
    wanted = dict.fromkeys(whole.DATASETS.TEST if two_networks else (), rpn.POST_NMS_TOPK_TEST)
    wanted |= dict.fromkeys(whole.DATASETS.TRAIN, rpn.POST_NMS_TOPK_TRAIN)
    for name, count in wanted.items():
        path = folder / f"{name}.pkl"
        if not path.exists():
            test = _changed(cfg, {"DATASETS.TEST": (name,), "MODEL.RPN.POST_NMS_TOPK_TEST": count})
            model = trainer_class.build_model(test)
            MaskRCNNCheckpointer(model).load(str(folder / WEIGHTS))
            trainer_class.test(test, model, [ProposalWriter(path)])


def _step(cfg: CfgNode, folder: Path, weights: str) -> CfgNode:
    """The config of a step, which is not evaluated."""
    values = {"MODEL.WEIGHTS": weights, "OUTPUT_DIR": str(folder), "DATASETS.TEST": (), "TEST.EXPECTED_RESULTS": []}
    return _changed(cfg, values)


def _changed(cfg: CfgNode, values: dict[str, Any]) -> CfgNode:
    """A frozen copy with other values, by dotted keys."""
    cfg = cfg.clone()
    cfg.defrost()
    for key, value in values.items():
        *nodes, last = key.split(".")
        node = cfg
        for name in nodes:
            node = node[name]
        node[last] = value
    cfg.freeze()
    return cfg
