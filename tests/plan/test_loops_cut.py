"""Loops cut where tests of their indices are decided."""

from __future__ import annotations

import numpy as np

from whet.ir.sizes import Expr, Size
from whet.plan.kernel import Axis, Literal, Load, Nest, Select, Store, walk
from whet.plan.loops import cut
from whet.plan.lower import loop_index


def run(nest: Nest, x: np.ndarray, y: np.ndarray) -> None:
    """A nest of one load, by NumPy: each element that it stores is stored once."""
    (store,) = nest.stores
    for place in np.ndindex(*(int(a.size) for a in nest.axes)):
        names = {a.name: i for a, i in zip(nest.axes, place)}
        at = number(store.offset, names)
        assert np.isnan(y[at]), "an element is stored twice"
        value = store.value
        if isinstance(value, Select):
            inside = all(0 <= number(i, names) < n for i, n in value.ranges)
            value = value.inside if inside else value.outside
        y[at] = x[number(value.offset, names)] if isinstance(value, Load) else value.value  # type: ignore[attr-defined]


def number(size: Size, names: dict[str, int]) -> int:
    from whet.ir.sizes import substitute

    return int(substitute(size, names)) if isinstance(size, Expr) else size


def filled_up(panels: int, steps: int, width: int, columns: int) -> Nest:
    """Columns in panels, of which the last is filled up with zeros."""
    p, s, w = (loop_index(n, k) for n, k in (("p", panels), ("s", steps), ("w", width)))
    load = Load(0, (p * width + w) * steps + s, "float32")
    value = Select(((p * width + w, columns),), load, Literal(0.0, "float32"), "float32")
    axes = (Axis("p", panels), Axis("s", steps), Axis("w", width))
    return Nest(axes, (Store(1, (p * steps + s) * width + w, value),))


def test_only_the_panel_that_is_filled_up_asks() -> None:
    rng = np.random.default_rng()
    nest = filled_up(4, 5, 24, 80)
    x = rng.standard_normal(5 * 80)
    want, got = np.full(4 * 5 * 24, np.nan), np.full(4 * 5 * 24, np.nan)
    run(nest, x, want)
    pieces = cut(nest)
    for piece in pieces:
        run(piece, x, got)
    np.testing.assert_array_equal(got, want)
    asks = [any(isinstance(n, Select) for s in p.stores for n in walk(s.value)) for p in pieces]
    assert len(pieces) == 3 and not any(asks)


def test_panels_that_are_full_stay_whole() -> None:
    assert len(cut(filled_up(4, 5, 24, 96))) == 1


def test_nothing_is_not_cut() -> None:
    nest = filled_up(4, 0, 24, 80)
    assert cut(nest) and all(0 in [a.size for a in piece.axes] for piece in cut(nest))


def test_a_piece_too_short_for_vectors_still_asks() -> None:
    """The last panel's columns are fewer than a vector has lanes: it stays one nest."""
    pieces = cut(filled_up(4, 5, 24, 75))
    assert [len(p.axes) for p in pieces] == [3, 2]
