"""The event storage, and what its writers write."""

import json
import logging
import re
import statistics

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from projects_maskrcnn.embedded.utils.events import (
    CommonMetricPrinter,
    EventStorage,
    JSONWriter,
    TensorboardXWriter,
    get_event_storage,
    has_event_storage,
)


def test_storages_nest():
    assert not has_event_storage()
    with EventStorage() as outer:
        with EventStorage() as inner:
            assert get_event_storage() is inner
        assert get_event_storage() is outer
    with pytest.raises(RuntimeError, match="no event storage"):
        get_event_storage()


def test_history_and_latest():
    storage = EventStorage(start_iter=3)
    storage.put_scalar("a", 1)
    storage.step()
    storage.put_scalars(a=torch.tensor(5.0), b=2, cur_iter=9)
    assert storage.history("a").values() == [(1.0, 3), (5.0, 9)]
    assert storage.latest() == {"a": (5.0, 9), "b": (2.0, 9)}
    assert storage.iter == 4
    with pytest.raises(KeyError, match="'c'"):
        storage.history("c")


def test_smoothing_is_over_iterations_and_only_where_hinted():
    storage = EventStorage()
    values = [9.0, 1.0, 4.0, 2.0, 8.0, 3.0]
    for value in values:
        for _ in range(2):  # two values in each iteration
            storage.put_scalar("smooth", value)
        storage.put_scalar("raw", value, smoothing_hint=False)
        storage.step()
    assert storage.count_samples("smooth", 3) == 6
    assert storage.count_samples("smooth", 100) == 12
    assert storage.latest_with_smoothing_hint(3) == {"smooth": (statistics.median(values[-3:]), 5), "raw": (3.0, 5)}
    with pytest.raises(ValueError, match="'raw'"):
        storage.put_scalar("raw", 100.0)
    assert storage.latest()["raw"] == (3.0, 5)


def test_name_scope_ends_with_an_error_too():
    storage = EventStorage()
    with pytest.raises(RuntimeError), storage.name_scope("rpn/"):
        storage.put_scalar("loss", 1)
        raise RuntimeError
    storage.put_scalar("loss", 2)
    assert storage.latest() == {"rpn/loss": (1.0, 0), "loss": (2.0, 0)}


def test_json_lines_hold_what_is_new(tmp_path):
    writer = JSONWriter(str(tmp_path / "metrics.json"))
    with EventStorage(start_iter=10) as storage:
        storage.put_scalars(loss=1.5, lr=0.1)
        writer.write()
        writer.write()
        storage.step()
        storage.put_scalar("late", 7, cur_iter=12)
        storage.put_scalar("loss", 2.5)
        writer.write()
    writer.close()
    lines = (tmp_path / "metrics.json").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"iteration": 10, "loss": 1.5, "lr": 0.1},
        {"iteration": 11, "loss": 2.0},
        {"iteration": 12, "late": 7.0},
    ]
    assert lines[0] == '{"iteration": 10, "loss": 1.5, "lr": 0.1}'  # keys are sorted


def test_tensorboard(tmp_path):
    writer = TensorboardXWriter(str(tmp_path))
    with EventStorage(start_iter=4) as storage:
        storage.put_scalar("loss", 1.5)
        storage.put_image("picture", torch.zeros(3, 5, 7))
        storage.put_histogram("numbers", torch.tensor([[0.0, 1.0], [1.0, 4.0]]), bins=4)
        writer.write()
        writer.write()
    writer.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(4, 1.5)]
    (image,) = events.Images("picture")
    assert (image.height, image.width) == (5, 7)
    (histogram,) = events.Histograms("numbers")
    value = histogram.histogram_value
    assert (value.min, value.max, value.num, value.sum, value.sum_squares) == (0, 4, 4, 6, 18)
    assert value.bucket == [1, 2, 0, 1] and value.bucket_limit == [1, 2, 3, 4]


def test_progress_line(caplog):
    logger = logging.getLogger("projects_maskrcnn.embedded.utils.events")
    caplog.set_level(logging.INFO, logger=logger.name)
    logger.addHandler(caplog.handler)  # the package's own logger may not propagate
    printer = CommonMetricPrinter(max_iter=100)
    try:
        with EventStorage() as storage:
            for loss in (3.0, 1.0, 2.5):
                storage.put_scalars(total_loss=loss, time=2.0, data_time=0.5)
                storage.put_scalar("lr", 0.0123456, smoothing_hint=False)
                storage.put_scalar("accuracy", 1.0)
                storage.step()
            storage.iter = 39
            printer.write()
            storage.iter = 100
            printer.write()
    finally:
        logger.removeHandler(caplog.handler)
    (message,) = {record.getMessage() for record in caplog.records}
    assert re.fullmatch(
        r" eta: 0:02:00  iter: 39  total_loss: 2.5  time: 2.0000  last_time: 2.0000  "
        r"data_time: 0.5000  last_data_time: 0.5000  lr: 0.012346  max_mem: [1-9]\d*M",
        message,
    ) or (torch.cuda.is_available() and message.endswith("max_mem: 0M"))
