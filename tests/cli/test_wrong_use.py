"""Wrong input: the message says what, where and what to do; the status is the documented one."""

import numpy as np
import pytest
from onnx import TensorProto, helper

from tests.cli.conftest import save
from whet import errors
from whet.cli import main, run
from whet.cli.status import status_of


@pytest.fixture
def arrays(tmp_path):
    """Files that do not fit, by name."""
    np.save(tmp_path / "double.npy", np.zeros((1, 1, 8, 8)))
    np.save(tmp_path / "flat.npy", np.zeros(64, np.float32))
    np.save(tmp_path / "wide.npy", np.zeros((1, 1, 8, 9), np.float32))
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    np.savez(tmp_path / "other.npz", picture=np.zeros((1, 1, 8, 8), np.float32))
    whole = (tmp_path / "other.npz").read_bytes()
    (tmp_path / "archive.npy").write_bytes(whole)
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "bare.npz").write_bytes((tmp_path / "flat.npy").read_bytes())
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.npy").write_text("no array")
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "notes.txt").write_text("no array")
    return tmp_path


@pytest.mark.parametrize(
    "given, words",
    [
        (["double.npy"], ["'image'", "float32", "float64", "--cast"]),
        (["flat.npy"], ["'image'", "float32[batch,1,8,8]", "[64]"]),
        (["wide.npy"], ["'image'", "[1, 1, 8, 9]"]),
        (["objects.npy"], ["objects.npy", "no array", "Python objects", "numpy.save"]),
        (["other.npz"], ["gives picture", "nothing for image"]),
        (["text.npy"], ["text.npy", "no array"]),
        (["text.npz"], ["text.npz", "no arrays", "numpy.savez"]),
        (["cut.npz"], ["cut.npz", "no arrays", "numpy.savez"]),
        (["bare.npz"], ["bare.npz", "one array"]),
        (["archive.npy"], ["archive.npy", ".npz"]),
        (["folder"], ["a folder cannot"]),
        (["text.png"], ["text.png"]),
        (["notes.txt"], ["notes.txt", ".npy, .npz and pictures"]),
        (["nowhere.npy"], ["nowhere.npy", "there is no file"]),
        (["picture=flat.npy"], ["no input 'picture'", "'image'"]),
    ],
)
def test_inputs(whet, digits, arrays, given, words):
    paths = [
        f"{name}={arrays / file}" if name else str(arrays / file)
        for name, _, file in (text.rpartition("=") for text in given)
    ]
    options = [option for path in paths for option in ("--input", path)]
    done = whet("run", digits, *options)
    assert done.status == 2, done.err
    assert all(word in done.err for word in words), done.err


def test_one_of_two_inputs(whet, two_inputs, tmp_path):
    np.save(tmp_path / "ids.npy", np.zeros(3, np.int64))
    done = whet("run", two_inputs, "--input", f"ids={tmp_path / 'ids.npy'}")
    assert done.status == 2 and "no --input for shift" in done.err
    done = whet("run", two_inputs, "--input", tmp_path / "ids.npy")
    assert done.status == 2 and "say which one" in done.err and "'shift'" in done.err


def test_an_index_that_the_table_does_not_have(whet, two_inputs, tmp_path):
    np.savez(tmp_path / "x.npz", ids=np.array([1, 7]), shift=np.zeros(4, np.float32))
    done = whet("run", two_inputs, "--input", tmp_path / "x.npz")
    assert done.status == 2 and "look_up" in done.err


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["run"], ["MODEL", "--help"]),
        (["jump"], ["jump"]),
        (["run", "{digits}", "--size", "batch"], ["batch=4"]),
        (["run", "{digits}", "--size", "batch=9:1:3"], ["falls"]),
        (["run", "{digits}", "--size", "rows=4"], ["no size of that name", "batch"]),
        (["run", "{digits}", "--threads", "0"], ["--threads", "from 1 on"]),
        (["run", "{digits}", "--device", "tpu"], ["tpu", "cpu"]),
        (["run", "{digits}", "--labels", "nowhere.txt"], ["nowhere.txt"]),
        (["build", "{digits}", "-o", "{digits}"], ["the model itself", "-o"]),
        (["build", "{digits}", "--architectures", "z80"], ["z80", "avx2"]),
        (["bench", "{digits}", "--seconds", "0"], ["seconds"]),
        (["bench", "{digits}", "--against", "tea"], ["tea", "onnxruntime"]),
        (["bench", "{digits}", "--against", "torch"], ["torch=FILE.pt2"]),
        (["bench", "{digits}", "--against", "torch=nowhere.pt2"], ["no file"]),
        (["show", "{digits}", "--after", "lunch"], ["lunch", "simplify"]),
        (["check", "{digits}", "--file"], ["--file verifies engines"]),
        (["show", "{digits}", "--after", "simplify", "--times"], ["--times", "--after"]),
        (["show", "{digits}", "--kernels", "--code"], ["not allowed with"]),
        (["check", "{digits}", "--tolerance", "-1"], ["1e-3"]),
        (["check", "{digits}", "--file", "--per-layer"], ["--per-layer"]),
        (["run", "{digits}", "--trace", "/nowhere/x.json"], ["no folder /nowhere"]),
        (["run", "{digits}", "-o", "/nowhere/x.npz"], ["no folder /nowhere"]),
        (["bench", "{digits}", "--json", "/nowhere/x.json"], ["no folder /nowhere"]),
        (["show", "{digits}", "--html", "/nowhere/x.html"], ["no folder /nowhere"]),
        (["run", "{digits}", "--debug", "no such tensor"], ["no such tensor"]),
        (["run", "{digits}", "--specialize", "soon"], ["lazy"]),
        (["run", "nowhere.onnx"], ["nowhere.onnx", "check the path"]),
        (["build", "nowhere.onnx"], ["nowhere.onnx"]),
    ],
)
def test_options(whet, digits, arguments, words):
    done = whet(*(str(digits) if a == "{digits}" else a for a in arguments))
    assert done.status in (2, 4), done.err
    assert done.err.startswith("whet: ") or "sizes:" in done.err
    assert all(word in done.err for word in words), done.err


@pytest.mark.parametrize("name", ["z80", "avx2+speed", "sm75", "sm999"])
def test_architectures_that_there_are_none_of(whet, digits, name):
    done = whet("build", digits, "--architectures", name)
    assert done.status == 2 and any(said in done.err for said in ("knows", "must be one of 8.0"))


def test_engines_where_models_are_needed(whet, engine):
    for arguments in (
        ["build", engine],
        ["show", engine, "--after", "simplify"],
        ["bench", engine, "--against", "onnxruntime"],
        ["check", engine, "--against", "onnxruntime"],
    ):
        done = whet(*arguments)
        assert done.status == 2 and "engine" in done.err


def test_sizes_that_nobody_chose(whet, tmp_path):
    model = save(
        tmp_path / "m.onnx",
        [helper.make_node("Add", ["x", "four"], ["y"], name="sum")],
        [("x", TensorProto.FLOAT, ["n"])],
        [("y", TensorProto.FLOAT, [4])],
        [("three", np.zeros(3, np.float32)), ("four", np.zeros((4,), np.float32))],
    )
    assert whet("run", model, "--size", "n=4").status == 0
    done = whet("run", model, "--size", "n=3")
    assert done.status == 2 and '"sum"' in done.err and "perhaps" not in done.err
    windows = [helper.make_node("Conv", ["x", "w"], ["y"], name="window")]
    model = save(
        tmp_path / "w.onnx",
        windows,
        [("x", TensorProto.FLOAT, [1, 1, "length"])],
        [("y", TensorProto.FLOAT, [1, 1, None])],
        [("w", np.ones((1, 1, 5), np.float32))],
    )
    done = whet("run", model)
    assert done.status == 2 and "window" in done.err and "--size length=1" in done.err
    assert whet("run", model, "--size", "length=9").status == 0


def test_refused_models_list_every_node(whet, refused):
    for command in ("build", "run", "check", "show", "bench"):
        done = whet(command, refused)
        assert done.status == 3
        for word in ("2 nodes", "Frobnicate", '"first"', "Twiddle", '"second"'):
            assert word in done.err


def test_damaged_models(whet, digits, tmp_path):
    damaged = tmp_path / "cut.onnx"
    damaged.write_bytes(digits.read_bytes()[:5000])
    assert whet("build", damaged).status == 3
    (tmp_path / "empty.onnx").touch()
    assert whet("build", tmp_path / "empty.onnx").status == 3
    assert not list(tmp_path.glob("*.whet")), "nothing half-written is left"


def test_damaged_engines(whet, engine, tmp_path):
    whole = engine.read_bytes()
    cut, changed = tmp_path / "cut.whet", tmp_path / "changed.whet"
    cut.write_bytes(whole[:-100])
    changed.write_bytes(whole[:2000] + bytes([whole[2000] ^ 4]) + whole[2001:])
    for path in (cut, changed):
        done = whet("run", path)
        assert done.status == 3 and path.name in done.err
        done = whet("check", path, "--file")
        assert done.status == 1 and "damage" in done.out
    (tmp_path / "text.whet").write_text("no engine")
    assert whet("run", tmp_path / "text.whet").status == 3


def test_a_folder_that_cannot_be_written(whet, digits, tmp_path):
    done = whet("build", digits, "-o", tmp_path / "missing" / "m.whet")
    assert done.status == 4 and "missing" in done.err


ALL = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, errors.Error) and kind is not errors.Error
]


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_every_error_has_a_status(kind):
    error = kind([]) if kind is errors.UnsupportedModel else kind("x")
    expected = {errors.CompileError: (70,), errors.Cancelled: (130,)}.get(kind, (2, 3, 4))
    assert status_of(error) in expected


def test_defects_and_interrupts(whet, digits, monkeypatch):
    def fail(options):
        raise AssertionError("x < 3")

    monkeypatch.setattr(run, "run", fail)
    done = whet("run", digits)
    assert done.status == 70
    assert all(word in done.err for word in ("defect", "x < 3", "WHET_DEBUG=1", "report"))

    def interrupt(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "run", interrupt)
    assert whet("run", digits).status == 130


def test_debug_shows_where(capsys, monkeypatch):
    monkeypatch.setenv("WHET_DEBUG", "1")
    assert main(["run", "nowhere.onnx"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_wrong_setting_is_named(whet, digits, monkeypatch):
    monkeypatch.setenv("WHET_THREADS", "many")
    done = whet("run", digits)
    assert done.status == 2 and "WHET_THREADS='many'" in done.err
