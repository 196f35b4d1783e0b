"""Places the boxes of a directed graph in layers, so that arrows point down and cross seldom.

The four steps of Sugiyama, Tagawa and Toda (Methods for Visual Understanding of Hierarchical
System Structures, 1981): layers by longest path; arrows over several layers get a bend in each;
boxes of a layer are ordered by the mean place of their neighbours; then they get coordinates, here
the least squares that keep the order (pool adjacent violators), sweeping down and up.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

Point = tuple[float, float]

SWEEPS = 16
GAP = 28.0  # between boxes of a layer
BEND = 14.0  # the room that an arrow takes where it passes by boxes


@dataclass(frozen=True)
class Bend:
    """Where the arrows from one box pass a layer on their way to a later one."""

    source: str
    layer: int


Key = str | Bend
Rank = Callable[[Key], int]


@dataclass
class Layout:
    """Layers from top to bottom, each from left to right, with the middle of each box."""

    layers: list[list[Key]]
    x: dict[Key, float]
    layer: dict[Key, int]
    paths: dict[tuple[str, str], list[Key]]
    """For each arrow the box that it leaves, the bends that it takes, and the box that it meets."""


def lay_out(widths: Mapping[str, float], arrows: Sequence[tuple[str, str]]) -> Layout:
    """Places for boxes of the given widths, which are in an order that no arrow goes against."""
    boxes = assign_layers(list(widths), arrows)
    paths = {(a, b): _path(a, b, boxes) for a, b in arrows}
    bends = {key for path in paths.values() for key in path if isinstance(key, Bend)}
    layer: dict[Key, int] = {bend: bend.layer for bend in bends}
    layer.update(boxes)
    rank = _rank(widths)
    segments = {pair for path in paths.values() for pair in pairwise(path)}
    above, below = _neighbours(sorted(segments, key=lambda pair: (rank(pair[0]), rank(pair[1]))))
    layers = order(layer, above, below, rank)
    room = {key: BEND if isinstance(key, Bend) else widths[key] for key in layer}
    return Layout(layers, coordinates(layers, room, above, below), layer, paths)


def assign_layers(keys: Sequence[str], arrows: Iterable[tuple[str, str]]) -> dict[str, int]:
    """Each box below all that it reads; what reads nothing, right above its first reader."""
    readers: dict[str, list[str]] = defaultdict(list)
    sources: dict[str, list[str]] = defaultdict(list)
    for a, b in arrows:
        readers[a].append(b)
        sources[b].append(a)
    layer: dict[str, int] = {}
    for key in keys:
        layer[key] = 1 + max((layer[s] for s in sources[key]), default=-1)
    for key in keys:
        if not sources[key] and readers[key]:
            layer[key] = min(layer[r] for r in readers[key]) - 1
    return layer


def _path(a: str, b: str, layer: Mapping[str, int]) -> list[Key]:
    return [a, *(Bend(a, at) for at in range(layer[a] + 1, layer[b])), b]


def _rank(widths: Mapping[str, float]) -> Rank:
    """A sort key that follows the given order of the boxes; bends go with their source."""
    place = {key: number for number, key in enumerate(widths)}
    return lambda key: place[key.source] if isinstance(key, Bend) else place[key]


Neighbours = dict[Key, list[Key]]


def _neighbours(segments: Iterable[tuple[Key, Key]]) -> tuple[Neighbours, Neighbours]:
    above: Neighbours = defaultdict(list)
    below: Neighbours = defaultdict(list)
    for a, b in segments:
        below[a].append(b)
        above[b].append(a)
    return above, below


def order(
    layer: Mapping[Key, int], above: Neighbours, below: Neighbours, rank: Rank
) -> list[list[Key]]:
    """The layers, with the fewest crossings that some sweeps by mean place have found."""
    layers: list[list[Key]] = [[] for _ in range(1 + max(layer.values(), default=-1))]
    for key in sorted(layer, key=rank):
        layers[layer[key]].append(key)
    best, fewest = [list(row) for row in layers], crossings(layers, below)
    for sweep in range(SWEEPS):
        if not fewest:
            break
        down = sweep % 2 == 0
        for row in layers[1:] if down else layers[-2::-1]:
            _sort_by_mean(row, above if down else below, layers, layer, -1 if down else 1)
        count = crossings(layers, below)
        if count < fewest:
            best, fewest = [list(row) for row in layers], count
    return best


def _sort_by_mean(
    row: list[Key],
    neighbours: Neighbours,
    layers: list[list[Key]],
    layer: Mapping[Key, int],
    step: int,
) -> None:
    place = {key: number for number, key in enumerate(layers[layer[row[0]] + step])}
    own = {key: number for number, key in enumerate(row)}
    means = {
        key: sum(place[n] for n in found) / len(found) if (found := neighbours[key]) else own[key]
        for key in row
    }
    row.sort(key=means.__getitem__)


def crossings(layers: Sequence[Sequence[Key]], below: Neighbours) -> int:
    """How many pairs of arrows cross between neighbouring layers."""
    total = 0
    for upper, lower in pairwise(layers):
        place = {key: number for number, key in enumerate(lower)}
        seen: list[int] = []
        for key in upper:
            ends = sorted(place[reader] for reader in below[key])
            total += sum(len(seen) - bisect_right(seen, end) for end in ends)
            for end in ends:
                insort(seen, end)
    return total


def coordinates(
    layers: Sequence[Sequence[Key]],
    room: Mapping[Key, float],
    above: Neighbours,
    below: Neighbours,
) -> dict[Key, float]:
    """The middles of boxes and bends, near those of their neighbours, in order and apart."""
    x: dict[Key, float] = {}
    for row in layers:
        x.update(zip(row, apart([0.0] * len(row), [1.0] * len(row), _distances(row, room))))
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        for row in layers if down else layers[::-1]:
            wanted, weights = [], []
            for key in row:
                near = (above if down else below)[key] or [key]
                heavy = [8.0 if isinstance(n, Bend) == isinstance(key, Bend) else 1.0 for n in near]
                wanted.append(sum(x[n] * w for n, w in zip(near, heavy)) / sum(heavy))
                weights.append(sum(heavy) if near != [key] else 0.1)
            x.update(zip(row, apart(wanted, weights, _distances(row, room))))
    return x


def _distances(row: Sequence[Key], room: Mapping[Key, float]) -> list[float]:
    """How far the middles of neighbours must be from each other."""
    return [
        (room[a] + room[b]) / 2 + (GAP if room[a] > BEND or room[b] > BEND else 0)
        for a, b in pairwise(row)
    ]


def apart(
    wanted: Sequence[float], weights: Sequence[float], distances: Sequence[float]
) -> list[float]:
    """Places nearest to those wanted (weighted squares) that keep the distances; isotonic
    regression."""
    offsets = [0.0]
    for distance in distances:
        offsets.append(offsets[-1] + distance)
    blocks: list[list[float]] = []  # mean, weight, how many
    for place, weight, offset in zip(wanted, weights, offsets):
        blocks.append([place - offset, weight, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            mean, heavy, count = blocks.pop()
            before = blocks[-1]
            before[0] = (before[0] * before[1] + mean * heavy) / (before[1] + heavy)
            before[1] += heavy
            before[2] += count
    means = [mean for mean, _, count in blocks for _ in range(int(count))]
    return [mean + offset for mean, offset in zip(means, offsets)]
