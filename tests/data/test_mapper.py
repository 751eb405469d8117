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
    assert (result["height"], result["width"]) == (4, 6)
    assert result["image"].dim() == 3 and not result["image"].any()


def test_an_absurd_size_takes_no_memory():
    result = RobustMapper(broken, is_train=False)({**RECORD, "height": 10**9, "width": 10**9})
    assert result["image"].numel() < 10**6


@pytest.mark.parametrize("is_train", [True, False])
@pytest.mark.parametrize(("sound", "limit"), [(0, 1), (1, 3)])
def test_many_damaged_samples_are_no_accident(sound, limit, is_train, monkeypatch):
    monkeypatch.setattr(mapper, "MAX_DAMAGED", 3)
    monkeypatch.setattr(mapper, "MAX_AT_FIRST", 1)
    robust = RobustMapper(lambda record: (whole if record["file_name"] == "sound.png" else broken)(record), is_train)
    for _ in range(sound):
        robust({**RECORD, "file_name": "sound.png"})
    for number in range(limit):
        robust({**RECORD, "file_name": f"{number}.png"})
    with pytest.raises(RuntimeError, match=f"more than {limit} samples.*last.png.*cannot decode"):
        robust({**RECORD, "file_name": "last.png"})


def test_it_travels_to_workers():
    copy = pickle.loads(pickle.dumps(RobustMapper(whole, is_train=True)))
    assert copy(RECORD) == whole(RECORD)
