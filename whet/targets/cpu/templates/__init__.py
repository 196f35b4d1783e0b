"""Hand-scheduled kernels, by the operator that each runs."""

from __future__ import annotations

from functools import cache
from typing import Any

from whet.ir.graph import Op
from whet.targets.cpu.templates.attention import AttentionTemplate, FlashAttention
from whet.targets.cpu.templates.block_quantized import (
    BlockQuantizedProduct,
    BlockQuantizedTemplate,
)
from whet.targets.cpu.templates.contraction import Contraction, PackedConvolution, PackedProduct
from whet.targets.cpu.templates.integer_contraction import (
    IntegerContraction,
    IntegerConvolution,
    IntegerDepthwise,
    IntegerProduct,
)
from whet.targets.cpu.templates.matmul import Product, ProductTemplate
from whet.targets.cpu.templates.recurrent import FusedRecurrent, RecurrentTemplate
from whet.targets.cpu.templates.sort import MergeSort, SortTemplate
from whet.targets.cpu.templates.suppression import SortedSuppression, SuppressionTemplate

PLANNED_THREADS = 2
"""What schedules are chosen for where it is not known how many threads will run them: any number
can."""


@cache
def templates_for(threads: int) -> dict[type[Op], Any]:
    """The templates, which choose schedules for so many threads."""
    contraction, integer = Contraction(threads), IntegerContraction(threads)
    return {
        PackedConvolution: contraction,
        PackedProduct: contraction,
        IntegerConvolution: integer,
        IntegerDepthwise: integer,
        IntegerProduct: integer,
        BlockQuantizedProduct: BlockQuantizedTemplate(),
        Product: ProductTemplate(),
        FlashAttention: AttentionTemplate(),
        FusedRecurrent: RecurrentTemplate(),
        MergeSort: SortTemplate(),
        SortedSuppression: SuppressionTemplate(),
    }


TEMPLATES = templates_for(PLANNED_THREADS)
