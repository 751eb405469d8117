"""Several processes on one or several machines. Stands for `detectron2.engine.launch`."""

import atexit
import os
import sys
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ..utils import comm

DEFAULT_TIMEOUT = timedelta(minutes=30)


def launch(
    main_func: Callable,
    num_gpus_per_machine: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str | None = None,
    args: tuple = (),
    timeout: timedelta = DEFAULT_TIMEOUT,
) -> Any:
    """Run `main_func(*args)` in a process for each GPU, joined over NCCL; on machines without GPUs, over Gloo.

    Args:
        num_gpus_per_machine: processes of this machine. Without CUDA that many processes share the CPU.
        machine_rank: this machine's number, from 0.
        dist_url: where the processes meet, such as "tcp://10.0.0.1:29500"; "auto" on a single machine.
        timeout: how long they wait for each other.

    Returns:
        what `main_func` returns, where there is a single process.

    Raises:
        ValueError: this machine has fewer GPUs, there is no such machine, or `dist_url` is "auto" with several.
    """
    if num_machines < 1 or num_gpus_per_machine < 0:
        raise ValueError(f"--num-machines {num_machines} and --num-gpus {num_gpus_per_machine}: give 1 or more")
    if not 0 <= machine_rank < num_machines:
        raise ValueError(f"--machine-rank {machine_rank} is not within 0 to {num_machines - 1} (--num-machines - 1)")
    world_size = num_machines * num_gpus_per_machine
    if world_size <= 1:
        return main_func(*args)
    if torch.cuda.is_available() and torch.cuda.device_count() < num_gpus_per_machine:
        raise ValueError(
            f"{num_gpus_per_machine} GPUs asked for (--num-gpus), but this machine has {torch.cuda.device_count()}"
        )
    if dist_url not in (None, "auto") and "://" not in dist_url:
        raise ValueError(f"--dist-url {dist_url} is no address: give tcp://HOST:PORT")
    if dist_url in (None, "auto") and num_machines > 1:
        raise ValueError("--dist-url auto works on one machine; give the address of machine 0, tcp://HOST:PORT")
    with tempfile.TemporaryDirectory() as folder:
        if dist_url in (None, "auto"):  # a file cannot be in use by another, as a port can
            dist_url = Path(folder, "store").as_uri()
        mp.start_processes(
            _worker,
            nprocs=num_gpus_per_machine,
            args=(main_func, world_size, num_gpus_per_machine, machine_rank, dist_url, args, timeout),
            start_method="spawn",
        )
    return None


def _worker(
    local_rank: int,
    main_func: Callable,
    world_size: int,
    num_gpus_per_machine: int,
    machine_rank: int,
    dist_url: str,
    args: tuple,
    timeout: timedelta,
) -> None:
    has_gpus = torch.cuda.is_available()
    if has_gpus:
        torch.cuda.set_device(local_rank)
    else:
        torch.set_num_threads(max(1, torch.get_num_threads() // num_gpus_per_machine))
    dist.init_process_group(
        backend="nccl" if has_gpus else "gloo",
        init_method=dist_url,
        world_size=world_size,
        rank=machine_rank * num_gpus_per_machine + local_rank,
        timeout=timeout,
    )
    comm.create_local_process_group(num_gpus_per_machine)
    comm.synchronize()
    main_func(*args)
    # Not after an error: this would wait for processes that wait for this one. All leave together, since the
    # others depend on the one where they meet.
    comm.synchronize()
    dist.destroy_process_group()
    # Without Python's own shutdown: it ends the groups' threads where they are, and one that is just letting go of a
    # tensor then aborts the process.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
