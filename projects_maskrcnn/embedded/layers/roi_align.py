"""RoIAlign as a layer. Stands for `detectron2.layers.ROIAlign`."""

from torch import Tensor, nn

from ...ops import roi_align


class ROIAlign(nn.Module):
    """`ops.roi_align` of one map, with fixed settings, which that function explains."""

    def __init__(
        self,
        output_size: int | tuple[int, int],
        spatial_scale: float,
        sampling_ratio: int,
        aligned: bool = True,
    ) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        """(R, C, height, width) of a map (N, C, H, W) and RoIs (R, 5): the image's index, then x0, y0, x1, y1."""
        return roi_align(input, rois, self.output_size, self.spatial_scale, self.sampling_ratio, self.aligned)

    def extra_repr(self) -> str:
        return (
            f"output_size={self.output_size}, spatial_scale={self.spatial_scale}, "
            f"sampling_ratio={self.sampling_ratio}, aligned={self.aligned}"
        )
