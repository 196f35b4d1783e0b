"""What a conformance run judges: functions of a model and its inputs.

A backend returns the outputs in the model's order and the names of the nodes that ran a reference
kernel. It refuses a model by raising one of its REFUSALS; any other exception is an error of its
own. Backends are looked up by name in the process that runs the cases, so nothing is loaded before.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

Run = Callable[[onnx.ModelProto, dict[str, Any]], tuple[Sequence[Any], Sequence[str]]]


@dataclass(frozen=True)
class Backend:
    run: Run
    refusals: tuple[type[Exception], ...]


def whet() -> Backend:
    import whet

    def run(model: onnx.ModelProto, inputs: dict[str, Any]) -> tuple[Sequence[Any], Sequence[str]]:
        session = whet.build(model).session(threads=1, cache=False)
        outputs = session.run(inputs)
        return [outputs[value.name] for value in model.graph.output], session.reference_ops

    return Backend(run, (whet.Error,))


def onnxruntime() -> Backend:
    import ml_dtypes
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4

    def value(x: Any) -> Any:
        """Types that NumPy lacks cross the interface as what ONNX Runtime calls them."""
        if isinstance(x, np.ndarray) and x.dtype.type.__module__ == ml_dtypes.__name__:
            kind = onnx.helper.np_dtype_to_tensor_dtype(x.dtype)
            return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(bits(x), kind)
        return x

    def bits(x: Any) -> Any:
        return x.view(np.uint16 if x.dtype.itemsize == 2 else np.uint8)

    def run(model: onnx.ModelProto, inputs: dict[str, Any]) -> tuple[Sequence[Any], Sequence[str]]:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, ["CPUExecutionProvider"]
        )
        return session.run(None, {k: value(x) for k, x in inputs.items()}), []

    return Backend(run, (Exception,))


BACKENDS: dict[str, Callable[[], Backend]] = {"whet": whet, "onnxruntime": onnxruntime}
