"""Vector-wise int8: one step per output row of the weight, and one per token of the input.

    y = (round(x / s_x) @ round(w / s_w)^T) * s_x * s_w,  s = max abs / 127 of each row and token

The steps of the input are found as it arrives, so no calibration is needed.
"""

from dataclasses import replace

from tasks.quantize.block import Block, Quantized
from tasks.quantize.methods import absmax

CALIBRATED = False
ENCODINGS = ("integer",)


def quantize(block: Block) -> Quantized:
    """Quantize each weight from its values alone.

    Reference: Dettmers et al. 2022, arXiv 2208.07339, section 3.1.
    """
    return block.each(
        lambda weight: replace(absmax.round_weight(weight, block.dtype), activations="int8")
    )
