"""Batches of indices whose images have something in common, as a stream that can be resumed anywhere."""

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence

from torch.utils.data import Sampler

from ...utils import comm


class StreamIndex(int):
    """A dataset index that knows its position (0, 1, ...) in the stream of indices of all ranks together."""

    position: int

    def __new__(cls, index: int, position: int) -> "StreamIndex":
        self = super().__new__(cls, index)
        self.position = position
        return self

    def __getnewargs__(self) -> tuple[int, int]:
        return int(self), self.position  # for pickle: indices travel to the workers


class GroupedBatchSampler(Sampler[list[StreamIndex]]):
    """Collects a sampler's indices into batches of one group each, in the order in which the batches fill up.

    Working on indices, before an image is loaded, makes the batches a pure function of the sampler's stream.
    Stands for Detectron2's `GroupedBatchSampler` and, with the group "wider than high",
    `AspectRatioGroupedDataset`.

    Args:
        sampler: this rank's indices; taken to be every `world_size`-th of the whole stream.
        group_ids: the group of each image of the dataset.
        batch_size: images in a batch, of this rank.
        drop_last: leave out the batches that are not full when the sampler ends.

    Attributes:
        start_batch: batches before this one are left out, at next to no cost. A trainer that resumes sets it,
            before it iterates, to the number of batches that it has had.
    """

    def __init__(
        self, sampler: Sampler[int], group_ids: Sequence[int], batch_size: int, drop_last: bool = True
    ) -> None:
        if not isinstance(sampler, Sampler):
            raise TypeError(f"Expected a torch.utils.data.Sampler, got {type(sampler).__name__}")
        self.sampler = sampler
        self.group_ids = group_ids
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.start_batch = 0

    def __iter__(self) -> Iterator[list[StreamIndex]]:
        return itertools.islice(self._batches(), self.start_batch, None)

    def _batches(self) -> Iterator[list[StreamIndex]]:
        positions = itertools.count(comm.get_rank(), comm.get_world_size())
        unfilled: dict[int, list[StreamIndex]] = defaultdict(list)
        for index, position in zip(self.sampler, positions, strict=False):
            group = self.group_ids[index]
            unfilled[group].append(StreamIndex(index, position))
            if len(unfilled[group]) == self.batch_size:
                yield unfilled.pop(group)
        if not self.drop_last:
            yield from unfilled.values()
