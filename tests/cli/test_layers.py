"""The layout of graphs: arrows down, boxes apart, few crossings."""

import random
from itertools import pairwise

import pytest

from whet.cli.draw.layers import BEND, Bend, apart, crossings, lay_out


def random_graph(seed, count=60):
    rng = random.Random(seed)
    keys = [f"k{n}" for n in range(count)]
    arrows = {
        (keys[rng.randrange(max(0, n - 12), n)], keys[n])
        for n in range(1, count)
        for _ in range(rng.choice([1, 1, 2, 3]))
    }
    return {key: rng.uniform(40, 200) for key in keys}, sorted(arrows)


@pytest.mark.parametrize("seed", range(8))
def test_boxes_are_apart_and_arrows_go_down(seed):
    widths, arrows = random_graph(seed)
    layout = lay_out(widths, arrows)
    assert {key for row in layout.layers for key in row if not isinstance(key, Bend)} == set(widths)
    for row in layout.layers:
        for a, b in pairwise(row):
            half = (widths.get(a, BEND) + widths.get(b, BEND)) / 2
            assert layout.x[b] - layout.x[a] >= half - 1e-6
    for (a, b), path in layout.paths.items():
        assert (path[0], path[-1]) == (a, b)
        assert [layout.layer[key] for key in path] == list(
            range(layout.layer[a], layout.layer[b] + 1)
        )


def test_a_tree_has_no_crossings():
    widths = {str(n): 50.0 for n in range(1, 64)}
    arrows = [(str(n // 2), str(n)) for n in range(2, 64)]
    layout = lay_out(widths, arrows)
    below = {}
    for a, b in arrows:
        below.setdefault(a, []).append(b)
    assert crossings(layout.layers, {k: below.get(k, []) for k in widths}) == 0


def test_a_chain_is_straight():
    widths = {str(n): 50.0 + n for n in range(20)}
    layout = lay_out(widths, [(str(n), str(n + 1)) for n in range(19)])
    assert max(layout.x.values()) - min(layout.x.values()) < 1e-6


def test_nothing_at_all():
    assert lay_out({}, []).layers == []


def test_places_are_the_nearest_that_keep_the_distances():
    assert apart([0, 100], [1, 1], [10]) == [0, 100]
    assert apart([0, 0], [1, 1], [10]) == [-5, 5]
    assert apart([5, 0, 0], [1, 1, 1], [1, 1]) == pytest.approx([2 / 3, 5 / 3, 8 / 3])
    assert apart([0, 0], [1e9, 1], [10]) == pytest.approx([0, 10], abs=1e-6)
