"""Every command on real input: status, what it says, what it writes."""

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest

import whet as library
from whet.cli import COMMANDS, parser

NAMES = [command.__name__.rpartition(".")[2] for command in COMMANDS]


@pytest.mark.parametrize("name", NAMES)
def test_help_teaches(whet, name):
    done = whet(name, "--help")
    assert done.status == 0
    assert f"whet {name}" in done.out.partition("examples:")[2]


def test_without_a_command_all_are_listed(whet):
    done = whet()
    assert done.status == 0
    assert all(name in done.out for name in NAMES)
    assert "exit status:" in done.out


def test_version(whet):
    assert whet("--version").out.startswith("whet ")


def test_module_and_function_are_the_same(digits, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "whet", "build", digits, "-o", tmp_path / "m.whet"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "m.whet" in done.stdout and "image: float32[batch,1,8,8]" in done.stdout


def test_help_loads_no_compiler():
    code = "import sys; from whet.cli import parser; parser(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"llvmlite", "onnx", "rich"} & set(done.stdout.split())


def test_build_next_to_the_model(whet, two_inputs):
    assert whet("build", two_inputs).status == 0
    engine = library.load(two_inputs.with_suffix(".whet"))
    assert list(engine.inputs) == ["ids", "shift"]


def test_build_with_ranges(whet, two_inputs, tmp_path):
    path = tmp_path / "bounded.whet"
    assert whet("build", two_inputs, "-o", path, "--size", "n=1:3:5").status == 0
    (profile,) = library.load(path).profiles
    assert (profile.min["ids"], profile.opt["ids"], profile.max["ids"]) == ((1,), (3,), (5,))
    done = whet("run", path)
    assert "n=3" in done.err, "the likely size is taken for random inputs"
    assert "float32[3,4]" in done.out
    done = whet("run", path, "--size", "n=6")
    assert done.status == 2 and "profiles" in done.err


def test_build_with_machine_code(whet, two_inputs, tmp_path):
    path = tmp_path / "code.whet"
    assert whet("build", two_inputs, "-o", path, "--architectures", "sse2").status == 0
    assert whet("run", path, "--allow-code", "--device", "cpu:sse2").status == 0


def test_machine_code_is_for_the_sizes_asked_for(whet, digits, tmp_path):
    path, name = tmp_path / "code.whet", "sse2"
    asked = ["--size", "batch=1:32:64", "--architectures", name]
    assert whet("build", digits, "-o", path, *asked).status == 0
    profile = library.Profile(*({"image": (n, 1, 8, 8)} for n in (1, 32, 64)))
    wanted = library.build(digits, profiles=profile, architectures=name)
    assert library.load(path, allow_code=True).kernels.keys() == wanted.kernels.keys()


def test_run_saves_what_the_library_gives(whet, digits, engine, tmp_path):
    rng = np.random.default_rng(3)
    images = rng.uniform(0, 16, (5, 1, 8, 8)).astype(np.float32)
    np.save(tmp_path / "x.npy", images)
    expected = library.session(digits, cache=False).run({"image": images})["logits"]
    for model in (digits, engine):
        done = whet("run", model, "--input", tmp_path / "x.npy", "-o", tmp_path / "y.npz")
        assert done.status == 0
        assert "logits" in done.out and "float32[5,10]" in done.out
        with np.load(tmp_path / "y.npz") as saved:
            assert np.array_equal(saved["logits"], expected)


def test_run_says_the_largest(whet, digits, tmp_path):
    labels = tmp_path / "labels.txt"
    labels.write_text("".join(f"digit {n}\n" for n in range(10)))
    done = whet("run", digits, "--size", "batch=2", "--top", 3, "--labels", labels)
    assert done.status == 0
    assert "logits[1]" in done.out and done.out.count("digit ") == 6


def test_random_runs_repeat(whet, digits):
    first, again, other = (
        whet("run", digits, "--size", "batch=3", "--seed", seed) for seed in (5, 5, 6)
    )
    assert first.out == again.out != other.out


def test_bench(whet, digits, tmp_path):
    figures = tmp_path / "figures.json"
    against = ["--against", "onnxruntime"] if find_spec("onnxruntime") else []
    done = whet(
        "bench", digits, "--rounds", 2, "--seconds", 0.1, "--kernels", "--callers", 2,
        "--json", figures, *against,
    )  # fmt: skip
    assert done.status == 0
    assert "cold start" in done.out
    assert "convolution" in done.out, "the kernels are listed"
    plain = json.loads(figures.read_text())
    runner = plain["runners"]["whet"]
    assert runner["latency"]["least"] <= runner["latency"]["p50"] <= runner["latency"]["p99"]
    assert runner["cold start"] > runner["start"] > 0
    assert runner["throughput"] > 0 and runner["arena"] > 0 and plain["machine"]["processor"]
    assert len(runner["kernel times"]) == runner["kernels"]
    if against:
        assert plain["ratios"]["onnxruntime"] > 0


def test_bench_of_an_engine(whet, engine):
    done = whet("bench", engine, "--rounds", 1, "--seconds", 0.05)
    assert done.status == 0 and "load " in done.out


def test_bench_goes_on_without_a_runner_that_fails(whet, digits, tmp_path):
    if find_spec("torch") is None:
        pytest.skip("needs torch")
    (tmp_path / "broken.pt2").write_bytes(b"no archive")
    done = whet(
        "bench", digits, "--rounds", 1, "--seconds", 0.05,
        "--against", f"torch={tmp_path / 'broken.pt2'}",
    )  # fmt: skip
    assert done.status == 0
    assert "torch failed" in done.out


def test_bench_of_what_cannot_run_is_no_defect(whet, engine, tmp_path):
    library.load(engine).save(tmp_path / "bare.whet", strip=True)
    done = whet("bench", tmp_path / "bare.whet", "--rounds", 1, "--seconds", 0.05)
    assert done.status == 3 and "whet failed: MissingWeights: weights are missing" in done.out


def test_devices(whet):
    done = whet("devices")
    assert done.status == 0
    for word in ("architecture", "threads", "numpy", "folder", "compiled, run and right"):
        assert word in done.out
    lines = json.loads(whet("devices", "--json").out)
    assert {line["topic"] for line in lines} >= {"cpu", "versions", "cache", "trial"}


def test_devices_say_what_to_do(whet, monkeypatch, tmp_path):
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o755)
    monkeypatch.setenv("WHET_CACHE_DIR", str(folder))
    assert "-> " in (done := whet("devices")).out and "chmod 700" in done.out


def test_cache(whet, two_inputs, monkeypatch, tmp_path):
    monkeypatch.setenv("WHET_CACHE_DIR", str(tmp_path / "kernels"))
    assert "entries  0" in whet("cache").out
    assert whet("run", two_inputs).status == 0
    entries = list((tmp_path / "kernels").glob("*.bin"))
    assert entries
    listed = whet("cache", "list").out
    assert all(entry.stem in listed for entry in entries) and "today" in listed
    assert "removed" in whet("cache", "clear").out
    assert not list((tmp_path / "kernels").glob("*.bin"))
    assert whet("run", two_inputs, "--no-cache").status == 0
    assert not list((tmp_path / "kernels").glob("*.bin"))


def test_a_cache_moves_as_one_file(whet, two_inputs, monkeypatch, tmp_path):
    monkeypatch.setenv("WHET_CACHE_DIR", str(tmp_path / "here"))
    assert whet("run", two_inputs).status == 0
    blob = tmp_path / "kernels.bin"
    assert "wrote" in whet("cache", "export", blob).out
    monkeypatch.setenv("WHET_CACHE_DIR", str(tmp_path / "there"))
    done = whet("cache", "import", blob)
    assert done.status == 2 and "--trusted" in done.err and not (tmp_path / "there").exists()
    assert "entries imported" in whet("cache", "import", blob, "--trusted").out
    names = [{p.name for p in (tmp_path / f).glob("*.bin")} for f in ("here", "there")]
    assert names[0] == names[1]
    blob.write_bytes(blob.read_bytes()[:-1])
    assert "damaged" in (done := whet("cache", "import", blob, "--trusted")).err
    assert done.status == 4
    assert whet("cache", "import", tmp_path / "none", "--trusted").status == 2
    assert whet("cache", "export").status == whet("cache", "list", blob).status == 2


def test_cache_that_cannot_be_used(whet, tmp_path):
    (tmp_path / "file").touch()
    for action in ("info", "list", "clear"):
        assert whet("cache", action, "--folder", tmp_path / "typo").status == 2
    assert not (tmp_path / "typo").exists()
    done = whet("cache", "--folder", tmp_path / "file")
    assert done.status == 4 and "is no folder" in done.out


def test_a_closed_pipe_is_quiet(digits):
    if os.name != "posix":
        pytest.skip("needs a POSIX shell")
    shell = f"{sys.executable} -m whet show {digits} --code | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True)
    assert not {"Traceback", "BrokenPipe", "Exception"} & set(re.findall(r"\w+", done.stderr))
    assert done.stdout.splitlines()[-1] in ("0", "1")


def test_every_option_has_help():
    for command in parser()._subparsers._group_actions[0].choices.values():
        for action in command._actions:
            is_plain = action.dest in ("help", "action", "folder")
            assert action.help or is_plain, f"{command.prog} {action.dest}"


def test_tensors_inside_are_read_out(whet, digits, engine, tmp_path):
    done = whet("run", digits, "--debug", "conv2d", "-o", tmp_path / "y.npz", "--size", "batch=2")
    assert done.status == 0 and "conv2d" in done.out and "float32[2,16,8,8]" in done.out
    with np.load(tmp_path / "y.npz") as saved:
        assert set(saved) == {"logits", "conv2d"}
    done = whet("run", digits, "--debug", "conv2dd")
    assert done.status == 2 and "'conv2d'" in done.err
    done = whet("run", engine, "--debug", "conv2d")
    assert done.status == 0 and "conv2d" in done.out
    folded, marked = tmp_path / "folded.whet", tmp_path / "marked.whet"
    assert whet("build", digits, "--not-refittable", "-o", folded).status == 0
    assert whet("run", folded, "--debug", "conv2d").status == 2
    done = whet("build", digits, "--not-refittable", "--debug", "conv2d", "-o", marked)
    assert done.status == 0 and "conv2d" in done.out
    done = whet("run", marked, "--debug", "conv2d")
    assert done.status == 0 and "conv2d" in done.out


def test_timelines(whet, digits, tmp_path):
    path = tmp_path / "run.json"
    for command in (["run"], ["bench", "--rounds", 1, "--seconds", 0.05]):
        done = whet(*command, digits, "--trace", path)
        assert done.status == 0 and "ui.perfetto.dev" in done.err
        events = json.loads(path.read_text())["traceEvents"]
        names = {event["name"] for event in events}
        assert {"read", "optimise"} <= names and any("convolution" in name for name in names)
        path.unlink()
