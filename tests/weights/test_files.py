"""Files are whole, and never of two writers, whatever becomes of these."""

import subprocess
import sys

import pytest

from projects_maskrcnn.weights.files import replaced

WRITER = """
import sys
from projects_maskrcnn.weights.files import replaced

with replaced(sys.argv[1]) as unfinished, unfinished.open("w") as file:
    file.write("half")
    file.flush()
    print("half", flush=True)
    sys.stdin.readline()
    file.write(" and half")
"""


def names(folder):
    return [path.name for path in folder.iterdir()]


def test_a_block_that_ends_puts_the_file_in_its_place(tmp_path):
    path = tmp_path / "new" / "folder" / "file.txt"
    for text in ("first", "second"):
        with replaced(str(path)) as unfinished:
            unfinished.write_text(text)
        assert path.read_text() == text and names(path.parent) == ["file.txt"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_an_error_leaves_what_was_there(tmp_path, error):
    path = tmp_path / "file.txt"
    path.write_text("as it was")
    with pytest.raises(type(error)), replaced(path) as unfinished:
        unfinished.write_text("half")
        raise error
    assert path.read_text() == "as it was" and names(tmp_path) == ["file.txt"]


def test_nothing_written_is_an_error(tmp_path):
    (tmp_path / "file.txt").write_text("as it was")
    with pytest.raises(FileNotFoundError), replaced(tmp_path / "file.txt"):
        pass
    assert (tmp_path / "file.txt").read_text() == "as it was"


def test_the_file_is_as_readable_as_others(tmp_path):
    (tmp_path / "other").touch()
    with replaced(tmp_path / "file.txt") as unfinished:
        unfinished.touch()
    assert (tmp_path / "file.txt").stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize("killed", [False, True])
def test_another_process_that_writes_at_the_same_time(tmp_path, root, killed):
    path = tmp_path / "file.txt"
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "half\n"
        with replaced(path) as unfinished:
            unfinished.write_text("whole")
        assert path.read_text() == "whole"
        if killed:
            other.kill()
        else:
            other.communicate("go on\n")
    assert path.read_text() == ("whole" if killed else "half and half")
    assert len(names(tmp_path)) == (2 if killed else 1)  # what a killed process wrote stays, under its other name
