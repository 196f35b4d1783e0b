"""`whet build --strip` and `whet refit`."""

import numpy as np
import onnx
from onnx import numpy_helper

import whet as library
from tests.runtime.models import attention


def test_strip_and_give_back(whet, digits, tmp_path):
    whole, bare, again = (tmp_path / f"{n}.whet" for n in ("whole", "bare", "again"))
    assert whet("build", digits, "-o", whole).status == 0
    assert whet("build", digits, "-o", bare, "--strip").status == 0
    assert bare.stat().st_size < whole.stat().st_size / 2
    listed = whet("refit", bare)
    assert listed.status == 0 and "missing" in listed.out
    refused = whet("run", bare)
    assert refused.status == 3 and "refit" in refused.err
    done = whet("refit", bare, digits, "-o", again)
    assert done.status == 0 and "again.whet" in done.out
    assert again.read_bytes() == whole.read_bytes()
    assert whet("refit", bare, whole).status == 0
    assert bare.read_bytes() == whole.read_bytes()


def test_weights_in_a_file(whet, digits):
    done = whet("run", digits, "--weight-budget", "50%", "--device", "cpu")
    assert done.status == 0
    assert whet("run", digits, "--weight-budget", "half", "--device", "cpu").status == 2


def test_some_weights(whet, digits, engine, tmp_path):
    proto = onnx.load(digits)
    name = next(t.name for t in proto.graph.initializer if len(t.dims) > 1)
    (tensor,) = (t for t in proto.graph.initializer if t.name == name)
    np.savez(tmp_path / "new.npz", **{name: numpy_helper.to_array(tensor) * 2})
    assert whet("refit", engine, tmp_path / "new.npz").status == 0
    found = library.load(engine).weights.array(name)
    np.testing.assert_array_equal(found, numpy_helper.to_array(tensor) * 2)


def test_another_shape_with_kernels_for_it(whet, tmp_path):
    old, new = attention(), attention()
    (heads,) = (t for t in new.graph.initializer if t.name == "heads")
    heads.CopyFrom(numpy_helper.from_array(np.array([1, -1, 4, 4]), "heads"))
    for name, proto in (("old", old), ("new", new)):
        onnx.save(proto, tmp_path / f"{name}.onnx")
        built = whet("build", tmp_path / f"{name}.onnx", "--architectures", "sse2")
        assert built.status == 0
    listed = whet("refit", tmp_path / "old.whet")
    assert "with another the graph is made anew" in " ".join(listed.out.split())
    np.savez(tmp_path / "heads.npz", heads=np.array([1, -1, 4, 4]))
    assert whet("refit", tmp_path / "old.whet", tmp_path / "heads.npz").status == 0
    assert (tmp_path / "old.whet").read_bytes() == (tmp_path / "new.whet").read_bytes()
    np.savez(tmp_path / "heads.npz", heads=np.array([1, -1, 3, 5]))
    refused = whet("refit", tmp_path / "old.whet", tmp_path / "heads.npz")
    assert refused.status == 2 and "Reshape" in refused.err
    assert (tmp_path / "old.whet").read_bytes() == (tmp_path / "new.whet").read_bytes()


def test_what_is_wrong_is_listed(whet, engine, tmp_path):
    before = engine.read_bytes()
    np.savez(tmp_path / "wrong.npz", nobody=np.ones(3), nothing=np.ones(2))
    refused = whet("refit", engine, tmp_path / "wrong.npz")
    assert refused.status == 2 and "unknown: nobody, nothing" in " ".join(refused.err.split())
    assert engine.read_bytes() == before
    assert whet("refit", tmp_path / "wrong.npz").status == 2
    assert whet("refit", engine, "-o", tmp_path / "x.whet").status == 2
    assert whet("build", "model.onnx", "--strip", "--not-refittable").status == 2
