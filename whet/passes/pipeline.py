"""The whole optimiser, in the order it runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from whet.ir.graph import Graph, map_inner
from whet.knobs import knobs
from whet.passes.check import Checked
from whet.passes.fold import fold_constants
from whet.passes.fold_weights import fold_weights
from whet.passes.layout import channels_last, settle_layout
from whet.passes.projections import merge_projections
from whet.passes.qdq import quantized_arithmetic
from whet.passes.recognise import Numbers, looking_at, read_numbers, recognise
from whet.passes.simplify import simplify
from whet.progress import phase

Pass = Callable[[Graph], Graph]
Watch = Callable[[str, Graph], None]

PASSES: tuple[Pass, ...] = (
    fold_constants,
    read_numbers,
    simplify,
    channels_last,
    recognise,
    settle_layout,
    quantized_arithmetic,
    fold_weights,
    merge_projections,
    fold_constants,
    simplify,
)


def optimise(
    graph: Graph,
    watch: Watch | None = None,
    numbers: Numbers | None = None,
    passes: Sequence[Pass] = PASSES,
) -> Graph:
    """The graph after every pass; `watch` is shown each pass's name and what it made of the graph.

    The bodies of control flow are optimised first, by the same passes. `numbers` lets rules look at
    one-element weights; it lists those that are part of the graph afterwards. With WHET_CHECK=1
    each pass's graph is run beside the one before.
    """
    watches = [] if watch is None else [watch]
    if knobs.check:
        watches.append(Checked(graph, None if numbers is None else numbers.read))
    with phase("optimise", len(passes)) as step:
        return _optimised(graph, [*watches, lambda *_: step()], numbers, passes)


def _optimised(
    graph: Graph, watches: Sequence[Watch], numbers: Numbers | None, passes: Sequence[Pass]
) -> Graph:
    graph = map_inner(graph, lambda body: _optimised(body, [], numbers, passes))
    for run in passes:
        with looking_at(numbers):
            graph = run(graph)
        for watch in watches:
            watch(run.__name__, graph)
    return graph
