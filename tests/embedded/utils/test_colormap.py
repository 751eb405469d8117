"""The palette: its forms, and that its colors differ."""

import numpy as np
import pytest

from projects_maskrcnn.embedded.utils.colormap import colormap, palette_color, random_color, random_colors


@pytest.mark.parametrize("maximum", [1, 255])
def test_forms(maximum):
    rgb, bgr = colormap(rgb=True, maximum=maximum), colormap(maximum=maximum)
    assert rgb.shape == (80, 3) and rgb.dtype == np.float32
    assert rgb.min() >= 0 and 0.9 * maximum < rgb.max() <= maximum
    np.testing.assert_array_equal(rgb, bgr[:, ::-1])
    np.testing.assert_allclose(rgb[79] / maximum, palette_color(79), rtol=1e-6)
    assert random_color(rgb=True, maximum=maximum).tolist() in rgb.tolist()


def test_colors_differ():
    colors = colormap(rgb=True, maximum=1)
    distances = np.linalg.norm(colors[:, None] - colors[None], axis=2) + 9 * np.eye(80)
    assert distances.min() > 0.05 and distances[:12, :12].min() > 0.2
    assert len(np.unique(random_colors(80), axis=0)) == 80


def test_palette_does_not_end():
    assert len({palette_color(i) for i in range(1000)}) == 1000
