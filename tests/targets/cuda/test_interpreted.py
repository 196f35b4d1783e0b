"""Generated text, run by Triton's interpreter in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.targets.cuda.needs import needs_triton

ROOT = Path(__file__).resolve().parents[3]


@needs_triton
@pytest.mark.parametrize(
    "words",
    [
        ["--parts", "0", "plain"],
        ["--parts", "0", "conv3x3"],
        ["--parts", "3", "deep"],
        ["--parts", "1", "epilogue"],
        ["--parts", "1", "grouped"],
        ["--parts", "2", "deep", "uint8"],
        ["conv-pad", "int8"],
        ["conv-zero", "int8"],
        ["--persistent"],
        ["conv-lines"],
        ["depthwise"],
        ["--span", "7", "depthwise-one"],
        ["conv1d"],
        ["attention-causal"],
        ["attention-padded"],
    ],
    ids="-".join,
)
def test_contractions(words: list[str]) -> None:
    interpret("run_contractions", *words)


@needs_triton
@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn", "suppression", "order"])
def test_layers(kind: str) -> None:
    interpret("run_layers", kind)


@needs_triton
def test_last_blocks_of_large_tensors() -> None:
    interpret("run_large")


@needs_triton
def test_onnx_cases_of_few_keys() -> None:
    """They allow for one rounding, where weights that are rounded, too, take two."""
    interpret("run_onnx", "attention_4d.*_fp16")


def interpret(module: str, *words: str) -> None:
    """Runs problems whose names hold the words; each must be right."""
    command = [sys.executable, "-m", f"tests.targets.cuda.{module}", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert " 0 failed" in done.stdout and "\n0 passed" not in f"\n{done.stdout}"
