"""Index streams: against torch's generator by hand, over ranks, grouped, and resumed."""

import itertools
import math
import pickle
from collections import Counter

import pytest
import torch

from projects_maskrcnn.embedded.data.samplers import (
    GroupedBatchSampler,
    InferenceSampler,
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    StreamIndex,
    TrainingSampler,
)
from projects_maskrcnn.embedded.utils import comm


@pytest.fixture
def as_rank(monkeypatch):
    def become(rank, world_size):
        monkeypatch.setattr(comm, "get_rank", lambda: rank)
        monkeypatch.setattr(comm, "get_world_size", lambda: world_size)

    return become


def take(iterable, n):
    return list(itertools.islice(iterable, n))


def test_training_sampler_is_torchs_permutations():
    generator = torch.Generator().manual_seed(11)
    expected = [i for _ in range(3) for i in torch.randperm(7, generator=generator).tolist()]
    sampler = TrainingSampler(7, seed=11)
    assert take(sampler, 21) == expected
    assert take(sampler, 21) == expected  # starts anew


def test_training_sampler_in_order():
    assert take(TrainingSampler(3, shuffle=False), 7) == [0, 1, 2, 0, 1, 2, 0]


def test_training_sampler_ranks_share_the_stream(as_rank):
    whole = take(TrainingSampler(10, seed=3), 30)
    parts = []
    for rank in range(3):
        as_rank(rank, 3)
        parts.append(take(TrainingSampler(10, seed=3), 10))
    assert [i for together in zip(*parts, strict=True) for i in together] == whole


def test_training_sampler_takes_a_shared_seed(monkeypatch):
    monkeypatch.setattr(comm, "shared_random_seed", lambda: 1234)
    sampler = TrainingSampler(50)
    assert sampler.seed == 1234 and take(sampler, 60) == take(TrainingSampler(50, seed=1234), 60)


@pytest.mark.parametrize("size, error", [(0, ValueError), (-1, ValueError), (2.0, TypeError)])
def test_training_sampler_refuses(size, error):
    with pytest.raises(error, match="size"):
        TrainingSampler(size)


def test_random_subset():
    sampler = RandomSubsetTrainingSampler(20, 0.3, seed_shuffle=1, seed_subset=2)
    chosen = torch.randperm(20, generator=torch.Generator().manual_seed(2))[:6]
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1))
    assert take(sampler, 6) == chosen[order].tolist()
    assert set(take(sampler, 60)) == set(chosen.tolist())
    unshuffled = RandomSubsetTrainingSampler(20, 0.3, shuffle=False, seed_subset=2)
    assert take(unshuffled, 7) == [*chosen.tolist(), chosen[0].item()]


@pytest.mark.parametrize("ratio", [0.0, 0.01, 1.1])
def test_random_subset_refuses(ratio):
    with pytest.raises(ValueError, match="RANDOM_SUBSET_RATIO"):
        RandomSubsetTrainingSampler(20, ratio)


def test_repeat_factors_from_category_frequency():
    # Of 4 images: category 0 in all, category 1 in two, category 2 in one.
    images = [[0, 0], [0, 1], [0, 1, 2], [0], []]
    dicts = [{"annotations": [{"category_id": c} for c in image]} for image in images[:4]]
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency
    torch.testing.assert_close(factors(dicts, 0.8, sqrt=False), torch.tensor([1.0, 1.6, 3.2, 1.0]))
    expected = torch.tensor([1.0, math.sqrt(1.6), math.sqrt(3.2), 1.0])
    torch.testing.assert_close(factors(dicts, 0.8), expected)
    assert factors([{"annotations": []}], 0.8).tolist() == [1.0]


def test_repeat_factor_sampler_repeats_in_expectation():
    factors = torch.tensor([1.0, 2.0, 1.25, 3.5])
    epochs = 4000
    counts = Counter(take(RepeatFactorTrainingSampler(factors, seed=0), int(epochs * 7.75)))
    for index, factor in enumerate(factors.tolist()):
        assert counts[index] / epochs == pytest.approx(factor, rel=0.03)
    epoch = take(RepeatFactorTrainingSampler(torch.tensor([1.0, 2.0, 3.0]), shuffle=False), 6)
    assert epoch == [0, 1, 1, 2, 2, 2]


def test_repeat_factor_sampler_stream_by_hand():
    factors = torch.tensor([1.5, 1.5, 1.5, 1.5, 1.5])
    generator = torch.Generator().manual_seed(8)
    repeats = [2 if r < 0.5 else 1 for r in torch.rand(5, generator=generator).tolist()]
    indices = torch.tensor([i for i, n in enumerate(repeats) for _ in range(n)])
    expected = indices[torch.randperm(len(indices), generator=generator)].tolist()
    assert take(RepeatFactorTrainingSampler(factors, seed=8), len(indices)) == expected


@pytest.mark.parametrize("size, world_size", [(1, 1), (10, 3), (11, 3), (12, 3), (2, 4)])
def test_inference_sampler_partitions(as_rank, size, world_size):
    parts = []
    for rank in range(world_size):
        as_rank(rank, world_size)
        sampler = InferenceSampler(size)
        parts.append(list(sampler))
        assert len(sampler) == len(parts[-1])
    assert [i for part in parts for i in part] == list(range(size))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1 and sizes == sorted(sizes, reverse=True)


def test_stream_index_travels_to_workers():
    index = pickle.loads(pickle.dumps(StreamIndex(4, 99)))
    assert index == 4 and index.position == 99 and [10, 11, 12, 13, 14][index] == 14


def grouped_by_hand(stream, groups, batch_size):
    """Two buckets, each given out when it is full."""
    buckets = [[], []]
    for position, index in stream:
        bucket = buckets[groups[index]]
        bucket.append((index, position))
        if len(bucket) == batch_size:
            yield bucket[:]
            bucket.clear()


@pytest.mark.parametrize("batch_size", [1, 2, 3])
@pytest.mark.parametrize("rank, world_size", [(0, 1), (1, 3)])
def test_grouped_batches_and_their_positions(as_rank, batch_size, rank, world_size):
    groups = [0, 1, 1, 0, 1, 1, 1, 0, 1, 1]
    stream = list(enumerate(take(TrainingSampler(10, seed=4), 600)))[rank::world_size]
    expected = list(grouped_by_hand(stream, groups, batch_size))[:40]
    as_rank(rank, world_size)
    sampler = GroupedBatchSampler(TrainingSampler(10, seed=4), groups, batch_size)
    batches = take(sampler, 40)
    assert [[(int(i), i.position) for i in batch] for batch in batches] == expected
    assert all(len({groups[i] for i in batch}) == 1 for batch in batches)


@pytest.mark.parametrize("start", [0, 1, 17])
def test_grouped_batches_resume(start):
    def sampler():
        return GroupedBatchSampler(TrainingSampler(10, seed=4), [0, 1] * 5, 3)

    uninterrupted, resumed = sampler(), sampler()
    resumed.start_batch = start
    expected = take(uninterrupted, start + 20)[start:]
    batches = take(resumed, 20)
    assert batches == expected
    assert [i.position for b in batches for i in b] == [i.position for b in expected for i in b]


def test_grouped_batches_of_a_sampler_that_ends():
    five = InferenceSampler(5)
    assert list(GroupedBatchSampler(five, [0, 1, 0, 1, 0], 2)) == [[0, 2], [1, 3]]
    assert list(GroupedBatchSampler(five, [0, 1, 0, 1, 0], 2, drop_last=False)) == [[0, 2], [1, 3], [4]]
    with pytest.raises(TypeError, match="Sampler"):
        GroupedBatchSampler([0, 1], [0, 0], 2)
