"""`import projects_maskrcnn` beside Detectron2's other projects: no name is registered twice, no config key clashes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

detectron2 = pytest.importorskip("detectron2", reason="Detectron2 is not installed")

PROJECTS = Path(detectron2.__file__).parents[1] / "projects"  # of an installation in place
CONFIGS_OF = {
    "detectron2.projects.point_rend": "add_pointrend_config",
    "detectron2.projects.deeplab": "add_deeplab_config",
    "detectron2.projects.panoptic_deeplab": "add_panoptic_deeplab_config",
    "tridentnet": "add_tridentnet_config",
    "tensormask": "add_tensormask_config",
    "densepose": "add_densepose_config",
}
FOLDER = {"tridentnet": "TridentNet", "tensormask": "TensorMask", "densepose": "DensePose"}

ABSENT = 77  # the script's exit status where the other project cannot be imported
BOTH = """
import importlib, sys

first, second, other, add_other_config = sys.argv[1:]
for name in (first, second):
    try:
        importlib.import_module(name)
    except ImportError as error:
        if name == other:
            print(error)
            sys.exit(77)
        raise

from detectron2.config import get_cfg
from detectron2.modeling import BACKBONE_REGISTRY, ROI_HEADS_REGISTRY
from projects_maskrcnn import add_maskrcnn_config

assert "MaskRCNNROIHeads" in ROI_HEADS_REGISTRY and "build_maskrcnn_resnet_fpn_backbone" in BACKBONE_REGISTRY


def leaves(node, path=""):
    for key, child in node.items():
        if hasattr(child, "items"):
            yield from leaves(child, f"{path}{key}.")
        else:
            yield f"{path}{key}", str(child)


def added(*functions):
    # the keys that functions add to a config, or change, with their values
    cfg = get_cfg()
    for function in functions:
        function(cfg)
    return dict(set(leaves(cfg)) - set(leaves(get_cfg())))


theirs = getattr(sys.modules[other], add_other_config)
ours, others = added(add_maskrcnn_config), added(theirs)
assert ours | others == others | ours, {key for key in ours.keys() & others.keys() if ours[key] != others[key]}
assert added(add_maskrcnn_config, theirs) == added(theirs, add_maskrcnn_config) == ours | others
"""


@pytest.mark.parametrize("ours_first", [True, False])
@pytest.mark.parametrize("project", CONFIGS_OF)
def test_composes(project, ours_first, root):
    names = ["projects_maskrcnn", project] if ours_first else [project, "projects_maskrcnn"]
    paths = [str(root), str(PROJECTS / FOLDER[project])] if project in FOLDER else [str(root)]
    environment = {**os.environ, "MASKRCNN_FRAMEWORK": "detectron2", "PYTHONPATH": os.pathsep.join(paths)}
    if "PYTHONPATH" in os.environ:
        environment["PYTHONPATH"] += os.pathsep + os.environ["PYTHONPATH"]
    command = [sys.executable, "-c", BOTH, *names, project, CONFIGS_OF[project]]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    if result.returncode == ABSENT:
        pytest.skip(f"{project} is not there: {result.stdout.strip()}")
    assert result.returncode == 0, result.stderr[-2000:]
