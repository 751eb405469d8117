"""Communication between processes; without any, each call answers for a world of one. Stands for `utils.comm`."""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

_local_group: dist.ProcessGroup | None = None


def _initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


def get_world_size() -> int:
    """The number of processes of all machines."""
    return dist.get_world_size() if _initialized() else 1


def get_rank() -> int:
    """This process's number among all."""
    return dist.get_rank() if _initialized() else 0


def create_local_process_group(num_workers_per_machine: int) -> None:
    """Make the group of the processes of this machine known. `launch` calls it, once, in every process.

    Raises:
        ValueError: the processes do not make whole machines.
    """
    global _local_group
    if get_world_size() % num_workers_per_machine:
        raise ValueError(f"{get_world_size()} processes are not a multiple of {num_workers_per_machine} a machine")
    for machine in range(get_world_size() // num_workers_per_machine):
        first = machine * num_workers_per_machine
        ranks = list(range(first, first + num_workers_per_machine))
        group = dist.new_group(ranks)
        if get_rank() in ranks:
            _local_group = group


def get_local_process_group() -> dist.ProcessGroup:
    """The group of the processes of this machine.

    Raises:
        RuntimeError: it was not made.
    """
    if _local_group is None:
        raise RuntimeError(
            "the processes of this machine are not known: start with launch(), "
            "or call create_local_process_group() after init_process_group()"
        )
    return _local_group


def get_local_rank() -> int:
    """This process's number among those of its machine."""
    return dist.get_rank(group=get_local_process_group()) if _initialized() else 0


def get_local_size() -> int:
    """The number of processes of this machine."""
    return dist.get_world_size(group=get_local_process_group()) if _initialized() else 1


def is_main_process() -> bool:
    """Whether this process is the one that writes files."""
    return get_rank() == 0


def synchronize() -> None:
    """Wait for all processes."""
    if get_world_size() > 1:
        dist.barrier(device_ids=[torch.cuda.current_device()] if dist.get_backend() == "nccl" else None)


@functools.cache
def _cpu_group() -> dist.ProcessGroup | None:
    """All processes, over Gloo: Python objects sent over NCCL would take up GPU memory. None is the default group."""
    return dist.new_group(backend="gloo") if dist.get_backend() == "nccl" else None


def all_gather(data: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """`data`, which can be pickled, of every process, in every process."""
    if get_world_size() == 1:
        return [data]
    group = group or _cpu_group()
    gathered = [None] * dist.get_world_size(group)
    dist.all_gather_object(gathered, data, group=group)
    return gathered


def gather(data: Any, dst: int = 0, group: dist.ProcessGroup | None = None) -> list[Any]:
    """`data`, which can be pickled, of every process, in process `dst`; elsewhere an empty list."""
    if get_world_size() == 1:
        return [data]
    group = group or _cpu_group()
    gathered = [None] * dist.get_world_size(group) if get_rank() == dst else None
    dist.gather_object(data, gathered, dst=dst, group=group)
    return gathered or []


def shared_random_seed() -> int:
    """A random number that is the same in all processes."""
    return all_gather(int(np.random.randint(2**31)))[0]


def reduce_dict(input_dict: Mapping[str, torch.Tensor], average: bool = True) -> Mapping[str, torch.Tensor]:
    """Scalars by name, averaged (or summed) over processes; the result is right in process 0 alone."""
    world_size = get_world_size()
    if world_size == 1:
        return input_dict
    names = sorted(input_dict)
    values = torch.stack([input_dict[name].detach() for name in names])
    dist.reduce(values, dst=0)
    if average:
        values /= world_size
    return dict(zip(names, values, strict=True))
