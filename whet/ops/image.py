"""Pictures from files. Pillow reads them, where it is installed; nothing else in whet needs it."""

from __future__ import annotations

import io
from typing import Annotated, ClassVar, Literal

import numpy as np

from whet.errors import InvalidInput
from whet.ir.graph import Op, operator
from whet.ir.sizes import Size
from whet.ir.types import TensorType
from whet.ops.elementwise import need

MODES = {"RGB": "RGB", "BGR": "RGB", "Grayscale": "L"}


@operator
class DecodeImage(Op):
    """The uint8 pixels [height, width, channels] of a picture file; none of what is no picture."""

    pixels: Annotated[str, Literal["RGB", "BGR", "Grayscale"]]
    height: Size
    width: Size
    defines_sizes: ClassVar[bool] = True

    def infer(self, encoded: TensorType) -> TensorType:
        need(encoded.dtype, frozenset({"uint8"}), "a uint8 vector")
        channels = 1 if self.pixels == "Grayscale" else 3
        return TensorType("uint8", (self.height, self.width, channels))

    def reference(self, encoded: np.ndarray) -> np.ndarray:
        try:
            from PIL import Image, UnidentifiedImageError
        except ImportError:
            raise InvalidInput("decoding pictures needs Pillow: pip install pillow") from None
        channels = 1 if self.pixels == "Grayscale" else 3
        try:
            picture = Image.open(io.BytesIO(encoded.tobytes())).convert(MODES[self.pixels])
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
            return np.zeros((0, 0, channels), np.uint8)
        array = np.asarray(picture).reshape(picture.height, picture.width, channels)
        return array[..., ::-1] if self.pixels == "BGR" else array
