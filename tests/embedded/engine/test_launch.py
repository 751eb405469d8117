"""Several processes: how they are started, and how they communicate."""

import json
import os
import subprocess
import sys

import pytest
import torch

from projects_maskrcnn.embedded.engine import launch

# A script of its own, since new processes have to import the function that they run.
SCRIPT = """
import json, sys
import torch
from projects_maskrcnn.embedded.engine import SimpleTrainer, create_ddp_model, launch
from projects_maskrcnn.embedded.utils import comm


class Distance(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return {"loss": (self.w - x) ** 2, "other": 0 * self.w + x}


def main(folder):
    rank = comm.get_rank()
    comm.synchronize()
    reduced = comm.reduce_dict({"b": torch.tensor(float(rank)), "a": torch.tensor(10.0)})
    total = comm.reduce_dict({"a": torch.tensor(rank + 1.0)}, average=False)
    model = create_ddp_model(Distance(), broadcast_buffers=False)
    trainer = SimpleTrainer(model, [torch.tensor(rank + 1.0)], torch.optim.SGD(model.parameters(), lr=0.25))
    trainer.train(0, 1)
    report = {
        "world": [comm.get_world_size(), comm.get_local_size(), rank, comm.get_local_rank(), comm.is_main_process()],
        "all": comm.all_gather({"rank": rank}),
        "at 0": comm.gather(rank),
        "at 1": comm.gather(rank, dst=1),
        "local": comm.all_gather(rank, group=comm.get_local_process_group()),
        "seed": comm.shared_random_seed(),
        "reduced": {name: value.item() for name, value in reduced.items()},
        "total": total["a"].item(),
        "weight": model.module.w.item(),
        "metrics": {name: value for name, (value, _) in trainer.storage.latest().items() if "time" not in name},
    }
    with open(f"{folder}/{rank}.json", "w") as file:
        json.dump(report, file)


if __name__ == "__main__":
    launch(main, 2, dist_url="auto", args=(sys.argv[1],))
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests the processes of a machine without GPUs")
def test_two_processes(tmp_path, root):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=120,
    )
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first["world"] == [2, 2, 0, 0, True] and second["world"] == [2, 2, 1, 1, False]
    assert first["all"] == second["all"] == [{"rank": 0}, {"rank": 1}]
    assert first["at 0"] == second["at 1"] == first["local"] == second["local"] == [0, 1]
    assert first["at 1"] == second["at 0"] == []
    assert first["seed"] == second["seed"]
    assert first["reduced"] == {"a": 10, "b": 0.5}
    assert first["total"] == 3
    # gradients 2 (w - x) are averaged: w = 0 + 0.25 * (2 + 4) / 2
    assert first["weight"] == second["weight"] == 0.75
    assert first["metrics"] == {"total_loss": 4.0, "loss": 2.5, "other": 1.5} and second["metrics"] == {}


def test_one_process_is_this_one():
    assert launch(lambda a, b: (a, b, os.getpid()), 1, args=(1, 2)) == (1, 2, os.getpid())


def test_more_gpus_than_there_are(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="4 GPUs asked for .*this machine has 2"):
        launch(print, 4)


@pytest.mark.parametrize("rank", [-1, 2])
def test_a_machine_that_there_is_not(rank):
    with pytest.raises(ValueError, match=f"--machine-rank {rank} is not within 0 to 1"):
        launch(print, 1, num_machines=2, machine_rank=rank, dist_url="tcp://127.0.0.1:1")


def test_several_machines_need_an_address():
    with pytest.raises(ValueError, match="tcp://"):
        launch(print, 1, num_machines=2, dist_url="auto")
