"""Samplers of dataset indices, each rank taking its share."""

import itertools
import logging
import math
from collections import Counter
from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from ...utils import comm

logger = logging.getLogger(__name__)


class TrainingSampler(Sampler[int]):
    """An endless stream of indices: the whole dataset in random order, again and again.

    All ranks generate the same stream; rank r of n takes its elements r, r + n, r + 2n, ... Stands for
    Detectron2's class of that name, and gives its stream for the same seed.

    Args:
        size: number of images.
        shuffle: random order, or else 0 to size - 1.
        seed: of the order, the same on all ranks. By default a random one, on which the ranks agree.
    """

    def __init__(self, size: int, shuffle: bool = True, seed: int | None = None) -> None:
        if not isinstance(size, int):
            raise TypeError(f"{type(self).__name__}: size is an int, not {type(size).__name__}")
        if size <= 0:
            raise ValueError(f"{type(self).__name__}: the dataset has no image to sample (size {size})")
        self.size = size
        self.shuffle = shuffle
        self.seed = comm.shared_random_seed() if seed is None else int(seed)

    def __iter__(self) -> Iterator[int]:
        return itertools.islice(self._indices(), comm.get_rank(), None, comm.get_world_size())

    def _indices(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            epoch = self._epoch(generator)
            yield from (epoch[torch.randperm(len(epoch), generator=generator)] if self.shuffle else epoch).tolist()

    def _epoch(self, generator: torch.Generator) -> torch.Tensor:
        """The indices of one pass over the data, int64, in order."""
        return torch.arange(self.size)


class RandomSubsetTrainingSampler(TrainingSampler):
    """`TrainingSampler` over a random subset: for curves of accuracy over the amount of data.

    Args:
        size, shuffle: as of `TrainingSampler`.
        subset_ratio: part of the dataset to use, in (0, 1].
        seed_shuffle, seed_subset: seeds of the order and of the choice, the same on all ranks.
    """

    def __init__(
        self,
        size: int,
        subset_ratio: float,
        shuffle: bool = True,
        seed_shuffle: int | None = None,
        seed_subset: int | None = None,
    ) -> None:
        super().__init__(size, shuffle, seed_shuffle)
        number = int(size * subset_ratio)
        if not 0 < number <= size:
            raise ValueError(
                f"DATALOADER.RANDOM_SUBSET_RATIO: {subset_ratio} of {size} images is {number}; "
                "choose a ratio in (0, 1] that leaves at least one image"
            )
        seed_subset = comm.shared_random_seed() if seed_subset is None else int(seed_subset)
        generator = torch.Generator().manual_seed(seed_subset)
        self._subset = torch.randperm(size, generator=generator)[:number]
        logger.info("Training on a random subset of %d of %d images.", number, size)

    def _epoch(self, generator: torch.Generator) -> torch.Tensor:
        return self._subset


class RepeatFactorTrainingSampler(TrainingSampler):
    """`TrainingSampler` that repeats images with rare categories (LVIS, arXiv 1908.03195v2, appendix B.2).

    Args:
        repeat_factors: (N,) float, how often each image is to appear in a pass, on average: the fraction is
            rounded up or down at random in each pass.
        shuffle, seed: as of `TrainingSampler`.
    """

    def __init__(self, repeat_factors: torch.Tensor, *, shuffle: bool = True, seed: int | None = None) -> None:
        super().__init__(len(repeat_factors), shuffle, seed)
        self._whole = repeat_factors.trunc()
        self._fraction = repeat_factors - self._whole

    @staticmethod
    def repeat_factors_from_category_frequency(
        dataset_dicts: list[dict], repeat_thresh: float, sqrt: bool = True
    ) -> torch.Tensor:
        """The repeat factor of each image: that of its rarest category, at least 1.

        Args:
            dataset_dicts: one an image, with "annotations".
            repeat_thresh: categories that are in a smaller part f of the images than this are repeated
                `repeat_thresh / f` times.
            sqrt: use the square root of that number.

        Returns:
            (N,) float32.
        """
        categories = [{anno["category_id"] for anno in record["annotations"]} for record in dataset_dicts]
        images_with = Counter(itertools.chain.from_iterable(categories))
        ratio = {c: repeat_thresh / (count / len(dataset_dicts)) for c, count in images_with.items()}
        factor = {c: max(1.0, math.sqrt(r) if sqrt else r) for c, r in ratio.items()}
        repeated = {c: round(f, 2) for c, f in sorted(factor.items()) if f > 1}
        logger.info("Repeat factors of the rare categories: %s", repeated or "none is rare")
        return torch.tensor([max((factor[c] for c in present), default=1.0) for present in categories])

    def _epoch(self, generator: torch.Generator) -> torch.Tensor:
        up = torch.rand(len(self._fraction), generator=generator) < self._fraction
        return torch.arange(self.size).repeat_interleave((self._whole + up).long())


class InferenceSampler(Sampler[int]):
    """Each image once, over all ranks together: rank by rank a contiguous range, of nearly equal size.

    Args:
        size: number of images.
    """

    def __init__(self, size: int) -> None:
        if size <= 0:
            raise ValueError(f"InferenceSampler: the dataset has no image (size {size})")
        ranks, rank = comm.get_world_size(), comm.get_rank()
        share, larger = divmod(size, ranks)
        start = rank * share + min(rank, larger)
        self._local = range(start, start + share + (rank < larger))

    def __iter__(self) -> Iterator[int]:
        return iter(self._local)

    def __len__(self) -> int:
        return len(self._local)
