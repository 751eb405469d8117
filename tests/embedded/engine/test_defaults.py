"""Command line, set-up, and a whole training as a config describes it."""

import argparse
import json
import logging

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from projects_maskrcnn.embedded.config import get_cfg
from projects_maskrcnn.embedded.data.build import build_batch_data_loader
from projects_maskrcnn.embedded.data.samplers import TrainingSampler
from projects_maskrcnn.embedded.engine import (
    DefaultPredictor,
    DefaultTrainer,
    default_argument_parser,
    default_setup,
    hooks,
    predictor,
)
from projects_maskrcnn.embedded.evaluation import DatasetEvaluator
from projects_maskrcnn.embedded.utils import comm


class Noisy(nn.Module):
    """A regression whose loss depends on the random generator, and in eval mode a prediction."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.3), nn.Linear(4, 1))

    def forward(self, batch):
        if not self.training:
            return [{"value": value} for value in batch]
        x = torch.stack(batch)
        y = self.layers(x + 0.1 * torch.randn_like(x))
        return {"loss_a": (y - x.sum(1, keepdim=True)).square().mean(), "loss_b": 0.01 * y.abs().mean()}


class Jitter(torch.utils.data.Dataset):
    """Eleven samples with random augmentation."""

    def __len__(self):
        return 11

    def __getitem__(self, index):
        return torch.tensor([float(index), 1.0, float(np.random.rand())]) / 5


class Sum(DatasetEvaluator):
    def reset(self):
        self.total = 0

    def process(self, inputs, outputs):
        self.total += sum(output["value"] for output in outputs)

    def evaluate(self):
        return {"toy": {"sum": self.total}}


class Trainer(DefaultTrainer):
    workers = 0

    @classmethod
    def build_model(cls, cfg):
        return Noisy()

    @classmethod
    def build_train_loader(cls, cfg):
        sampler = TrainingSampler(11, seed=cfg.SEED)
        return build_batch_data_loader(Jitter(), sampler, cfg.SOLVER.IMS_PER_BATCH, num_workers=cls.workers)

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        return [[1, 2], [3]]

    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        return Sum()


@pytest.fixture
def cfg(tmp_path):
    cfg = get_cfg()
    cfg.OUTPUT_DIR = str(tmp_path / "output")
    cfg.SEED = 7
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.DATASETS.TEST = ()
    cfg.SOLVER.IMS_PER_BATCH = 4
    cfg.SOLVER.BASE_LR = 0.05
    cfg.SOLVER.MAX_ITER = 10
    cfg.SOLVER.STEPS = (6,)
    cfg.SOLVER.WARMUP_ITERS = 4
    cfg.SOLVER.CHECKPOINT_PERIOD = 3
    return cfg


def run(cfg, trainer_class=Trainer, resume=False, fail_at=None):
    torch.manual_seed(0)  # of the first weights
    trainer = trainer_class(cfg)
    if fail_at is not None:

        def fail(trainer):
            if trainer.iter == fail_at:
                raise RuntimeError("interrupted")

        trainer.register_hooks([hooks.CallbackHook(before_step=fail)])
    trainer.resume_or_load(resume=resume)
    torch.rand(3)  # what else a process may draw
    trainer.train()
    return trainer


@pytest.mark.parametrize("amp", [False, True])
def test_interrupted_and_resumed_equals_uninterrupted(cfg, tmp_path, amp):
    cfg.SOLVER.AMP.ENABLED = amp
    whole = run(cfg)
    cfg.OUTPUT_DIR = str(tmp_path / "interrupted")
    with pytest.raises(RuntimeError, match="interrupted"):
        run(cfg, fail_at=7)
    resumed = run(cfg, resume=True)

    assert resumed.start_iter == 6  # the last checkpoint was after iteration 5
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    for a, b in zip(whole.optimizer.state.values(), resumed.optimizer.state.values(), strict=True):
        assert torch.equal(a["momentum_buffer"], b["momentum_buffer"])
    assert whole.scheduler.state_dict() == resumed.scheduler.state_dict()
    for name in ("total_loss", "lr"):
        expected = whole.storage.history(name).values()[6:]
        assert resumed.storage.history(name).values() == expected


def test_the_stream_does_not_depend_on_the_workers(cfg, tmp_path):
    class WithWorkers(Trainer):
        workers = 2

    first = run(cfg)
    cfg.OUTPUT_DIR = str(tmp_path / "workers")
    second = run(cfg, WithWorkers)
    assert torch.equal(first.model.layers[0].weight, second.model.layers[0].weight)


def test_seeds_differ(cfg):
    first = run(cfg)
    cfg.SEED = 8
    assert not torch.equal(first.model.layers[0].weight, run(cfg).model.layers[0].weight)


def test_files_and_metrics(cfg, tmp_path):
    cfg.DATASETS.TEST = ("toy_set",)
    cfg.TEST.EVAL_PERIOD = 4
    cfg.TEST.EXPECTED_RESULTS = [["toy", "sum", 6, 0.1]]
    trainer = Trainer(cfg)
    results = trainer.train()
    assert results == {"toy": {"sum": 6}}

    output = tmp_path / "output"
    names = {path.name for path in output.iterdir()}
    assert {"metrics.json", "last_checkpoint", "model_0000002.pth", "model_final.pth"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    lines = {line["iteration"]: line for line in map(json.loads, (output / "metrics.json").read_text().splitlines())}
    assert lines[9].keys() >= {"total_loss", "loss_a", "loss_b", "lr", "time", "data_time", "eta_seconds"}
    assert lines[9]["lr"] == pytest.approx(0.05 * 0.1)  # after the step at 6
    assert lines[10]["toy/sum"] == 6
    losses = [value for value, _ in trainer.storage.history("loss_a").values()]
    assert lines[9]["loss_a"] == pytest.approx(np.median(losses))
    rates = [value for value, _ in trainer.storage.history("lr").values()]
    factor = cfg.SOLVER.WARMUP_FACTOR
    warmup = [0.05 * (factor + (1 - factor) * i / 4) for i in range(4)]
    assert rates == pytest.approx(warmup + 2 * [0.05] + 4 * [0.005])


def test_a_wrong_result_fails_the_run(cfg):
    cfg.DATASETS.TEST = ("toy_set",)
    cfg.TEST.EXPECTED_RESULTS = [["toy", "sum", 7, 0.1]]
    with pytest.raises(SystemExit):
        run(cfg)


def test_evaluation(cfg):
    model = Noisy()
    cfg.DATASETS.TEST = ("one", "two")
    assert Trainer.test(cfg, model) == {"one": {"toy": {"sum": 6}}, "two": {"toy": {"sum": 6}}}
    assert model.training
    with pytest.raises(ValueError, match="1 evaluators for 2 datasets"):
        Trainer.test(cfg, model, Sum())

    class NoEvaluator(Trainer):
        build_evaluator = DefaultTrainer.build_evaluator

    assert NoEvaluator.test(cfg, model) == {"one": {}, "two": {}}  # reported, so that a training is not lost


def test_metrics_of_an_interrupted_run_are_written(cfg, tmp_path):
    with pytest.raises(RuntimeError, match="interrupted"):
        run(cfg, fail_at=5)
    lines = map(json.loads, (tmp_path / "output" / "metrics.json").read_text().splitlines())
    assert [line["iteration"] for line in lines if "total_loss" in line] == [4]


def test_precise_bn_is_a_hook_where_it_can_be(cfg):
    cfg.TEST.PRECISE_BN.ENABLED = True
    cfg.TEST.PRECISE_BN.NUM_ITER = 3
    assert any(isinstance(hook, hooks.PreciseBN) for hook in Trainer(cfg).build_hooks())


def test_the_config_for_another_number_of_processes(cfg):
    solver = cfg.SOLVER
    solver.REFERENCE_WORLD_SIZE, solver.IMS_PER_BATCH, solver.BASE_LR = 8, 16, 0.1
    solver.MAX_ITER, solver.STEPS, solver.CHECKPOINT_PERIOD, solver.WARMUP_ITERS = 5000, (4000,), 1000, 100
    cfg.TEST.EVAL_PERIOD = 500
    cfg.freeze()
    scaled = DefaultTrainer.auto_scale_workers(cfg, 16)
    assert scaled.is_frozen() and cfg.SOLVER.MAX_ITER == 5000
    s = scaled.SOLVER
    assert (s.REFERENCE_WORLD_SIZE, s.IMS_PER_BATCH, s.BASE_LR) == (16, 32, 0.2)
    assert (s.MAX_ITER, s.STEPS, s.CHECKPOINT_PERIOD, s.WARMUP_ITERS) == (2500, (2000,), 500, 50)
    assert scaled.TEST.EVAL_PERIOD == 250
    assert DefaultTrainer.auto_scale_workers(cfg, 8) is cfg
    cfg.defrost()
    cfg.SOLVER.IMS_PER_BATCH = 12
    with pytest.raises(ValueError, match="IMS_PER_BATCH 12"):
        DefaultTrainer.auto_scale_workers(cfg, 4)


def test_command_line():
    parser = default_argument_parser()
    args = parser.parse_args([])
    assert (args.config_file, args.resume, args.eval_only, args.opts) == ("", False, False, [])
    assert (args.num_gpus, args.num_machines, args.machine_rank) == (1, 1, 0)
    assert args.dist_url.startswith("tcp://127.0.0.1:") and args.dist_url == parser.parse_args([]).dist_url
    line = "--config-file a.yaml --resume --eval-only --num-gpus 8 --num-machines 2 --machine-rank 1 --dist-url auto"
    args = parser.parse_args([*line.split(), "SOLVER.BASE_LR", "0.1"])
    assert vars(args) == {
        "config_file": "a.yaml", "resume": True, "eval_only": True, "num_gpus": 8, "num_machines": 2,
        "machine_rank": 1, "dist_url": "auto", "opts": ["SOLVER.BASE_LR", "0.1"],
    }  # fmt: skip
    assert default_argument_parser("mine").epilog == "mine"


@pytest.fixture
def fresh_loggers():
    """Takes away, before and after, what other tests and this one made the loggers write to."""

    def clear():
        for name in ("projects_maskrcnn", "fvcore"):
            for handler in logging.getLogger(name).handlers[:]:
                logging.getLogger(name).removeHandler(handler)

    clear()
    yield
    clear()


def test_setup(cfg, tmp_path, fresh_loggers):
    config_file = tmp_path / "given.yaml"
    config_file.write_text("SEED: 7  # as given\n")
    cfg.CUDNN_BENCHMARK = True
    before = torch.backends.cudnn.benchmark
    try:
        default_setup(cfg, argparse.Namespace(config_file=str(config_file), eval_only=True))
        assert torch.backends.cudnn.benchmark == before
        first = torch.rand(())
        default_setup(cfg, argparse.Namespace(config_file=""))
        assert torch.backends.cudnn.benchmark
    finally:
        torch.backends.cudnn.benchmark = before
    assert torch.rand(()) == first == torch.rand((), generator=torch.Generator().manual_seed(7))

    assert yaml.safe_load((tmp_path / "output" / "config.yaml").read_text()) == yaml.safe_load(cfg.dump())
    log = (tmp_path / "output" / "log.txt").read_text()
    for part in ("World size: 1", torch.__version__, "eval_only=True", "SEED: 7  # as given", "IMS_PER_BATCH: 4"):
        assert part in log, part


def test_setup_seeds_each_process_by_itself(cfg, fresh_loggers, monkeypatch):
    monkeypatch.setattr(comm, "get_rank", lambda: 2)
    default_setup(cfg, argparse.Namespace())
    assert torch.rand(()) == torch.rand((), generator=torch.Generator().manual_seed(7 + 2))


@pytest.mark.parametrize(("precision", "tf32"), [("high", True), ("highest", False)])
def test_setup_of_the_precision(cfg, fresh_loggers, precision, tf32):
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cudnn.allow_tf32 = not tf32
        cfg.FLOAT32_PRECISION = precision
        default_setup(cfg, argparse.Namespace())
        assert torch.get_float32_matmul_precision() == precision and torch.backends.cudnn.allow_tf32 == tf32
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_without_cuda(cfg, fresh_loggers):
    cfg.MODEL.DEVICE = "cuda"
    with pytest.raises(RuntimeError, match="set MODEL.DEVICE cpu"):
        default_setup(cfg, argparse.Namespace())


@pytest.mark.parametrize("key, value", [("MODEL.DEVICE", "gpu"), ("OUTPUT_DIR", __file__)])
def test_setup_names_what_cannot_be_used(cfg, fresh_loggers, key, value):
    cfg.merge_from_list([key, value])
    with pytest.raises((RuntimeError, OSError), match=f"{key} .*{value}.*set"):
        default_setup(cfg, argparse.Namespace())


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_predictor(cfg, tmp_path, monkeypatch, image_format):
    class Echo(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, inputs):
            assert not self.training and not torch.is_grad_enabled()
            return [{**inputs[0], "weight": self.weight}]

    monkeypatch.setattr(predictor, "build_model", lambda cfg: Echo())
    cfg.MODEL.WEIGHTS = str(tmp_path / "weights.pth")
    torch.save({"weight": torch.ones(1)}, cfg.MODEL.WEIGHTS)
    cfg.INPUT.FORMAT, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = image_format, 8, 100
    image = np.zeros((4, 6, 3), np.uint8)
    image[..., 0] = 200  # blue, as cv2 has it
    output = DefaultPredictor(cfg)(image)
    assert output["weight"] == 1 and (output["height"], output["width"]) == (4, 6)
    assert output["image"].shape == (3, 8, 12) and output["image"].dtype == torch.float32
    assert output["image"].mean((1, 2)).tolist() == ([0, 0, 200] if image_format == "RGB" else [200, 0, 0])
    predict = DefaultPredictor(cfg)
    assert predict(image.astype(np.float32))["image"].mean() == output["image"].mean()
    with pytest.raises(ValueError, match="cv2.imread"):
        predict(None)
    for shape in ((4, 6), (4, 6, 4), (0, 6, 3)):
        with pytest.raises(ValueError, match="got .*{}.*cvtColor".format(", ".join(map(str, shape)))):
            predict(np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match="got uint16: scale it"):
        predict(np.zeros((4, 6, 3), np.uint16))
