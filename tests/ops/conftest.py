"""RoIAlign and RoIWarp by their definition."""

import math

import pytest
import torch
import torch.nn.functional as F


def _edge(value, rounding):
    return math.copysign(math.floor(abs(value) + 0.5), value) if rounding else value


@pytest.fixture(scope="session")
def by_samples():
    """A function to the mean or the greatest of each bin's bilinear samples, in float64; those off the map are zero."""

    def by_samples(x, rois, bins, scale, sampling_ratio, aligned, mode="average", rounding=False):
        """Args: `rounding`: of the RoI to whole cells, as RoIWarp does."""
        x, rois = x.double(), rois.double()
        length = torch.tensor(x.shape[2:], dtype=torch.float64)
        out = []
        for image, *corners in rois.tolist():
            if not all(math.isfinite(c) for c in corners):
                out.append(x.new_zeros(x.shape[1], *bins))
                continue
            x0, y0, x1, y1 = (_edge(c * scale, rounding) - (0.5 if aligned else 0.0) for c in corners)
            points, counts = [], []
            for start, end, n in ((y0, y1, bins[0]), (x0, x1, bins[1])):
                size = (max(end - start, 1.0) if rounding or not aligned else end - start) / n
                count = sampling_ratio or max(math.ceil(size), 0)
                points.append([start + i * size + (k + 0.5) * size / count for i in range(n) for k in range(count)])
                counts.append(count)
            if 0 in counts:
                out.append(x.new_zeros(x.shape[1], *bins))
                continue
            points = [torch.tensor(p, dtype=torch.float64) for p in points]
            grid = torch.stack(torch.meshgrid(*points, indexing="ij"), -1)
            on_map = ((grid >= -1) & (grid <= length)).all(-1)
            unit = (2 * grid / (length - 1) - 1).flip(-1)
            samples = F.grid_sample(x[[int(image)]], unit[None], padding_mode="border", align_corners=True)[0] * on_map
            out.append((F.avg_pool2d if mode == "average" else F.max_pool2d)(samples, counts))
        return torch.stack(out)

    return by_samples
