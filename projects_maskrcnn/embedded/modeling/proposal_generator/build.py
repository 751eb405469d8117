"""The registry of proposal generators."""

from torch import nn

from ...config import CfgNode
from ...layers import ShapeSpec
from ...utils.registry import Registry

PROPOSAL_GENERATOR_REGISTRY = Registry("PROPOSAL_GENERATOR")


def build_proposal_generator(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> nn.Module | None:
    """The generator that `MODEL.PROPOSAL_GENERATOR.NAME` names; None for `PrecomputedProposals`."""
    name = cfg.MODEL.PROPOSAL_GENERATOR.NAME
    if name == "PrecomputedProposals":
        return None
    return PROPOSAL_GENERATOR_REGISTRY.get(name)(cfg, input_shape)
