import pickle

import pytest
import yaml

from projects_maskrcnn.embedded.config import CfgNode, get_cfg, global_cfg, set_global_cfg


@pytest.fixture
def write(tmp_path):
    """Writes a YAML file of the given name and text, and returns its path."""

    def write_file(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(path)

    return write_file


# From Detectron2's documentation of its config. Types count: a YAML file can only override with the same.
DEFAULTS = {
    "VERSION": 2,
    "OUTPUT_DIR": "./output",
    "SEED": -1,
    "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
    "MODEL.PIXEL_MEAN": [103.53, 116.28, 123.675],
    "MODEL.PIXEL_STD": [1.0, 1.0, 1.0],
    "MODEL.BACKBONE.NAME": "build_resnet_backbone",
    "MODEL.BACKBONE.FREEZE_AT": 2,
    "MODEL.FPN.OUT_CHANNELS": 256,
    "MODEL.ANCHOR_GENERATOR.SIZES": [[32, 64, 128, 256, 512]],
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[0.5, 1.0, 2.0]],
    "MODEL.RPN.IOU_THRESHOLDS": [0.3, 0.7],
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 12000,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 6000,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 2000,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 1000,
    "MODEL.RPN.NMS_THRESH": 0.7,
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 256,
    "MODEL.ROI_HEADS.NAME": "Res5ROIHeads",
    "MODEL.ROI_HEADS.NUM_CLASSES": 80,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 512,
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": 0.25,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.05,
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": 0.5,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": (10.0, 10.0, 5.0, 5.0),
    "MODEL.ROI_BOX_HEAD.FC_DIM": 1024,
    "MODEL.ROI_BOX_CASCADE_HEAD.IOUS": (0.5, 0.6, 0.7),
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 14,
    "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS": (512, 512, 512, 512, 512, 512, 512, 512),
    "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS": 17,
    "MODEL.RESNETS.NORM": "FrozenBN",
    "MODEL.RESNETS.STRIDE_IN_1X1": True,
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE": [False, False, False, False],
    "INPUT.MIN_SIZE_TRAIN": (800,),
    "INPUT.MAX_SIZE_TRAIN": 1333,
    "INPUT.FORMAT": "BGR",
    "INPUT.CROP.SIZE": [0.9, 0.9],
    "DATALOADER.NUM_WORKERS": 4,
    "DATALOADER.REPEAT_THRESHOLD": 0.0,
    "SOLVER.IMS_PER_BATCH": 16,
    "SOLVER.BASE_LR": 0.001,
    "SOLVER.MAX_ITER": 40000,
    "SOLVER.STEPS": (30000,),
    "SOLVER.WARMUP_FACTOR": 0.001,
    "SOLVER.WEIGHT_DECAY": 0.0001,
    "SOLVER.WEIGHT_DECAY_BIAS": None,
    "SOLVER.CHECKPOINT_PERIOD": 5000,
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": 2.0,
    "TEST.DETECTIONS_PER_IMAGE": 100,
    "TEST.AUG.MIN_SIZES": (400, 500, 600, 700, 800, 900, 1000, 1100, 1200),
    "TEST.PRECISE_BN.NUM_ITER": 200,
}


@pytest.mark.parametrize("key", DEFAULTS)
def test_defaults_are_detectron2s(key):
    value = get_cfg()
    for part in key.split("."):
        value = value[part]
    assert value == DEFAULTS[key] and type(value) is type(DEFAULTS[key])


def test_every_key_is_detectron2s(after_release_06):
    theirs = pytest.importorskip("detectron2.config").get_cfg()
    theirs.MODEL.DEVICE = get_cfg().MODEL.DEVICE
    assert get_cfg() == theirs


def test_get_cfg_gives_a_copy():
    get_cfg().SOLVER.MAX_ITER = 7
    assert get_cfg().SOLVER.MAX_ITER == 40000


def test_device_is_one_that_there_is():
    import torch

    torch.empty(1, device=get_cfg().MODEL.DEVICE)


def test_bases_are_relative_and_later_files_win(write):
    write("Base.yaml", "SOLVER: {MAX_ITER: 1, BASE_LR: 0.1, IMS_PER_BATCH: 2}\nTEST: {EVAL_PERIOD: 3}\n")
    write("a/middle.yaml", "_BASE_: ../Base.yaml\nSOLVER: {MAX_ITER: 4, BASE_LR: 0.2}\n")
    write("a/other.yaml", "SOLVER: {BASE_LR: 0.3, STEPS: [5, 6]}\n")
    leaf = write("b/leaf.yaml", "_BASE_: [../a/middle.yaml, ../a/other.yaml]\nVERSION: 2\nSOLVER: {STEPS: [7]}\n")
    cfg = get_cfg()
    cfg.merge_from_file(leaf)
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR, cfg.SOLVER.IMS_PER_BATCH) == (4, 0.3, 2)
    assert cfg.SOLVER.STEPS == (7,)  # a list in YAML, a tuple by default
    assert cfg.TEST.EVAL_PERIOD == 3


def test_base_in_the_home_folder(write, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    write("home/Base.yaml", "SEED: 5")
    cfg = get_cfg()
    cfg.merge_from_file(write("work/leaf.yaml", "_BASE_: ~/Base.yaml"))
    assert cfg.SEED == 5


def test_dump_loads_again(write):
    cfg = get_cfg()
    cfg.merge_from_list(["SOLVER.STEPS", "(1, 2)", "MODEL.WEIGHTS", "a/b.pth", "SOLVER.BASE_LR", "0.5"])
    assert (cfg.SOLVER.STEPS, cfg.MODEL.WEIGHTS, cfg.SOLVER.BASE_LR) == ((1, 2), "a/b.pth", 0.5)
    again = get_cfg()
    again.merge_from_file(write("config.yaml", cfg.dump()))
    assert yaml.safe_load(again.dump()) == yaml.safe_load(cfg.dump())
    assert pickle.loads(pickle.dumps(cfg)) == cfg
    assert isinstance(again.SOLVER, CfgNode)


def test_frozen_config_does_not_change():
    cfg = get_cfg()
    cfg.freeze()
    with pytest.raises(AttributeError, match="MAX_ITER"):
        cfg.SOLVER.MAX_ITER = 1


@pytest.mark.parametrize(
    ("text", "error", "parts"),
    [
        ("MODEL: {RPN: {NMS_TRESH: 0.5}}", KeyError, ["MODEL.RPN.NMS_TRESH", "MODEL.RPN.NMS_THRESH"]),
        ("MODEL: {NUM_CLASSES: 3}", KeyError, ["MODEL.NUM_CLASSES", "MODEL.ROI_HEADS.NUM_CLASSES"]),
        ("MODEL: {POINT_HEAD: {NAME: x}}", KeyError, ["MODEL.POINT_HEAD", "add_..._config"]),
        ("SOLVER: {BASE_LR: fast}", ValueError, ["SOLVER.BASE_LR", "float", "str"]),
        ("SOLVER: 3", ValueError, ["SOLVER", "int"]),
        ("SEED: 2020-01-01", ValueError, ["SEED", "date"]),
        ("VERSION: 1\nMODEL: {}", ValueError, ["VERSION 1"]),
        ("SEED: !!python/object/apply:eval ['1 + 1']", ValueError, ["python/object/apply:eval"]),
        ("- SEED", ValueError, ["list"]),
        ("SEED:\n\t1", ValueError, ["not YAML", "line 2"]),
        ("5: 1", ValueError, ["key 5"]),
        ("_BASE_: 5", ValueError, ["_BASE_ is 5"]),
        ("_BASE_: [5]", ValueError, ["_BASE_ is [5]"]),
    ],
)
def test_errors_name_the_file_that_is_wrong_and_the_key(write, text, error, parts):
    bad = write("bad.yaml", text)
    with pytest.raises(error) as raised:
        get_cfg().merge_from_file(write("good.yaml", "_BASE_: bad.yaml\nSEED: 1"), allow_unsafe=True)
    for part in [bad, *parts]:
        assert part in str(raised.value)
    assert "good.yaml" not in str(raised.value)


def test_python_in_yaml_never_runs(write, tmp_path):
    mark = tmp_path / "mark"
    with pytest.raises(ValueError, match="run Python"):
        get_cfg().merge_from_file(
            write("bad.yaml", f"SEED: !!python/object/apply:pathlib.Path.touch [!!python/name:x {mark}]"),
            True,
        )
    assert not mark.exists()


def test_missing_files_and_cycles(write, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.yaml"):
        get_cfg().merge_from_file(str(tmp_path / "none.yaml"))
    with pytest.raises(FileNotFoundError, match=r"none\.yaml.*leaf\.yaml"):
        get_cfg().merge_from_file(write("leaf.yaml", "_BASE_: none.yaml"))
    write("a/x.yaml", "_BASE_: ../b/y.yaml")
    with pytest.raises(ValueError, match=r"y\.yaml <- .*x\.yaml <- .*y\.yaml"):
        get_cfg().merge_from_file(write("b/y.yaml", "_BASE_: ../a/x.yaml"))


def test_what_is_no_text_is_named(tmp_path):
    (tmp_path / "picture.yaml").write_bytes(b"\x89PNG")
    for path in (tmp_path, tmp_path / "picture.yaml"):
        with pytest.raises(ValueError, match=f"{path} is no config file"):
            get_cfg().merge_from_file(str(path))


def test_command_line_overrides():
    with pytest.raises(KeyError, match=r"MODEL\.MASK_ON\.HEAD\. Did you mean MODEL\.MASK_ON "):
        get_cfg().merge_from_list(["MODEL.MASK_ON.HEAD", "1"])
    with pytest.raises(KeyError, match=r"SOLVER\.BASE_LRR.*SOLVER\.BASE_LR "):
        get_cfg().merge_from_list(["SEED", "1", "SOLVER.BASE_LRR", "0.5"])
    with pytest.raises(ValueError, match=r"SOLVER\.BASE_LR"):
        get_cfg().merge_from_list(["SOLVER.BASE_LR", "fast"])
    with pytest.raises(AssertionError, match="odd length"):
        get_cfg().merge_from_list(["SEED"])


def test_renamed_and_deprecated_keys(write):
    cfg = get_cfg()
    cfg.register_renamed_key("OLD", "SEED")
    cfg.register_deprecated_key("GONE")
    cfg.merge_from_file(write("gone.yaml", "GONE: 1"))
    with pytest.raises(KeyError, match="renamed to SEED"):
        cfg.merge_from_file(write("old.yaml", "OLD: 1"))
    with pytest.raises(KeyError, match="unknown config key NEW"):
        cfg.merge_from_file(write("new.yaml", "GONE: 1\nNEW: 1"))


def test_new_keys_where_they_are_allowed(write):
    cfg = get_cfg()
    cfg.EXTRA = CfgNode(new_allowed=True)
    cfg.merge_from_file(write("extra.yaml", "EXTRA: {A: 1, B: {C: 2}}"))
    assert (cfg.EXTRA.A, cfg.EXTRA.B.C) == (1, 2)


def test_global_config():
    cfg = get_cfg()
    cfg.GLOBAL.HACK = 2.5
    set_global_cfg(cfg)
    assert global_cfg.GLOBAL.HACK == 2.5
