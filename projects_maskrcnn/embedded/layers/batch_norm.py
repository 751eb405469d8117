"""Normalisation layers and the names by which configs choose them."""

from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from fvcore.nn.distributed import differentiable_all_reduce
from torch import Tensor, nn

BatchNorm2d = nn.BatchNorm2d


class FrozenBatchNorm2d(nn.Module):
    """Batch normalisation with fixed statistics and affine parameters, all of them buffers.

    Stands for Detectron2's `FrozenBatchNorm2d`. Starts as the identity (up to `eps`).
    """

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features) - eps)

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            # one multiplication and one addition: autograd then keeps no statistics' gradients
            scale = self.weight * (self.running_var + self.eps).rsqrt()
            bias = self.bias - self.running_mean * scale
            return x * scale.to(x.dtype)[:, None, None] + bias.to(x.dtype)[:, None, None]
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )

    def extra_repr(self) -> str:
        return f"num_features={self.num_features}, eps={self.eps}"

    @classmethod
    def convert_frozen_batchnorm(cls, module: nn.Module) -> nn.Module:
        """`module` with every batch norm in it replaced by a frozen one of the same values."""
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            frozen = cls(module.num_features, module.eps)
            if module.affine:
                frozen.weight.copy_(module.weight.detach())
                frozen.bias.copy_(module.bias.detach())
            frozen.running_mean.copy_(module.running_mean)
            frozen.running_var.copy_(module.running_var)
            return frozen
        for name, child in module.named_children():
            setattr(module, name, cls.convert_frozen_batchnorm(child))
        return module


class NaiveSyncBatchNorm(nn.BatchNorm2d):
    """Batch norm over the images of all processes, each process counting the same. Also on CPU processes.

    Stands for Detectron2's `NaiveSyncBatchNorm` with the default `stats_mode`.
    """

    def forward(self, x: Tensor) -> Tensor:
        world_size = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        if world_size == 1 or not self.training:
            return super().forward(x)
        values = x.to(self.weight.dtype)  # squares overflow in half precision
        moments = torch.cat([values.mean((0, 2, 3)), values.square().mean((0, 2, 3))])
        mean, mean_square = (differentiable_all_reduce(moments) / world_size).chunk(2)
        var = mean_square - mean * mean
        with torch.no_grad():
            self.running_mean += self.momentum * (mean - self.running_mean)
            self.running_var += self.momentum * (var - self.running_var)
        scale = self.weight * (var + self.eps).rsqrt()
        return (values * scale[:, None, None] + (self.bias - mean * scale)[:, None, None]).to(x.dtype)


def _group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(32, channels)


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "BN": BatchNorm2d,
    "SyncBN": nn.SyncBatchNorm,
    "naiveSyncBN": NaiveSyncBatchNorm,
    "FrozenBN": FrozenBatchNorm2d,
    "GN": _group_norm,
}


def get_norm(norm: str | Callable[[int], nn.Module] | None, out_channels: int) -> nn.Module | None:
    """The normalisation layer called `norm`, or None for an empty name. Stands for Detectron2's `get_norm`.

    Raises:
        KeyError: the name is none of `NORMS`.
    """
    if not norm:
        return None
    if isinstance(norm, str):
        if norm not in NORMS:
            raise KeyError(f"norm {norm!r} is unknown; known are {', '.join(NORMS)} and '' for none")
        if norm == "SyncBN" and not torch.cuda.is_available():
            norm = "naiveSyncBN"  # torch's own runs on CUDA alone; names and values are the same
        norm = NORMS[norm]
    return norm(out_channels)
