"""Transposition of square blocks in vector registers: rows of lanes in, columns out."""

from __future__ import annotations

from collections.abc import Sequence

from whet.targets.cpu.llvm import Function, element_bytes, split_type


def transpose(f: Function, type: str, rows: Sequence[str]) -> list[str]:
    """The columns of as many vectors of `type` as it has lanes.

    Interleaving row i with row i + n/2, log2(n) times over, transposes n rows of n elements. It is
    done within 16-byte blocks, where one instruction interleaves; whole blocks change places after.
    """
    element, lanes = split_type(type)
    inner = min(lanes, max(1, 16 // element_bytes(element)))
    blocks = lanes // inner
    groups = [_interleave(f, type, rows[g * inner : (g + 1) * inner], inner) for g in range(blocks)]
    columns = [_exchange(f, type, [group[c] for group in groups], inner) for c in range(inner)]
    return [columns[c][block] for block in range(blocks) for c in range(inner)]


def _interleave(f: Function, type: str, rows: Sequence[str], inner: int) -> list[str]:
    """Transposes each `inner` by `inner` block of the rows."""
    lanes = split_type(type)[1]
    halves = []
    for start in (0, inner // 2):
        pairs = [(block + start + i) for block in range(0, lanes, inner) for i in range(inner // 2)]
        halves.append([lane for p in pairs for lane in (p, p + lanes)])
    current, step = list(rows), 1
    while step < inner:
        half = inner // 2
        current = [
            f.shuffle(type, current[i], current[i + half], halves[side])
            for i in range(half)
            for side in (0, 1)
        ]
        step *= 2
    return current


def _exchange(f: Function, type: str, rows: Sequence[str], inner: int) -> list[str]:
    """Row g, block b becomes row b, block g; as many rows as blocks."""
    count = len(rows)
    if count == 1:
        return list(rows)
    lanes = split_type(type)[1]
    sides = []
    for odd in (0, 1):
        blocks = [*range(odd, count, 2), *range(count + odd, 2 * count, 2)]
        sides.append([b * inner + i for b in blocks for i in range(inner)])
    assert lanes == count * inner
    current = list(rows)
    for _ in range(count.bit_length() - 1):
        current = [
            f.shuffle(type, current[i], current[i + 1], sides[odd])
            for odd in (0, 1)
            for i in range(0, count, 2)
        ]
    return current
