"""Sound models, small and unlike each other, for damage to be done to."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import onnx.parser
from onnx import TensorProto, helper, numpy_helper

TEXTS = [
    """g (bool c, float[N] x) => (float[M] y) <float[2] w = {1.0, 2.0}> {
      y = If (c) <
        then_branch = a () => (float[M] z) { z = Mul(x, w) },
        else_branch = b () => (float[M] v) { v = Concat<axis=0>(x, x) }>
    }""",
    """g (float[N] x, int64 n) => (float[N] y, float[M,N] z) {
      c = Constant<value = bool {1}>()
      y, z = Loop(n, c, x) <
        body = b (int64 i, bool c1, float[N] s) => (bool c2, float[N] t, float[N] u)
      <float[1] w = {3.0}> {
        c2 = Identity(c1)
        t = Mul(s, w)
        u = Relu(t) }>
    }""",
    """g (float[N,1] x, int64[1] axes) => (float[N] y, float[N] z) <int64[1] r = {-1}> {
      s = Squeeze(x, axes)
      z = Reshape(s, r)
      k = Constant<value = int64[1] {2}>()
      y, i = TopK<axis=0>(z, k)
    }""",
    """g (float[K] state, float[T,K] x) => (float[K] y, float[T,K] z) {
      y, z = Scan <num_scan_inputs = 1, scan_input_axes = [0],
        body = b (float[K] s, float[K] v) => (float[K] t, float[K] u) {
          t = Add(s, v)
          u = Mul(s, v) }>(state, x)
    }""",
    """g (float[6,N] x, int64 at) => (float[2,N] y, int64 n) <int64 two = {2}> {
      s = SplitToSequence<axis=0>(x, two)
      t = SequenceMap <body = b (float[A,B] v) => (float[A,B] u) { u = Exp(v) }>(s)
      y = SequenceAt(t, at)
      n = SequenceLength(t)
    }""",
    """g (float[1,3,8,8] x) => (float[1,2,4,4] y) <float[2,3,3,3] w, float[2] b = {0.5, 1.0}> {
      c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]> (x, w, b)
      r = Relu(c)
      y = MaxPool <kernel_shape = [1, 1]> (r)
    }""",
    """g (float[2,8] x) => (float[2,4] y, int64[2] i) <float[8,4] w> {
      m = MatMul(x, w)
      y = Softmax<axis = -1>(m)
      sh = Shape(m)
      i = Identity(sh)
    }""",
    """g (float[N] x, int64[1] k) => (float[M] y, float[P] z, int64[1,Q] nz) {
      e = Expand(x, k)
      t = Tile(e, k)
      o = ConstantOfShape<value = float[1] {2.5}>(k)
      zero = Constant<value = int64[1] {0}>()
      y = Slice(t, zero, k)
      z = Pad<mode = "constant">(o, p)
      nz = NonZero(x)
    }""".replace("{\n      e =", "<int64[2] p = {1, 1}> {\n      e =", 1),
]

FUNCTION = """<ir_version: 10, opset_import: ["" : 19, "local" : 1]>
g (float[N] x) => (float[N] z) { t = local.f <alpha = 0.5> (x)
  z = local.f(t) }
<domain: "local", opset_import: ["" : 19, "local" : 1]>
f <alpha : float = 1.0> (a) => (c) { b = LeakyRelu <alpha : float = @alpha> (a)
  c = local.h(b) }
<domain: "local", opset_import: ["" : 19]>
h (a) => (b) { b = Neg(a) }"""


def seeds() -> Iterator[bytes]:
    """The serialised models."""
    for text in TEXTS:
        model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 19]>\n{text}')
        fill(model)
        yield model.SerializeToString()
    yield onnx.parser.parse_model(FUNCTION).SerializeToString()
    yield stored().SerializeToString()


def fill(model: onnx.ModelProto) -> None:
    """Makes initializers of the values that are declared without elements."""
    rng = np.random.default_rng(0)
    for value in model.graph.value_info:
        shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
        array = rng.standard_normal(shape).astype(np.float32)
        if all(value.name not in node.output for node in model.graph.node):
            model.graph.initializer.append(numpy_helper.from_array(array, value.name))


def stored() -> onnx.ModelProto:
    """Tensors in raw and typed fields of many dtypes, sparse ones, and inputs that are
    initializers."""
    kinds = [*range(TensorProto.FLOAT, TensorProto.INT2 + 1)]
    tensors = []
    for kind in kinds:
        values = ["a", "b", "c", "d"] if kind == TensorProto.STRING else [0, 1, 1, 0]
        tensors.append(helper.make_tensor(f"t{kind}", kind, [2, 2], values))
        if kind != TensorProto.STRING:
            raw = numpy_helper.to_array(tensors[-1])
            tensors.append(numpy_helper.from_array(raw, f"r{kind}"))
    sparse = helper.make_sparse_tensor(
        helper.make_tensor("s", TensorProto.FLOAT, [2], [1.0, 2.0]),
        helper.make_tensor("places", TensorProto.INT64, [2], [1, 5]),
        [2, 3],
    )
    nodes = [
        helper.make_node("Identity", [t.name], [f"y{t.name}"]) for t in (*tensors, sparse.values)
    ]
    outputs = [helper.make_empty_tensor_value_info(f"y{t.name}") for t in (*tensors, sparse.values)]
    inputs = [helper.make_tensor_value_info("t1", TensorProto.FLOAT, [2, 2])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors, sparse_initializer=[sparse])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
