"""What a conformance run judges: backends that open a model and run it.

A backend refuses a model by raising one of its REFUSALS; any other exception is an error of its
own. Backends are looked up by name in the process that runs the cases, so nothing is loaded before.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx

Source = Path | onnx.ModelProto


class Loaded(Protocol):
    """A model ready to run."""

    def run(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The outputs by name, in the model's order."""
        ...

    def references(self) -> Sequence[str]:
        """The names of the nodes that run a reference kernel."""
        ...


@dataclass(frozen=True)
class Backend:
    open: Callable[[Source], Loaded]
    refusals: tuple[type[Exception], ...]


class Whet:
    def __init__(self, source: Source, device: str, cache: Path | None):
        import whet

        kept = whet.Cache(cache) if cache else False
        self.session = whet.build(source).session(device=device, threads=1, cache=kept)

    def run(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return dict(self.session.run(inputs))

    def references(self) -> Sequence[str]:
        return self.session.reference_ops


class OnnxRuntime:
    def __init__(self, source: Source):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        text = str(source) if isinstance(source, Path) else source.SerializeToString()
        self.session = onnxruntime.InferenceSession(text, options, ["CPUExecutionProvider"])
        self.names = [output.name for output in self.session.get_outputs()]

    def run(self, inputs: dict[str, Any]) -> dict[str, Any]:
        given = {name: ort_value(x) for name, x in inputs.items()}
        return dict(zip(self.names, self.session.run(None, given)))

    def references(self) -> Sequence[str]:
        return []


def ort_value(x: Any) -> Any:
    """Types that NumPy lacks cross ONNX Runtime's interface as bits with a type's name."""
    import onnxruntime

    if not isinstance(x, np.ndarray) or x.dtype.type.__module__ != "ml_dtypes":
        return x
    kind = onnx.helper.np_dtype_to_tensor_dtype(x.dtype)
    bits = x.view(np.uint16 if x.dtype.itemsize == 2 else np.uint8)
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, kind)


def open_whet(device: str, cache: Path | None = None) -> Backend:
    import whet

    return Backend(partial(Whet, device=device, cache=cache), (whet.Error,))


def open_onnxruntime(cache: Path | None = None) -> Backend:
    return Backend(OnnxRuntime, (Exception,))


BACKENDS: dict[str, Callable[..., Backend]] = {
    "whet": partial(open_whet, "cpu"),
    "whet-cuda": partial(open_whet, "cuda"),
    "onnxruntime": open_onnxruntime,
}
