"""Damaged samples: reported once, left out of training, counted against an evaluation."""

import logging
import pickle

import pytest

from projects_maskrcnn.data import RobustMapper, mapper

RECORD = {"file_name": "a.png", "image_id": 7, "height": 4, "width": 6}


def broken(record):
    raise OSError("cannot decode")


def whole(record):
    return {**record, "image": "pixels"}


def test_a_sound_sample_passes_through():
    assert RobustMapper(whole, is_train=True)(RECORD) == whole(RECORD)


def test_in_training_a_damaged_sample_is_left_out_and_named_once(caplog):
    robust = RobustMapper(broken, is_train=True)
    with caplog.at_level(logging.ERROR):
        logging.getLogger("projects_maskrcnn").propagate = True
        assert [robust(RECORD), robust(RECORD), robust({**RECORD, "file_name": "b.png"})] == [None] * 3
    messages = [r.getMessage() for r in caplog.records]
    assert len(messages) == 2
    assert "a.png (image id 7): OSError: cannot decode" in messages[0] and "b.png" in messages[1]


def test_in_testing_it_is_black_and_keeps_its_place():
    result = RobustMapper(broken, is_train=False)(RECORD)
    assert result["image_id"] == 7
    assert result["image"].shape == (3, 4, 6) and not result["image"].any()


def test_many_damaged_samples_are_no_accident(monkeypatch):
    monkeypatch.setattr(mapper, "MAX_DAMAGED", 2)
    robust = RobustMapper(broken, is_train=True)
    robust(RECORD)
    robust({**RECORD, "file_name": "b.png"})
    with pytest.raises(RuntimeError, match="more than 2 samples.*c.png.*cannot decode"):
        robust({**RECORD, "file_name": "c.png"})


def test_it_travels_to_workers():
    copy = pickle.loads(pickle.dumps(RobustMapper(whole, is_train=True)))
    assert copy(RECORD) == whole(RECORD)
