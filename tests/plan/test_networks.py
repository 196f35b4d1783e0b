"""What whole networks become on a CPU, as counts: every convolution carries its normalisation,
bias, activation and residual, attention is one kernel, and no other elementwise work is left."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import pytest

from tests.passes.stand_ins import (
    modern_convolutions,
    residual_network,
    shuffling_network,
    squeezing_network,
    transformer,
)
from tests.passes.test_networks import FOLDER
from tests.plan.test_plans import plan_of

STAND_INS: dict[Any, dict[str, int]] = {
    # Two poolings, and the product of the head.
    residual_network: {"packedconvolution": 4, "packedproduct": 1, "loops": 2},
    # A mean, the gate that goes into the weights behind it, and a mean in two steps.
    squeezing_network: {"packedconvolution": 5, "loops": 4},
    # The halves and their shuffles: movements alone.
    shuffling_network: {"packedconvolution": 4, "loops": 7},
    # Three normalisations and a mean.
    modern_convolutions: {"packedconvolution": 3, "packedproduct": 5, "loops": 4},
    # Five normalisations, and the mask.
    transformer: {"packedproduct": 8, "flashattention": 2, "loops": 6},
}


@pytest.mark.parametrize("level", ["avx512", "avx2"])
@pytest.mark.parametrize("build", STAND_INS)
def test_stand_in(build: Any, level: str) -> None:
    assert kernels(build(), level) == STAND_INS[build]


def kernels(model: onnx.ModelProto | Path, level: str) -> Counter[str]:
    plan = plan_of(model, level)
    assert not plan.reference_ops
    return Counter(step.name for step in plan.steps)


EXPORTED = {
    "resnet18": {"packedconvolution": 20, "packedproduct": 1, "loops": 2},
    "resnet50": {"packedconvolution": 53, "packedproduct": 1, "loops": 2},
    # Squeeze-and-excitation: means in two steps, gates that go into the weights behind them.
    "mobilenetv3_large_100": {"packedconvolution": 63, "packedproduct": 1, "loops": 22},
    "efficientnet_b0": {"packedconvolution": 81, "packedproduct": 1, "loops": 44},
    "convnext_tiny": {"packedconvolution": 22, "packedproduct": 37, "loops": 24},
    "vit_base_patch16_224": {
        "packedconvolution": 1,
        "packedproduct": 49,
        "flashattention": 12,
        "loops": 26,
    },
    "bert_base": {"packedproduct": 48, "flashattention": 12, "loops": 26},
}


@pytest.mark.parametrize("name", EXPORTED)
def test_exported(name: str) -> None:
    path = FOLDER / f"{name}.onnx"
    if not path.exists():
        pytest.skip(f"{path} is not there; `python -m benchmarks.networks {name}` exports it")
    assert kernels(path, "avx2") == EXPORTED[name]
