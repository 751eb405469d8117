"""Arrays and plain containers come back; anything else is refused by name, and nothing of it runs."""

import codecs
import copyreg
import io
import os
import pickle
import struct
from collections import OrderedDict

import numpy as np
import pytest
import torch

from projects_maskrcnn.weights import CheckpointError, read_weights, unpickler

ARRAYS = {
    "float": np.arange(6, dtype=np.float32).reshape(2, 3),
    "half": np.float16([[1.5], [-2]]),
    "int": np.int64([2**40, -1]),
    "bool": np.array([True, False]),
    "complex": np.complex64([1 + 2j]),
    "other bytes first": np.arange(3, dtype=">f4"),
    "columns first": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "slice": np.arange(10.0)[::3],
    "number": np.array(3.5),
    "empty": np.zeros((0, 4)),
    "text": np.array(["ab", "c"]),
}
PLAIN = {"a": [1, 2.5, None, True, "text", b"\xff"], "b": (1, (2,)), "c": OrderedDict(x=2**80), "d": {1, 2}}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", ARRAYS)
def test_arrays(name, protocol):
    array = ARRAYS[name]
    found = unpickler.load(io.BytesIO(pickle.dumps({"x": array, "again": array}, protocol)))
    np.testing.assert_array_equal(found["x"], array)
    assert found["x"].dtype.newbyteorder("=") == array.dtype.newbyteorder("=") and found["again"] is found["x"]


@pytest.mark.parametrize("numpy", [b"numpy.core", b"numpy._core"], ids=["numpy 1", "numpy 2"])
def test_pickles_of_both_numpys(numpy):
    data = pickle.dumps([np.float32([1, 2]), np.float64(3)], 2).replace(b"numpy._core", numpy)
    array, number = unpickler.load(io.BytesIO(data))
    assert array.tolist() == [1, 2] and number == 3.0 and isinstance(number, np.float64)


def test_pickles_of_python_2():
    # pickle.dumps({'conv1_w': numpy.array([1, 2], 'f4')}, 2) there: the array's bytes are a str
    data = (
        b"\x80\x02}q\x00U\x07conv1_wq\x01cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03K\x00\x85q\x04"
        b"U\x01bq\x05\x87q\x06Rq\x07(K\x01K\x02\x85q\x08cnumpy\ndtype\nq\tU\x02f4q\nK\x00K\x01\x87q\x0bRq\x0c(K\x03U\x01<"
        b"q\rNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x0eb\x89U\x08\x00\x00\x80?\x00\x00\x00@q\x0ftq\x10bs."
    )
    assert unpickler.load(io.BytesIO(data))["conv1_w"].tolist() == [1, 2]


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_plain_containers(protocol):
    plain = {key: value for key, value in PLAIN.items() if key != "d" or protocol >= 4}
    if protocol < 3:
        plain.pop("a")  # bytes are written as a call of _codecs.encode, tried below
    assert unpickler.load(io.BytesIO(pickle.dumps(plain, protocol))) == plain
    assert unpickler.load(io.BytesIO(pickle.dumps(b"\xff\x00", protocol))) == b"\xff\x00"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function, *args, state=None):
        self.parts = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.parts


def hostile(mark: str) -> dict[str, tuple[bytes, str]]:
    """Pickles that would make the file `mark`, or do other harm, and what they are refused for."""
    command = f"touch {mark}"
    array = np.empty(1, object)
    array[0] = Call(os.system, command)
    opened = f"c{{}}\n{{}}\n({text(command).decode()}tR."
    return {
        "os.system": (pickle.dumps({"model": Call(os.system, command)}), r"(posix|nt)\.system"),
        "text protocol": (pickle.dumps(Call(os.system, command), 0), r"(posix|nt)\.system"),
        "eval": (pickle.dumps(Call(eval, f"open({mark!r}, 'w')")), r"builtins\.eval"),
        "eval of Python 2": (pickle.dumps(Call(eval, f"open({mark!r}, 'w')"), 2), r"__builtin__\.eval"),
        "exec": (pickle.dumps(Call(exec, f"open({mark!r}, 'w')")), r"builtins\.exec"),
        "open": (pickle.dumps(Call(open, mark, "w")), r"io\.open"),
        "getattr": (pickle.dumps(Call(getattr, np.array, "__call__")), r"builtins\.getattr|numpy.*array"),
        "dotted name": (b"\x80\x04" + text("numpy") + text("ndarray.tofile") + b"\x93.", r"numpy\.ndarray\.tofile"),
        "other name of numpy": (pickle.dumps(Call(np.fromfile, mark)), r"numpy\S*\.fromfile"),
        "subprocess": (f"csubprocess\nPopen\n(({text(command).decode()}tR.".encode(), r"subprocess\.Popen"),
        "old instance": (f"(S'{command}'\nios\nsystem\n.".encode(), r"os\.system"),
        "new object": (b"\x80\x02csubprocess\nPopen\n" + text(command) + b"\x85\x81.", r"subprocess\.Popen"),
        "codec": (pickle.dumps(Call(codecs.encode, "x", "rot13")), r"_codecs\.encode to 'rot13'"),
        "object array": (pickle.dumps(array), r"(posix|nt)\.system|Python objects"),
        "plain object array": (pickle.dumps(np.array([{}, None])), r"numpy arrays of Python objects"),
        "fields": (pickle.dumps(np.zeros(1, [("a", "O")])), r"numpy arrays of type 'V8'"),
        "persistent id": (b"\x80\x02" + text("storage") + b"Q.", r"the persistent object 'storage'"),
        "text persistent id": (b"Pstorage\n.", r"the persistent object 'storage'|start with"),
        "changed function": (
            b"\x80\x02cnumpy.core.multiarray\nscalar\n(N}" + text("_build") + b"I1\nstb.",
            "a state for one of numpy's functions",
        ),
        "class of a module": (opened.format("torch.nn", "Linear").encode(), r"torch\.nn\.Linear"),
        "untyped array": (
            b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n(NNNtR(K\x01(K\x01tNI00\nU\x01atb.",
            "an array whose type is None",
        ),
    }


HOSTILE = sorted(hostile("x"))


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_pickles_are_refused_by_name(case, tmp_path):
    mark = tmp_path / "ran"
    data, named = hostile(str(mark))[case]
    path = tmp_path / "weights.pkl"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=rf"weights\.pkl .*(?:{named})"):
        read_weights(str(path))
    assert not mark.exists()


def test_containers_have_no_attributes(tmp_path):
    evil = Call(OrderedDict, [("w", np.zeros(1))], state={"items": "no function", "values": 3})
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(evil))
    assert read_weights(str(tmp_path / "a.pkl"))["model"]["w"].tolist() == [0]


def test_numbers_of_bytes_are_not_bytes(tmp_path):
    data = pickle.dumps(np.float32(0), 2)
    start, end = data.index(b"c_codecs"), data.rindex(b"\x86")  # the call that makes the number's bytes
    (tmp_path / "a.pkl").write_bytes(data[:start] + b"I9999999999999\n" + data[end:])
    with pytest.raises(CheckpointError, match="an array of the bytes 9999999999999"):
        read_weights(str(tmp_path / "a.pkl"))


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("asked", ["os.system", "eval", "object array"])
def test_hostile_torch_files_are_refused_by_name(asked, legacy, tmp_path):
    mark = tmp_path / "ran"
    array = np.empty(1, object)
    array[0] = Call(os.system, f"touch {mark}")
    evil = {
        "os.system": Call(os.system, f"touch {mark}"),
        "eval": Call(eval, f"open({str(mark)!r}, 'w')"),
        "object array": array,
    }[asked]
    torch.save(
        {"model": {"w": torch.ones(1)}, "x": evil}, tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy
    )
    named = {"os.system": r"(posix|nt)\.system", "eval": "eval", "object array": r"(posix|nt)\.system|Python objects"}
    with pytest.raises(CheckpointError, match=rf"a\.pth .*(?:{named[asked]})"):
        read_weights(str(tmp_path / "a.pth"))
    assert not mark.exists()


def test_an_extension_code_is_refused(tmp_path):
    copyreg.add_extension("os", "system", 200)
    try:
        (tmp_path / "a.pkl").write_bytes(b"\x80\x02\x82\xc8" + text(f"touch {tmp_path / 'ran'}") + b"\x85R.")
        with pytest.raises(CheckpointError, match=r"os\.system"):
            read_weights(str(tmp_path / "a.pkl"))
    finally:
        copyreg.remove_extension("os", "system", 200)
    assert not (tmp_path / "ran").exists()
