"""Inputs from files, pictures and chance."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import whet as library
from tests.cli.conftest import save
from whet.cli import parser
from whet.cli.inputs import given_inputs, random_inputs


def given(model, *options):
    arguments = parser().parse_args(["run", str(model), *map(str, options)])
    return given_inputs(library.build(model), arguments)[0]


def test_random_indices_stay_in_their_table(two_inputs):
    engine = library.build(two_inputs)
    drawn = [random_inputs(engine, {"n": 200}, seed)["ids"] for seed in range(5)]
    assert {x.min() for x in drawn} == {0} and {x.max() for x in drawn} == {6}


@pytest.mark.parametrize("dtype", ["FLOAT16", "BFLOAT16", "DOUBLE", "UINT8", "INT32", "BOOL"])
def test_every_dtype_can_be_drawn_and_saved(whet, tmp_path, dtype):
    kind = getattr(TensorProto, dtype)
    model = save(
        tmp_path / "m.onnx",
        [helper.make_node("Identity", ["x"], ["y"], name="same")],
        [("x", kind, ["n", 3])],
        [("y", kind, ["n", 3])],
    )
    out = tmp_path / "y.npz"
    assert whet("run", model, "--size", "n=4", "-o", out).status == 0
    (array,) = np.load(out).values()
    assert array.shape == (4, 3)
    np.save(tmp_path / "x.npy", array)
    assert whet("run", model, "--input", tmp_path / "x.npy").status == 0


def test_strings(whet, tmp_path):
    model = save(
        tmp_path / "m.onnx",
        [helper.make_node("Identity", ["x"], ["y"], name="same")],
        [("x", TensorProto.STRING, [2])],
        [("y", TensorProto.STRING, [2])],
    )
    np.save(tmp_path / "x.npy", np.array(["one", "two"]))
    done = whet("run", model, "--input", tmp_path / "x.npy", "-o", tmp_path / "y.npz")
    assert done.status == 0 and "one two" in done.out
    assert np.load(tmp_path / "y.npz")["y"].tolist() == ["one", "two"]


def test_cast(digits, tmp_path):
    np.save(tmp_path / "x.npy", np.ones((2, 1, 8, 8), np.uint8))
    x = given(digits, "--input", tmp_path / "x.npy", "--cast")["image"]
    assert x.dtype == np.float32 and x.shape == (2, 1, 8, 8)


def test_sequences_cannot_be_drawn(whet, tmp_path):
    graph = helper.make_graph(
        [helper.make_node("SequenceLength", ["s"], ["n"], name="length")],
        "test",
        [helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("n", TensorProto.INT64, [])],
    )
    onnx.save(helper.make_model(graph), tmp_path / "m.onnx")
    done = whet("run", tmp_path / "m.onnx")
    assert done.status == 2 and "'s'" in done.err and "--input" in done.err


@pytest.fixture
def picture(tmp_path):
    """Red above, blue below: 20 wide and 10 high."""
    image = pytest.importorskip("PIL.Image")
    pixels = np.zeros((10, 20, 3), np.uint8)
    pixels[:5, :, 0], pixels[5:, :, 2] = 255, 255
    image.fromarray(pixels).save(tmp_path / "flag.png")
    return tmp_path / "flag.png"


def image_model(path, shape, dtype=TensorProto.FLOAT):
    nodes = [helper.make_node("Identity", ["x"], ["y"], name="same")]
    return save(path / "image.onnx", nodes, [("x", dtype, shape)], [("y", dtype, shape)])


def test_pictures_by_channels_first_and_last(picture, tmp_path):
    first = given(image_model(tmp_path, [1, 3, 6, 6]), "--input", picture)["x"]
    last = given(image_model(tmp_path, ["n", 6, 6, 3]), "--input", picture, "--size", "n=2")["x"]
    assert first.shape == (1, 3, 6, 6) and last.shape == (2, 6, 6, 3)
    assert np.array_equal(np.moveaxis(first[0], 0, -1), last[1])
    assert first[0, :, 0, 0].tolist() == [1, 0, 0] and first[0, :, -1, 0].tolist() == [0, 0, 1]


def test_pictures_are_normalised(picture, tmp_path):
    model = image_model(tmp_path, [1, 3, 6, 6])
    x = given(model, "--input", picture, "--imagenet")["x"]
    expected = (np.array([1, 0, 0]) - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert np.allclose(x[0, :, 0, 0], expected)
    x = given(model, "--input", picture, "--bgr", "--scale", "1", "--mean", "127.5")["x"]
    assert x[0, :, 0, 0].tolist() == [-127.5, -127.5, 127.5]


def test_pictures_of_bytes_stay_bytes(picture, tmp_path):
    x = given(image_model(tmp_path, [6, 6, 3], TensorProto.UINT8), "--input", picture)["x"]
    assert x.dtype == np.uint8 and x[0, 0].tolist() == [255, 0, 0]


def test_padding_keeps_all_of_a_picture(picture, tmp_path):
    model = image_model(tmp_path, [1, 3, 8, 8])
    x = given(model, "--input", picture, "--fit", "pad")["x"]
    assert not x[0, :, 0].any() and x[0, 0, 3].all()


@pytest.mark.parametrize(
    "options, word",
    [(["--mean", "0.1,0.2"], "2 numbers for 3 channels"), (["--std", "a"], "no list of numbers")],
)
def test_wrong_normalisation(whet, picture, tmp_path, options, word):
    done = whet("run", image_model(tmp_path, [1, 3, 6, 6]), "--input", picture, *options)
    assert done.status == 2 and word in done.err


def test_what_is_no_picture(whet, picture, tmp_path):
    done = whet("run", image_model(tmp_path, [1, 5, 6, 6]), "--input", picture)
    assert done.status == 2 and "channels" in done.err
    done = whet("run", image_model(tmp_path, [7]), "--input", picture)
    assert done.status == 2 and "no picture" in done.err


def test_without_pillow(whet, picture, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    done = whet("run", image_model(tmp_path, [1, 3, 6, 6]), "--input", picture)
    assert done.status == 2 and "pip install pillow" in done.err
