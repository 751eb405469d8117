"""Lists as datasets, mapping with a fall back, and seeding by position."""

import logging
import random

import numpy as np
import pytest
import torch

from projects_maskrcnn.embedded.data.common import DatasetFromList, MapDataset, SeededDataset, seeded_rng
from projects_maskrcnn.embedded.data.samplers import StreamIndex


@pytest.mark.parametrize("serialize", [True, False])
def test_dataset_from_list(serialize):
    elements = [{"a": [1, 2]}, {}, {"b": "x" * 1000}, {"c": np.arange(3)}]
    dataset = DatasetFromList(elements, serialize=serialize)
    assert len(dataset) == 4
    assert dataset[0] == {"a": [1, 2]} and dataset[1] == {} and dataset[2] == elements[2]
    assert dataset[-1]["c"].tolist() == [0, 1, 2]
    dataset[0]["a"].append(3)
    assert elements[0] == {"a": [1, 2]} == dataset[0]
    with pytest.raises(IndexError):
        dataset[4]


def test_dataset_from_list_without_copies():
    elements = [{"a": 1}]
    assert DatasetFromList(elements, copy=False, serialize=False)[0] is elements[0]
    assert len(DatasetFromList([])) == 0


def test_map_dataset():
    assert [MapDataset([3, 4, 5], lambda x: x * 10)[i] for i in range(3)] == [30, 40, 50]


def test_map_dataset_falls_back_on_usable_elements(caplog):
    dataset = MapDataset(list(range(20)), lambda x: None if x < 18 else x)
    with caplog.at_level(logging.WARNING):
        chosen = [dataset[i] for i in range(20)]
    assert set(chosen) == {18, 19} and chosen[18:] == [18, 19]
    assert chosen == [dataset[i] for i in range(20)]  # the same element each time
    assert "in place of number" in caplog.text


def test_map_dataset_warns_from_the_third_failure(caplog):
    order = iter([None, None, "found", None, None, None, "found"])
    dataset = MapDataset(list(range(9)), lambda _: next(order))
    dataset[0]
    assert not caplog.records
    dataset[0]
    assert len(caplog.records) == 1


def test_map_dataset_with_no_usable_element():
    with pytest.raises(RuntimeError, match="None of the 3 elements"):
        MapDataset([1, 2, 3], lambda x: None)[1]


def test_map_dataset_error_names_the_file():
    def fail(record):
        raise IndexError("list index out of range")

    with pytest.raises(RuntimeError, match="cat.jpg: IndexError: list index out of range"):
        MapDataset([{"file_name": "cat.jpg"}], fail)[0]

    def fail_well(record):
        raise KeyError(f"{record['file_name']}: no mask")

    with pytest.raises(KeyError, match="cat.jpg: no mask"):
        MapDataset([{"file_name": "cat.jpg"}], fail_well)[0]


def draw():
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_seeded_rng_depends_on_seed_and_position_alone():
    def drawn(seed, position):
        with seeded_rng(seed, position):
            return draw()

    first = drawn(5, 7)
    draw()
    assert drawn(5, 7) == first
    others = [first, drawn(5, 8), drawn(6, 7), drawn(7, 5), drawn(-1, 0), drawn(2**40, 2**40)]
    for generator in range(3):
        assert len({numbers[generator] for numbers in others}) == len(others)


@pytest.mark.parametrize("fails", [False, True])
def test_seeded_rng_restores_the_global_state(fails):
    def seed_all():
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)

    seed_all()
    expected = draw()
    seed_all()
    try:
        with seeded_rng(3, 4):
            draw()
            if fails:
                raise ValueError
    except ValueError:
        pass
    assert draw() == expected


def test_seeded_dataset_draws_by_position_not_index():
    dataset = SeededDataset(MapDataset([0, 1], lambda x: (x, draw())), seed=9)
    a, b, c = dataset[StreamIndex(0, 5)], dataset[StreamIndex(1, 5)], dataset[StreamIndex(0, 6)]
    assert (a[0], b[0], c[0]) == (0, 1, 0)
    assert a[1] == b[1] and a[1] != c[1]
    assert dataset[StreamIndex(0, 5)] == a
