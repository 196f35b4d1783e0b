"""Hand-scheduled kernels, by the operator that each runs."""

from __future__ import annotations

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

_contraction = Contraction()
_integer = IntegerContraction()

TEMPLATES: dict[type[Op], Any] = {
    PackedConvolution: _contraction,
    PackedProduct: _contraction,
    IntegerConvolution: _integer,
    IntegerDepthwise: _integer,
    IntegerProduct: _integer,
    BlockQuantizedProduct: BlockQuantizedTemplate(),
    Product: ProductTemplate(),
    FlashAttention: AttentionTemplate(),
    FusedRecurrent: RecurrentTemplate(),
    MergeSort: SortTemplate(),
    SortedSuppression: SuppressionTemplate(),
}
