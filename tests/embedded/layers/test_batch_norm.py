"""Normalisation layers against torch's own, and the names by which configs choose them."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from projects_maskrcnn.embedded.layers import BatchNorm2d, CNNBlockBase, FrozenBatchNorm2d, NaiveSyncBatchNorm, get_norm


def trained_batch_norm(channels=5, eps=1e-5):
    generator = torch.Generator().manual_seed(0)
    norm = nn.BatchNorm2d(channels, eps=eps)
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(tensor, generator=generator)
    nn.init.uniform_(norm.running_var, 0.5, 2, generator=generator)
    return norm


def test_a_new_frozen_batch_norm_changes_nothing():
    x = torch.randn(2, 3, 4, 4)
    assert torch.allclose(FrozenBatchNorm2d(3)(x), x, atol=1e-6)
    assert torch.allclose(FrozenBatchNorm2d(3, eps=0.5)(x), x, atol=1e-6)
    assert repr(FrozenBatchNorm2d(3, eps=0.5)) == "FrozenBatchNorm2d(num_features=3, eps=0.5)"


def test_frozen_batch_norm_learns_nothing_and_hands_gradients_on():
    norm = trained_batch_norm(eps=1e-2)
    frozen = FrozenBatchNorm2d.convert_frozen_batchnorm(norm).train()
    before = {name: value.clone() for name, value in frozen.state_dict().items()}
    x = torch.randn(2, 5, 3, 4, requires_grad=True)
    frozen(x).sum().backward()
    slope = norm.weight / (norm.running_var + 1e-2).sqrt()
    assert torch.allclose(x.grad, slope[:, None, None].expand_as(x), atol=1e-6)
    assert not list(frozen.parameters())
    assert all(torch.equal(before[name], value) for name, value in frozen.state_dict().items())


@pytest.mark.parametrize("requires_grad", [False, True])
def test_frozen_batch_norm_keeps_half_precision(requires_grad):
    x = torch.randn(2, 5, 3, 4).half().requires_grad_(requires_grad)
    assert FrozenBatchNorm2d(5)(x).dtype == torch.float16


def test_frozen_batch_norm_loads_what_batch_norm_saved():
    norm, frozen = trained_batch_norm().eval(), FrozenBatchNorm2d(5)
    result = frozen.load_state_dict(norm.state_dict(), strict=False)
    assert result.unexpected_keys == ["num_batches_tracked"] and not result.missing_keys
    x = torch.randn(2, 5, 3, 4)
    assert torch.allclose(frozen(x), norm(x), atol=1e-6)
    # affine parameters alone, as in weights whose statistics were folded into them
    other = FrozenBatchNorm2d(5)
    affine = {name: norm.state_dict()[name] for name in ("weight", "bias")}
    assert other.load_state_dict(affine, strict=False).missing_keys == ["running_mean", "running_var"]
    expected = x * norm.weight[:, None, None] + norm.bias[:, None, None]
    assert torch.allclose(other(x), expected, atol=1e-5)


def test_every_batch_norm_of_a_network_is_frozen():
    network = nn.Sequential(
        nn.Conv2d(3, 4, 1),
        nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()),
        nn.SyncBatchNorm(4),
        nn.BatchNorm2d(4, affine=False),
        nn.GroupNorm(2, 4),
    )
    assert FrozenBatchNorm2d.convert_frozen_batchnorm(network) is network
    kinds = [type(m) for m in network.modules() if not list(m.children())]
    assert kinds == [nn.Conv2d, FrozenBatchNorm2d, nn.ReLU, FrozenBatchNorm2d, FrozenBatchNorm2d, nn.GroupNorm]
    assert network[0].weight.requires_grad


def test_a_frozen_norm_is_a_copy():
    norm = trained_batch_norm()
    frozen = FrozenBatchNorm2d.convert_frozen_batchnorm(norm)
    mean = frozen.running_mean.clone()
    norm.running_mean += 1
    assert torch.equal(frozen.running_mean, mean)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("BN", nn.BatchNorm2d),
        ("FrozenBN", FrozenBatchNorm2d),
        ("GN", nn.GroupNorm),
        ("naiveSyncBN", NaiveSyncBatchNorm),
        ("SyncBN", nn.SyncBatchNorm if torch.cuda.is_available() else NaiveSyncBatchNorm),
        (nn.InstanceNorm2d, nn.InstanceNorm2d),
        (lambda channels: nn.GroupNorm(4, channels), nn.GroupNorm),
    ],
)
def test_norm_by_name(name, kind):
    norm = get_norm(name, 64)
    assert type(norm) is kind
    assert 64 in (getattr(norm, "num_features", None), getattr(norm, "num_channels", None))


@pytest.mark.parametrize("nothing", ["", None])
def test_no_norm(nothing):
    assert get_norm(nothing, 64) is None


def test_an_unknown_norm_is_named_with_those_there_are():
    with pytest.raises(KeyError, match="norm 'bn' is unknown; known are BN, SyncBN, naiveSyncBN, FrozenBN, GN"):
        get_norm("bn", 8)
    assert BatchNorm2d is nn.BatchNorm2d


def test_a_frozen_block():
    class Block(CNNBlockBase):
        def __init__(self):
            super().__init__(3, 8, stride=2)
            self.conv = nn.Conv2d(3, 8, 3, stride=2)
            self.norm = nn.BatchNorm2d(8)

    block = Block()
    assert (block.in_channels, block.out_channels, block.stride) == (3, 8, 2)
    assert block.freeze() is block
    assert not any(p.requires_grad for p in block.parameters())
    assert isinstance(block.norm, FrozenBatchNorm2d)


# A script of its own, since new processes have to import the function that they run.
TWO_PROCESSES = """
import sys
import torch
from projects_maskrcnn.embedded.engine import launch
from projects_maskrcnn.embedded.layers import NaiveSyncBatchNorm
from projects_maskrcnn.embedded.utils import comm


def main(folder):
    case = torch.load(f"{folder}/case.pth")
    rank = comm.get_rank()
    norm = NaiveSyncBatchNorm(3)
    norm.load_state_dict(case["state"])
    x = case["x"][rank].requires_grad_()
    y = norm(x)
    (y * case["slope"][rank]).sum().backward()
    half = norm(x.detach().half() * 300)  # whose squares float16 does not hold
    torch.save({"y": y.detach(), "grad": x.grad, "half": half.detach()}, f"{folder}/{rank}.pth")


if __name__ == "__main__":
    launch(main, 2, dist_url="auto", args=(sys.argv[1],))
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="launch gives each process a GPU of its own")
def test_two_processes_normalise_their_images_together(tmp_path, root):
    norm = trained_batch_norm(3).train()
    x, slope = torch.randn(2, 2, 3, 4, 5), torch.randn(2, 2, 3, 4, 5)
    torch.save({"x": x, "slope": slope, "state": norm.state_dict()}, tmp_path / "case.pth")
    (tmp_path / "script.py").write_text(TWO_PROCESSES)
    subprocess.run(
        [sys.executable, str(tmp_path / "script.py"), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=120,
    )
    joint = x.flatten(0, 1).requires_grad_()
    y = norm(joint)
    (y * slope.flatten(0, 1)).sum().backward()
    outputs = [torch.load(tmp_path / f"{rank}.pth") for rank in range(2)]
    assert torch.allclose(torch.cat([o["y"] for o in outputs]), y, atol=1e-5)
    assert torch.allclose(torch.cat([o["grad"] for o in outputs]), joint.grad, atol=1e-5)
    half = torch.cat([o["half"] for o in outputs])
    assert half.dtype == torch.float16
    assert torch.allclose(half.float(), norm(x.flatten(0, 1) * 300), rtol=1e-2, atol=1e-2)


def test_one_process_has_torchs_batch_norm():
    torch_norm, norm = trained_batch_norm(), NaiveSyncBatchNorm(5)
    norm.load_state_dict(torch_norm.state_dict())
    x = torch.randn(2, 5, 3, 4)
    for training in (True, False):
        assert torch.equal(norm.train(training)(x), torch_norm.train(training)(x))
    assert torch.equal(norm.running_var, torch_norm.running_var)
