"""What a backbone is, and how a config names one."""

from .backbone import Backbone
from .build import BACKBONE_REGISTRY, build_backbone
