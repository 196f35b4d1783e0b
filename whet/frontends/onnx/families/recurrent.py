"""ONNX recurrent layers: each direction is one product over all steps, then one Recurrent."""

from __future__ import annotations

from collections.abc import Sequence

from whet.frontends.onnx.registry import Refused, onnx_op
from whet.ir.graph import Value, constant
from whet.ir.sizes import Size
from whet.ops.contract import MatMul
from whet.ops.movement import Concat, broadcast_to, reshape, slice_axis, transpose, unsqueeze
from whet.ops.recurrent import ACTIVATIONS, DEFAULTS, GATES, Activation, Recurrent

FUNCTIONS = {"lstm": ("Sigmoid", "Tanh", "Tanh"), "gru": ("Sigmoid", "Tanh"), "rnn": ("Tanh",)}


def layer(
    kind: str,
    x: Value,
    w: Value,
    r: Value,
    b: Value | None,
    lengths: Value | None,
    states: Sequence[Value | None],
    peephole: Value | None,
    *,
    activations: Sequence[str] | None,
    alphas: Sequence[float] | None,
    betas: Sequence[float] | None,
    clip: float | None,
    direction: str,
    layout: int,
    reset_after: bool = False,
    coupled: bool = False,
) -> tuple[Value, ...]:
    """The outputs Y, Y_h and for an LSTM Y_c of a recurrent operator of one or two directions."""
    if direction not in ("forward", "reverse", "bidirectional"):
        raise Refused(f"direction {direction!r} is none of forward, reverse, bidirectional")
    count = 2 if direction == "bidirectional" else 1
    functions = activation_list(kind, count, activations, alphas, betas)
    if layout:
        x = transpose(x, 1, 0, 2)
        states = [None if s is None else transpose(s, 1, 0, 2) for s in states]
    results = []
    for d in range(count):
        backward = direction == "reverse" or d == 1
        per = len(functions) // count
        op = Recurrent(
            kind,
            functions[d * per : (d + 1) * per],
            backward,
            clip,
            reset_after,
            coupled,
        )
        parameters = (None if p is None else _direction(p, d) for p in (w, r, b, *states, peephole))
        results.append(_run(op, x, lengths, *parameters))
    return _joined(results, layout)


def _direction(parameter: Value, index: int) -> Value:
    """parameter[D, ...] without its first axis."""
    return reshape(slice_axis(parameter, 0, index, 1), *parameter.shape[1:])


def _run(
    op: Recurrent,
    x: Value,
    lengths: Value | None,
    w: Value | None,
    r: Value | None,
    b: Value | None,
    *rest: Value | None,
) -> tuple[Value, ...]:
    """One direction: x[T, B, I] times w[G*H, I] for all steps at once, then the steps."""
    assert w is not None and r is not None
    *states, peephole = rest
    hidden = r.shape[1]
    gates = MatMul()(x, transpose(w, 1, 0))
    input_bias, state_bias = _biases(op, b, hidden)
    gates = gates if input_bias is None else gates + input_bias
    batch = x.shape[1]
    states = [_initial(s, batch, hidden, x.dtype) for s in states]
    cell = states[1] if op.kind == "lstm" else None
    if peephole is not None:
        peephole = reshape(peephole, 3, hidden)
    return op(gates, transpose(r, 1, 0), states[0], cell, state_bias, peephole, lengths)


def _biases(op: Recurrent, b: Value | None, hidden: Size) -> tuple[Value | None, Value | None]:
    """What to add to the input products, and inside the step of a GRU that resets after it."""
    if b is None:
        return None, None
    width = hidden * GATES[op.kind]
    from_input, from_state = slice_axis(b, 0, 0, width), slice_axis(b, 0, width, width)
    if not op.reset_after:
        return from_input + from_state, None
    inside = slice_axis(from_state, 0, 2 * hidden, hidden)
    zeros = broadcast_to(constant(0, b.dtype), hidden)
    outside = Concat(0)(slice_axis(from_state, 0, 0, 2 * hidden), zeros)
    return from_input + outside, inside


def _initial(state: Value | None, batch: Size, hidden: Size, dtype: str) -> Value:
    return broadcast_to(constant(0, dtype), batch, hidden) if state is None else state


def _joined(results: Sequence[tuple[Value, ...]], layout: int) -> tuple[Value, ...]:
    """Y[T, D, B, H] and the last states [D, B, H] of all directions, batch first with layout 1."""
    outputs = [unsqueeze(r[0], 1) for r in results]
    y = Concat(1)(*outputs) if len(outputs) > 1 else outputs[0]
    y = transpose(y, 2, 0, 1, 3) if layout else y
    states = []
    for i in range(1, len(results[0])):
        lines = [unsqueeze(r[i], 0) for r in results]
        state = Concat(0)(*lines) if len(lines) > 1 else lines[0]
        states.append(transpose(state, 1, 0, 2) if layout else state)
    return y, *states


def activation_list(
    kind: str,
    count: int,
    names: Sequence[str] | None,
    alphas: Sequence[float] | None,
    betas: Sequence[float] | None,
) -> tuple[Activation, ...]:
    """Each direction's activations; alphas and betas go in order to those that take them."""
    names = names or FUNCTIONS[kind] * count
    if len(names) != len(FUNCTIONS[kind]) * count:
        raise Refused(f"activations has {len(names)} names for {count} directions")
    given = [list(alphas or ()), list(betas or ())]
    result = []
    for name in map(str.lower, names):
        if name not in ACTIVATIONS:
            raise Refused(f"the activation {name!r} is none of {', '.join(ACTIVATIONS)}")
        defaults = DEFAULTS.get(name, (0.0, 0.0))
        uses = (name in DEFAULTS, name in ("hardsigmoid", "affine", "scaledtanh"))
        pair = [
            line.pop(0) if used and line else default
            for line, used, default in zip(given, uses, defaults)
        ]
        result.append((name, float(pair[0]), float(pair[1])))
    return tuple(result)


@onnx_op
def RNN(
    x: Value,
    w: Value,
    r: Value,
    b: Value | None = None,
    sequence_lens: Value | None = None,
    initial_h: Value | None = None,
    *,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    activations: Sequence[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
) -> tuple[Value, ...]:
    return layer(
        "rnn",
        x,
        w,
        r,
        b,
        sequence_lens,
        (initial_h,),
        None,
        activations=activations,
        alphas=activation_alpha,
        betas=activation_beta,
        clip=clip,
        direction=direction,
        layout=layout,
    )


@onnx_op
def GRU(
    x: Value,
    w: Value,
    r: Value,
    b: Value | None = None,
    sequence_lens: Value | None = None,
    initial_h: Value | None = None,
    *,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    activations: Sequence[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
    linear_before_reset: int = 0,
) -> tuple[Value, ...]:
    return layer(
        "gru",
        x,
        w,
        r,
        b,
        sequence_lens,
        (initial_h,),
        None,
        activations=activations,
        alphas=activation_alpha,
        betas=activation_beta,
        clip=clip,
        direction=direction,
        layout=layout,
        reset_after=bool(linear_before_reset),
    )


@onnx_op
def LSTM(
    x: Value,
    w: Value,
    r: Value,
    b: Value | None = None,
    sequence_lens: Value | None = None,
    initial_h: Value | None = None,
    initial_c: Value | None = None,
    p: Value | None = None,
    *,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    activations: Sequence[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    input_forget: int = 0,
    layout: int = 0,
) -> tuple[Value, ...]:
    return layer(
        "lstm",
        x,
        w,
        r,
        b,
        sequence_lens,
        (initial_h, initial_c),
        p,
        activations=activations,
        alphas=activation_alpha,
        betas=activation_beta,
        clip=clip,
        direction=direction,
        layout=layout,
        coupled=bool(input_forget),
    )
