"""Communication without other processes; with them, see the tests of `launch`."""

import torch

from projects_maskrcnn.embedded.utils import comm


def test_a_world_of_one():
    assert (comm.get_world_size(), comm.get_rank(), comm.get_local_size(), comm.get_local_rank()) == (1, 0, 1, 0)
    assert comm.is_main_process()
    comm.synchronize()
    assert comm.gather("x") == comm.all_gather("x") == ["x"]
    assert comm.reduce_dict({"a": torch.tensor(3.0)}) == {"a": 3}
    assert 0 <= comm.shared_random_seed() < 2**31
