"""How far an output is from what is expected."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

SMALLEST_SCALE = 1e-4


def relative_error(actual: NDArray[Any], expected: NDArray[Any]) -> float:
    """The largest difference over the largest finite value expected; inf where NaN or inf differ.

    Raises ValueError for another shape.
    """
    if actual.shape != expected.shape:
        raise ValueError(f"shape {actual.shape} and not {expected.shape}")
    a, e = actual.astype(np.float64), expected.astype(np.float64)
    differ = ~((a == e) | (np.isnan(a) & np.isnan(e)))
    if not np.isfinite(a[differ]).all() or not np.isfinite(e[differ]).all():
        return float("inf")
    # A result that should be all zeros (a saturated sigmoid) is judged by the size of its errors.
    scale = np.max(np.abs(e[np.isfinite(e)]), initial=SMALLEST_SCALE)
    difference = np.max(np.abs(a[differ] - e[differ]), initial=0)
    return float(difference / scale) if scale else float("inf" if difference else 0)
