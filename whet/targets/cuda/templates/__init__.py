"""Hand-scheduled kernels, by the operator that each runs."""

from __future__ import annotations

from typing import Any

from whet.ir.graph import Op
from whet.targets.cuda.templates.attention import AttentionTemplate, FlashAttention
from whet.targets.cuda.templates.convolution import ConvolutionTemplate, ImplicitConvolution
from whet.targets.cuda.templates.depthwise import Depthwise, DepthwiseTemplate
from whet.targets.cuda.templates.matmul import Product, ProductTemplate
from whet.targets.cuda.templates.recurrent import FusedRecurrent, RecurrentTemplate
from whet.targets.cuda.templates.sort import RankSort, SortTemplate
from whet.targets.cuda.templates.suppression import GreedySuppression, SuppressionTemplate

TEMPLATES: dict[type[Op], Any] = {
    Depthwise: DepthwiseTemplate(),
    Product: ProductTemplate(),
    ImplicitConvolution: ConvolutionTemplate(),
    FlashAttention: AttentionTemplate(),
    FusedRecurrent: RecurrentTemplate(),
    RankSort: SortTemplate(),
    GreedySuppression: SuppressionTemplate(),
}
