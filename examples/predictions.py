"""A picture of what the digits network read: all pictures, and the mistakes enlarged."""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np

COLUMNS, CELL, BIG = 30, 34, 104
INK, FAINT, RIGHT, WRONG = "#1c2430", "#6b7683", "#2f7d4f", "#c9341c"
FONT = "font-family:system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif"


def draw_predictions(images: np.ndarray, labels: np.ndarray, logits: np.ndarray) -> str:
    """An SVG document; `images` are [count, 8, 8] with ink from 0 to 1, `logits` [count, 10]."""
    found, chances = logits.argmax(1), softmax(logits)
    wrong = np.flatnonzero(found != labels)
    width = COLUMNS * CELL + 48
    parts = [
        text(24, 38, f"{len(labels) - len(wrong)} of {len(labels)} right", 22, INK, "700"),
        text(24, 60, "handwritten digits that the training never saw", 13, FAINT),
    ]
    y = 84
    shown = wrong[: (width - 48) // (BIG + 60)]
    if len(shown):
        parts.append(text(24, y + 6, "read wrong", 14, WRONG, "600"))
        parts += [
            mistake(24 + place * (BIG + 60), y + 20, images[n], labels[n], chances[n])
            for place, n in enumerate(shown)
        ]
        y += BIG + 62
    for place in range(len(labels)):
        row, column = divmod(place, COLUMNS)
        at = 24 + column * CELL, y + row * (CELL + 14)
        parts.append(small(*at, images[place], labels[place], found[place]))
    height = y + -(-len(labels) // COLUMNS) * (CELL + 14) + 12
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" style="{FONT}">\n'
        f'<rect width="100%" height="100%" fill="#ffffff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def softmax(logits: np.ndarray) -> np.ndarray:
    """Chances from logits."""
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def mistake(x: float, y: float, image: np.ndarray, label: int, chances: np.ndarray) -> str:
    """A picture that was read wrong, with the three likeliest digits."""
    parts = [picture(x, y, BIG, image, WRONG)]
    for place, digit in enumerate(np.argsort(-chances)[:3]):
        top = y + 14 + place * 30
        colour = RIGHT if digit == label else WRONG if place == 0 else FAINT
        parts.append(text(x + BIG + 8, top, str(digit), 16, colour, "700"))
        wide = max(2.0, 40 * float(chances[digit]))
        parts.append(
            f'<rect x="{x + BIG + 8}" y="{top + 5}" width="{wide:.1f}" height="5" rx="2" '
            f'fill="{colour}"><title>{100 * chances[digit]:.1f} %</title></rect>'
        )
    parts.append(text(x, y + BIG + 17, f"is {label}, read as {int(chances.argmax())}", 13, INK))
    return "".join(parts)


def small(x: float, y: float, image: np.ndarray, label: int, found: int) -> str:
    """One picture with what was read below it, and the truth in brackets where that differs."""
    is_right = label == found
    said = str(found) if is_right else f"{found} ({label})"
    colour, weight = (FAINT, "400") if is_right else (WRONG, "700")
    middle = x + (CELL - 6) / 2
    return (
        picture(x, y, CELL - 6, image, None if is_right else WRONG)
        + f'<text x="{middle}" y="{y + CELL + 4}" text-anchor="middle" font-size="10" '
        f'font-weight="{weight}" fill="{colour}">{said}</text>'
    )


def text(x: float, y: float, said: str, points: float, colour: str, weight: str = "400") -> str:
    return (
        f'<text x="{x}" y="{y}" font-size="{points}" font-weight="{weight}" '
        f'fill="{colour}">{said}</text>'
    )


def picture(x: float, y: float, side: float, image: np.ndarray, frame: str | None) -> str:
    """The pixels as a PNG inside the document, dark on light."""
    data = base64.b64encode(png(np.kron(1 - image, np.ones((8, 8))))).decode()
    edge = f'stroke="{frame}" stroke-width="2"' if frame else 'stroke="#d5dbe3"'
    return (
        f'<image x="{x}" y="{y}" width="{side}" height="{side}" '
        f'href="data:image/png;base64,{data}"/>'
        f'<rect x="{x}" y="{y}" width="{side}" height="{side}" fill="none" {edge}/>'
    )


def png(brightness: np.ndarray) -> bytes:
    """A grey PNG of [height, width] values from 0 to 1 (PNG specification, third edition)."""
    height, width = brightness.shape
    pixels = np.zeros((height, 1 + width), np.uint8)  # each row starts with its filter: none
    pixels[:, 1:] = np.round(255 * np.clip(brightness, 0, 1))
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(pixels.tobytes(), 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
