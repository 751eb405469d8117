"""The set-up of loggers, and messages that are not repeated."""

import logging

import pytest

from projects_maskrcnn.embedded.utils import logger as tested
from projects_maskrcnn.embedded.utils.logger import (
    create_small_table,
    log_every_n,
    log_every_n_seconds,
    log_first_n,
    setup_logger,
)


@pytest.fixture
def name(request):
    """The name of a logger of this test alone."""
    name = f"for_{request.node.name.replace('.', '_')}"
    yield name
    for handler in logging.getLogger(name).handlers[:]:
        logging.getLogger(name).removeHandler(handler)
        if str(handler.get_name()).endswith((".log", ".txt", ".rank2")):
            handler.stream.close()


@pytest.mark.parametrize(("rank", "file"), [(0, "log.txt"), (2, "log.txt.rank2")])
def test_once_to_the_file_and_the_main_process_to_the_terminal(tmp_path, capsys, name, rank, file):
    for _ in range(2):
        logger = setup_logger(str(tmp_path), rank, name=name, abbrev_name="x", color=False)
    logging.getLogger(f"{name}.part").info("told")
    assert (tmp_path / file).read_text().count("told") == 1
    assert f"{name}.part INFO: told" in (tmp_path / file).read_text()
    terminal = capsys.readouterr().out
    assert terminal.count("x.part INFO: told") == (rank == 0)
    assert not logger.propagate and logger.level == logging.DEBUG


def test_output_may_be_a_file_or_nothing(tmp_path, name):
    setup_logger(str(tmp_path / "deep" / "mine.log"), name=name).warning("told")
    assert "WARNING: told" in (tmp_path / "deep" / "mine.log").read_text()
    assert len(setup_logger("", name=name).handlers) == 2  # the terminal and the file of before


@pytest.fixture
def messages(caplog, name):
    logging.getLogger(name).addHandler(caplog.handler)
    logging.getLogger(name).setLevel(logging.INFO)
    logging.getLogger(name).propagate = False
    tested._counts.clear()
    return lambda: [record.getMessage() for record in caplog.records if record.name == name]


def test_log_first_n(messages, name):
    for i in range(5):
        log_first_n(logging.INFO, f"place {i}", n=2, name=name)
        log_first_n(logging.INFO, "text", name=name, key="message")
        log_first_n(logging.INFO, f"both {i % 2}", name=name, key=("caller", "message"))
    log_first_n(logging.INFO, "text", name=name, key="message")
    assert messages() == ["place 0", "text", "both 0", "place 1", "both 1"]


def test_log_every_n(messages, name):
    for i in range(5):
        log_every_n(logging.INFO, str(i), n=3, name=name)
    assert messages() == ["0", "3"]


def test_log_every_n_seconds(messages, name, monkeypatch):
    for now in (100.0, 104.0, 105.0, 109.0, 111.0):
        monkeypatch.setattr(tested.time, "time", lambda now=now: now)
        log_every_n_seconds(logging.INFO, str(now), n=5, name=name)
    assert messages() == ["100.0", "105.0", "111.0"]


def test_small_table():
    header, _, row = create_small_table({"AP": 1.23456, "AP50": 20}).splitlines()
    assert [cell.strip() for cell in header.strip("|").split("|")] == ["AP", "AP50"]
    assert [float(cell) for cell in row.strip("|").split("|")] == [1.235, 20]
