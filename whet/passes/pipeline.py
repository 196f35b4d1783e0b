"""The whole optimiser, in the order it runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from whet.ir.graph import Graph, map_inner
from whet.passes.fold import fold_constants
from whet.passes.fold_weights import fold_weights
from whet.passes.layout import channels_last
from whet.passes.simplify import simplify

Pass = Callable[[Graph], Graph]
Watch = Callable[[str, Graph], None]

PASSES: tuple[Pass, ...] = (fold_constants, simplify, channels_last, fold_weights, fold_constants, simplify)


def optimise(graph: Graph, watch: Watch | None = None, passes: Sequence[Pass] = PASSES) -> Graph:
    """The graph after every pass; `watch` is shown each pass's name and what it made of the graph.

    The bodies of control flow are optimised first, by the same passes.
    """
    graph = map_inner(graph, lambda body: optimise(body, passes=passes))
    for run in passes:
        graph = run(graph)
        if watch is not None:
            watch(run.__name__, graph)
    return graph
