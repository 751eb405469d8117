"""Colors that are easy to tell apart: the golden ratio spreads any number of hues evenly."""

import colorsys

import numpy as np

NUM_COLORS = 80
GOLDEN_RATIO = 0.6180339887498949
TONES = ((0.85, 1.0), (0.62, 0.95), (0.95, 0.8))  # saturation and value, in turn

_generator = np.random.default_rng()  # its own, so that drawing leaves the random state of a training alone


def palette_color(index: int) -> tuple[float, float, float]:
    """Color number `index` of an endless palette: RGB in [0, 1]."""
    return colorsys.hsv_to_rgb((0.58 + index * GOLDEN_RATIO) % 1, *TONES[index % len(TONES)])


def colormap(rgb: bool = False, maximum: int = 255) -> np.ndarray:
    """The first 80 colors, float32 (80, 3), RGB or BGR, from 0 to `maximum` (1 or 255)."""
    colors = np.array([palette_color(i) for i in range(NUM_COLORS)], dtype=np.float32) * maximum
    return colors if rgb else colors[:, ::-1]


def random_color(rgb: bool = False, maximum: int = 255) -> np.ndarray:
    """One color of `colormap`, float32 (3,)."""
    return random_colors(1, rgb, maximum)[0]


def random_colors(N: int, rgb: bool = False, maximum: int = 255) -> np.ndarray:
    """`N` different colors of `colormap`, at most 80: float32 (N, 3)."""
    return colormap(rgb, maximum)[_generator.permutation(NUM_COLORS)[:N]]
