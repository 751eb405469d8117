"""Embedded's public functions and classes have Detectron2's parameters: names, order, kinds, defaults; and its methods.

Compared is every name that a module of embedded shares with Detectron2's module of the same path.
"""

import enum
import importlib
import inspect
import pkgutil

import pytest

from projects_maskrcnn import embedded, framework

detectron2 = pytest.importorskip("detectron2", reason="Detectron2 is not installed")
pytestmark = pytest.mark.usefixtures("after_release_06")

OTHER_PARAMETERS = {
    "checkpoint.detection_checkpoint.DetectionCheckpointer.load": "Detectron2's *args are fvcore's checkpointables",
    "config.config.CfgNode.merge_from_file": "a YAML file never runs code",
    "data.build.build_batch_data_loader": "options of DataLoader go through **kwargs; all are given by name",
    "data.samplers.grouped_batch_sampler.GroupedBatchSampler.__init__": "drop_last, at the end",
    "engine.hooks.TorchProfiler.__init__": "one format of traces, all activities",
    "engine.train_loop.AMPTrainer.__init__": "metrics are written at once",
    "engine.train_loop.SimpleTrainer.__init__": "metrics are written at once",
    "layers.batch_norm.NaiveSyncBatchNorm.forward": "x or input: called by position",
    "layers.wrappers.Conv2d.__init__": "norm and activation, which Detectron2 takes out of **kwargs",
    "modeling.backbone.backbone.Backbone.forward": "Detectron2's abstract method has no parameter",
    "modeling.roi_heads.fast_rcnn.FastRCNNOutputLayers.__init__": "without LVIS's federated loss; given by name",
    "utils.logger.setup_logger": "another root of names; the output is not propagated",
    "utils.visualizer.Visualizer.draw_text": "text is level",
    "utils.visualizer.Visualizer.draw_box": "lines are solid",
    "utils.visualizer.Visualizer.draw_line": "lines are solid, the width is given by name",
    "utils.visualizer.Visualizer.draw_binary_mask": "small components are drawn too",
}

ABSENT_METHODS = {
    "engine.train_loop.SimpleTrainer": {"reset_data_loader"},
    "engine.train_loop.AMPTrainer": {"reset_data_loader"},
    "layers.batch_norm.FrozenBatchNorm2d": {"convert_frozenbatchnorm2d_to_batchnorm2d"},
    "modeling.matcher.Matcher": {"set_low_quality_matches_"},  # a step of its __call__
    "modeling.roi_heads.fast_rcnn.FastRCNNOutputLayers": {"get_fed_loss_classes", "sigmoid_cross_entropy_loss"},
    "data.transforms.transform.ResizeTransform": {"apply_rotated_box"},
    "data.transforms.transform.RotationTransform": {"create_rotation_matrix"},
    "structures.boxes.BoxMode": {"XYWHA_ABS"},
    "structures.masks.BitMasks": {"from_roi_masks"},
    "utils.events.EventStorage": {"iteration"},  # its older name for iter
    "utils.file_io.Detectron2Handler": {"S3_DETECTRON2_PREFIX"},
    "utils.visualizer.Visualizer": {  # panoptic and semantic segmentation, rotated boxes
        "draw_panoptic_seg",
        "draw_panoptic_seg_predictions",
        "draw_rotated_box_with_label",
        "draw_sem_seg",
        "draw_soft_mask",
        "overlay_rotated_instances",
    },
}


def shared():
    """What both frameworks define under one name, as {name in embedded: (ours, theirs)}."""
    found = {}
    for info in pkgutil.walk_packages(embedded.__path__, prefix=f"{embedded.__name__}."):
        ours = importlib.import_module(info.name)
        try:
            theirs = importlib.import_module(info.name.replace(embedded.__name__, "detectron2"))
        except ModuleNotFoundError:
            continue
        for name, value in vars(ours).items():
            if not name.startswith("_") and is_within(value, embedded) and hasattr(theirs, name):
                path = value.__module__.removeprefix(f"{embedded.__name__}.")
                found[f"{path}.{value.__qualname__}"] = value, getattr(theirs, name)
    return found


def is_within(value, package) -> bool:
    """Whether a class or function was written in `package`."""
    return callable(value) and getattr(value, "__module__", "").startswith(f"{package.__name__}.")


def public(cls, package) -> set[str]:
    """The public members of a class, and its constructor, that were written in `package`."""
    names = {name for base in cls.__mro__ if is_within(base, package) for name in vars(base)}
    return {name for name in names if not name.startswith("_") or name in ("__init__", "__call__")}


def signatures():
    """{name: (ours, theirs)} of all functions, constructors and methods in both."""
    found = {}
    for name, (a, b) in SHARED.items():
        if not inspect.isclass(a):
            found[name] = a, b
            continue
        for method in sorted(public(a, embedded) & public(b, detectron2)):
            if method in vars(a) or method in vars(b):
                found[f"{name}.{method}"] = getattr(a, method), getattr(b, method)
    return {name: pair for name, pair in found.items() if all(inspect.isroutine(value) for value in pair)}


def parameters(function) -> list:
    """(name, kind, default) of each parameter; only the kind of *args and **kwargs."""
    result = []
    for p in inspect.signature(function).parameters.values():
        variadic = p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        own = isinstance(p.default, enum.Enum) and not isinstance(p.default, int)
        default = p.default.name if own else p.default
        result.append((p.kind.name,) if variadic else (p.name, p.kind.name, default))
    return result


SHARED = shared()
SIGNATURES = signatures()
CLASSES = {name: pair for name, pair in SHARED.items() if inspect.isclass(pair[0])}


@pytest.mark.parametrize("name", SIGNATURES)
def test_parameters(name):
    ours, theirs = map(parameters, SIGNATURES[name])
    if name in OTHER_PARAMETERS:
        assert ours != theirs, "the table of differences lists one that is none"
    else:
        assert ours == theirs


@pytest.mark.parametrize("name", CLASSES)
def test_methods_and_properties(name):
    ours, theirs = CLASSES[name]
    members = {member for member in public(theirs, detectron2) if not hasattr(ours, member)}
    instance = inspect.getsource(ours)  # attributes that __init__ sets
    assert {m for m in members if f"self.{m} = " not in instance and f"self.{m}: " not in instance} == (
        ABSENT_METHODS.get(name, set())
    )


def test_tables_name_what_there_is():
    assert OTHER_PARAMETERS.keys() <= SIGNATURES.keys() and ABSENT_METHODS.keys() <= CLASSES.keys()


def test_the_seam_is_compared():
    names = {
        name for name, value in vars(framework).items() if is_within(value, detectron2) or is_within(value, embedded)
    }
    assert len(names) > 40
    assert names <= {name.rsplit(".", 1)[-1] for name in SHARED}
