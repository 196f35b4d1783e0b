"""com.microsoft nodes and what NumPy says they give: those that ONNX Runtime lacks on CPUs."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from tests.frontends.contrib_cases import Array, Draw, Node

Pair = tuple[Node, list[Array]]


def softmax(x: Array, axes: int | tuple[int, ...] = -1) -> Array:
    e = np.exp(x - x.max(axes, keepdims=True))
    return e / e.sum(axes, keepdims=True)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def gelu(x: Array) -> Array:
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def normal(x: Array, axes: tuple[int, ...], epsilon: float) -> Array:
    centred = x - x.mean(axes, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axes, keepdims=True) + epsilon)


def heads(q: Array, k: Array, v: Array) -> Array:
    """Attention of [B, S, N, H] tensors, joined to [B, S, N*H]."""
    scores = np.einsum("bsnh,btnh->bnst", q, k) / math.sqrt(q.shape[-1])
    y = np.einsum("bnst,btnh->bsnh", softmax(scores), v)
    return y.reshape(*y.shape[:2], -1)


def pairs(d: Draw) -> Iterator[Pair]:
    yield from fused(d)
    yield from normalisation(d)
    yield from attention(d)
    yield from movement(d)


def fused(d: Draw) -> Iterator[Pair]:
    x, bias = d(2, 3, 8), d(8)
    left, right = np.split(x + bias, 2, -1)
    yield Node("bias-split-gelu", "BiasSplitGelu", (x, bias)), [left * gelu(right)]
    skip = d(2, 3, 8)
    yield Node("bias-add", "BiasAdd", (x, bias, skip)), [x + bias + skip]
    attributes = {"axis": 2, "is_inner_broadcast": 0}
    yield Node("bias-softmax", "BiasSoftmax", (x, bias), 1, attributes), [softmax(x + bias)]
    attributes = {"axis": 2, "is_inner_broadcast": 1}
    inner, data = d(2, 6), d(2, 3, 6)
    expected = softmax(data + inner[:, None])
    yield Node("bias-softmax-inner", "BiasSoftmax", (data, inner), 1, attributes), [expected]
    a, b = d(2, 5, 2), d(1, 5, 2)
    product = (a[..., 0] + 1j * a[..., 1]) * (b[..., 0] + 1j * b[..., 1])
    yield Node("complex", "ComplexMul", (a, b)), [np.stack([product.real, product.imag], -1)]
    product = (a[..., 0] + 1j * a[..., 1]) * (b[..., 0] - 1j * b[..., 1])
    yield Node("conjugate", "ComplexMulConj", (a, b)), [np.stack([product.real, product.imag], -1)]


def normalisation(d: Draw) -> Iterator[Pair]:
    x, gamma, beta = d(2, 4, 5, 6), d(6), d(6)
    grouped = normal(x.reshape(2, 4, 5, 3, 2), (1, 2, 4), 1e-5).reshape(x.shape)
    y = grouped * gamma + beta
    attributes = {"groups": 3, "activation": 0}
    yield Node("group-norm", "GroupNorm", (x, gamma, beta), 1, attributes), [y]
    attributes = {"groups": 3, "activation": 1}
    yield Node("group-norm-silu", "GroupNorm", (x, gamma, beta), 1, attributes), [y * sigmoid(y)]
    skip, bias = d(2, 6), d(6)
    total = x + skip[:, None, None] + bias
    y = normal(total.reshape(2, 4, 5, 3, 2), (1, 2, 4), 1e-5).reshape(x.shape) * gamma + beta
    attributes = {"groups": 3, "activation": 0}
    inputs = (x, gamma, beta, skip, bias)
    yield Node("skip-group-norm", "SkipGroupNorm", inputs, 2, attributes), [y, total]
    rows, scale, gate = d(2, 12), d(4), d(2, 12)
    groups = rows.reshape(2, 3, 4)
    groups = groups / np.sqrt((groups**2).mean(-1, keepdims=True) + 1e-5) * scale
    y = groups.reshape(2, 12) * gate * sigmoid(gate)
    yield Node("gated-rms", "GatedRMSNorm", (rows, scale, gate)), [y]


def attention(d: Draw) -> Iterator[Pair]:
    q, kv, qkv = d(2, 4, 3, 4), d(2, 6, 3, 2, 4), d(2, 5, 3, 3, 4)
    flat, attributes = q.reshape(2, 4, 12), {"num_heads": 3}
    expected = heads(q, kv[:, :, :, 0], kv[:, :, :, 1])
    yield Node("packed-kv", "MultiHeadAttention", (flat, kv), 1, attributes), [expected]
    expected = heads(*(qkv[:, :, :, i] for i in range(3)))
    yield Node("packed-qkv", "MultiHeadAttention", (qkv,), 1, attributes), [expected]
    yield from relative(d)
    hidden, bias, position = d(2, 5, 12), d(12), d(1, 3, 5, 5)
    weight, offset, eco = d(4, 8), d(8), d(1, 3, 1, 1)
    layer = (hidden + bias).reshape(2, 5, 3, 4).transpose(0, 2, 1, 3)
    gates = sigmoid((layer @ weight + offset).reshape(2, 3, 5, 2, 4).sum(-1))
    u, r = gates[..., :1], gates[..., 1:]
    inputs = (hidden, bias, position, weight, offset, eco)
    expected = (u * (r * eco - 1) + 2) * position
    yield Node("gated", "GatedRelativePositionBias", inputs, 1, attributes), [expected]


def relative(d: Draw) -> Iterator[Pair]:
    """T5's buckets, as Raffel et al. 2020 have them: exact near by, logarithmic far away."""
    table, length = d(8, 2), np.array(20, np.int64)
    for both in (0, 1):
        expected = np.zeros((1, 2, 20, 20), np.float32)
        for i, j in np.ndindex(20, 20):
            expected[0, :, i, j] = table[bucket(j - i, bool(both), 8, 12)]
        attributes = {"max_distance": 12, "is_bidirectional": both}
        inputs = (table, length, length)
        name = f"relative-{both}"
        yield Node(name, "RelativePositionBias", inputs, 1, attributes, fixed=(1, 2)), [expected]


def bucket(distance: int, both: bool, buckets: int, most: int) -> int:
    first = 0
    if both:
        buckets //= 2
        first = buckets if distance > 0 else 0
        distance = abs(distance)
    else:
        distance = max(-distance, 0)
    exact = buckets // 2
    if distance < exact:
        return first + distance
    spread = math.log(distance / exact) / math.log(most / exact) * (buckets - exact)
    return first + min(exact + int(spread + 1e-6), buckets - 1)


def movement(d: Draw) -> Iterator[Pair]:
    table, which = d(5, 4), np.array([[0, 3], [4, 1]], np.int64)
    yield Node("embedding", "TorchEmbedding", (table, which)), [table[which]]
    signal = d(3, 16)
    spectrum = np.fft.rfft(signal)
    parts = np.stack([spectrum.real, spectrum.imag], -1).astype(np.float32)
    how = {"normalized": 0, "onesided": 1, "signal_ndim": 1}
    yield Node("rfft", "Rfft", (signal,), 1, how), [parts]
    yield Node("irfft", "Irfft", (parts,), 1, how), [signal]
    x = d(2, 7, 3)
    windows = np.lib.stride_tricks.sliding_window_view(x, 3, 1)[:, ::2]
    how = {"dim": 1, "size": 3, "step": 2}
    yield Node("unfold", "UnfoldTensor", (x,), 1, how), [windows]
    odd = d(4)
    odd[2] = np.inf
    for name, x, expected in (("finite", d(4), True), ("infinite", odd, False)):
        yield Node(name, "IsAllFinite", (x,)), [np.array(expected)]
