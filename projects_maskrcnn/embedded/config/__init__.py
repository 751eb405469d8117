"""Configuration: a tree of keys with defaults, YAML files that override them, and classes built from them."""

from .config import CfgNode, configurable, get_cfg, global_cfg, set_global_cfg
