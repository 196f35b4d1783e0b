"""Hand-scheduled kernels."""

from typing import Any

from whet.ir.graph import Op

TEMPLATES: dict[type[Op], Any] = {}
