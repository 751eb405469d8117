"""What the paper claims of its tables' rows, and whether figures of one's own bear it out."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

Results = Mapping[str, Sequence[Mapping[str, float]]]
"""For each row, named "table/row", the figures of each seed by "task/metric"."""

STUDENT_95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)
"""Two-sided 95 % quantiles of Student's t with 1, 2, ... degrees of freedom; the last serves for more."""

ALIKE = 1.0
"""AP within which the paper calls two rows alike: its own such differences are 0.6 at most."""


@dataclass(frozen=True)
class Claim:
    """An effect: the sum over rows and metrics of weight times figure is above 0, or about 0.

    Attributes:
        text: what the paper says.
        rows: the weight of each row, named "table/row".
        metrics: the weight of each "task/metric".
        alike: the sum is claimed to lie within `ALIKE` of 0, not above 0.
    """

    text: str
    rows: Mapping[str, float]
    metrics: Mapping[str, float] = field(default_factory=lambda: {"segm/AP": 1})
    alike: bool = False

    def tables(self) -> set[str]:
        """The tables whose rows it compares."""
        return {row.split("/")[0] for row in self.rows}

    def effect(self, figures: Mapping[str, Mapping[str, float]]) -> float:
        """The sum, of one set of figures for each row; NaN where one is missing."""
        return sum(weight * self._figure(figures.get(row, {})) for row, weight in self.rows.items())

    def _figure(self, figures: Mapping[str, float]) -> float:
        return sum(weight * figures.get(metric, math.nan) for metric, weight in self.metrics.items())


@dataclass(frozen=True)
class Judgement:
    """What runs say of a claim.

    Attributes:
        verdict: "shows"; "does not show": it is clearly otherwise; "within the noise": these runs cannot tell.
        effect: the mean over seeds.
        seeds: the effect of each seed that all rows have.
        noise: half of the 95 % interval around `effect`, infinite with one seed.
    """

    verdict: str
    effect: float
    seeds: tuple[float, ...]
    noise: float


def judge(claim: Claim, results: Results) -> Judgement | None:
    """Hold a claim against `results`, or None where one of its rows has no run with its metrics.

    The noise of a run is its standard deviation over seeds, pooled over all rows of the claim's tables: two or three
    seeds of one row alone say little of it. From it follows the 95 % interval of the effect.
    """
    figures = {
        row: [value for run in runs if not math.isnan(value := claim._figure(run))]
        for row, runs in results.items()
        if row.split("/")[0] in claim.tables()
    }
    if not all(figures.get(row) for row in claim.rows):
        return None
    effect = sum(weight * float(np.mean(figures[row])) for row, weight in claim.rows.items())
    shared = min(len(figures[row]) for row in claim.rows)
    seeds = tuple(sum(weight * figures[row][i] for row, weight in claim.rows.items()) for i in range(shared))
    noise = _run_noise(figures.values()) * math.sqrt(sum(w**2 / len(figures[row]) for row, w in claim.rows.items()))
    if claim.alike:
        shows, refuted = abs(effect) + noise <= ALIKE, abs(effect) - noise > ALIKE
    else:
        shows, refuted = effect - noise > 0, effect + noise < 0
    verdict = "shows" if shows else "does not show" if refuted else "within the noise"
    return Judgement(verdict, effect, seeds, noise)


def _run_noise(rows: Iterable[Sequence[float]]) -> float:
    """Half of the 95 % interval around the figure of one run; infinite where no row has two seeds."""
    rows = [np.asarray(values) for values in rows if values]
    freedom = sum(len(values) - 1 for values in rows)
    if freedom == 0:
        return math.inf
    variance = sum(((values - values.mean()) ** 2).sum() for values in rows) / freedom
    return STUDENT_95[min(freedom, len(STUDENT_95)) - 1] * math.sqrt(variance)


def _more(text: str, better: str, worse: str, *tasks: str) -> list[Claim]:
    """`better` has more AP than `worse`, in each of `tasks`."""
    return [Claim(text, {better: 1, worse: -1}, {f"{task}/AP": 1}) for task in tasks or ("segm",)]


def _more_at_75(text: str, better: str, worse: str, task: str = "segm") -> Claim:
    """`better` gains more AP75 than AP50 over `worse`."""
    return Claim(text, {better: 1, worse: -1}, {f"{task}/AP75": 1, f"{task}/AP50": -1})


CLAIMS: dict[str, list[Claim]] = {
    "2a": [
        *_more("FPN over C4 (ResNet-50)", "2a/R_50_FPN", "2a/R_50_C4"),
        *_more("FPN over C4 (ResNet-101)", "2a/R_101_FPN", "2a/R_101_C4"),
        *_more("Deeper is better (FPN)", "2a/R_101_FPN", "2a/R_50_FPN"),
    ],
    "2b": [
        *_more("Sigmoid over softmax: classes need not compete", "2b/sigmoid", "2b/softmax"),
        Claim("Class-agnostic masks are alike", {"2b/class_agnostic": 1, "2b/sigmoid": -1}, alike=True),
    ],
    "2c": [
        *_more("RoIAlign over RoIPool", "2c/roi_align_ave", "2c/roi_pool"),
        _more_at_75("RoIAlign over RoIPool: more AP75 than AP50", "2c/roi_align_ave", "2c/roi_pool"),
        *_more("Alignment matters: RoIAlign over RoIWarp", "2c/roi_align_ave", "2c/roi_warp_ave"),
        Claim(
            "Bilinear sampling alone does not: RoIWarp is like RoIPool",
            {"2c/roi_warp_ave": 1, "2c/roi_pool": -1},
            alike=True,
        ),
        Claim("Max or average, RoIAlign is alike", {"2c/roi_align_max": 1, "2c/roi_align_ave": -1}, alike=True),
    ],
    "2d": [
        *_more("RoIAlign over RoIPool at stride 32", "2d/roi_align", "2d/roi_pool", "segm", "bbox"),
        _more_at_75("RoIAlign over RoIPool: more AP75 than AP50", "2d/roi_align", "2d/roi_pool"),
        Claim(
            "RoIAlign over RoIPool: more at stride 32 than at 16",
            {"2d/roi_align": 1, "2d/roi_pool": -1, "2c/roi_align_ave": -1, "2c/roi_pool": 1},
        ),
    ],
    "2e": [
        *_more("FCN over MLP", "2e/fcn", "2e/mlp_2_hidden_layers"),
        *_more("FCN over a deeper MLP", "2e/fcn", "2e/mlp_3_hidden_layers"),
        Claim("A deeper MLP is alike", {"2e/mlp_3_hidden_layers": 1, "2e/mlp_2_hidden_layers": -1}, alike=True),
    ],
    "3": [
        *_more(
            "RoIAlign over RoIPool, for boxes",
            "3/faster_rcnn_roi_align_R_101_FPN",
            "3/faster_rcnn_R_101_FPN",
            "bbox",
        ),
        *_more(
            "Multi-task training: masks help boxes",
            "3/mask_rcnn_R_101_FPN",
            "3/faster_rcnn_roi_align_R_101_FPN",
            "bbox",
        ),
    ],
    "4": _more("Masks help keypoints", "4/keypoint_and_mask", "4/keypoint_only", "keypoints"),
    "5": [
        *_more("Masks help boxes", "5/mask_only", "5/box_only", "bbox"),
        *_more("Masks help keypoints and their boxes", "5/keypoint_and_mask", "5/keypoint_only", "keypoints", "bbox"),
        *_more("Keypoints take from masks", "5/mask_only", "5/keypoint_and_mask", "segm"),
    ],
    "6": _more("RoIAlign over RoIPool, for keypoints", "6/roi_align", "6/roi_pool", "keypoints"),
}
"""By table of the paper."""
