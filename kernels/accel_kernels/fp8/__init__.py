"""Eight-bit floating-point numbers: formats, codec and scales.

Bit-specified: every function says how it rounds and saturates, and gives the same bits on every
device, compiled or not.
"""

from accel_kernels.fp8.codec import decode, encode
from accel_kernels.fp8.formats import (
    BLOCKS,
    E4M3,
    E5M2,
    FORMATS,
    HIF8,
    Format,
    Granularity,
    Quantized,
    ScaleKind,
    Scaling,
)
from accel_kernels.fp8.quantization import dequantize, quantize, straight_through
from accel_kernels.fp8.scales import block_amax, expand_scales, scales_of

__all__ = [
    "BLOCKS",
    "E4M3",
    "E5M2",
    "FORMATS",
    "HIF8",
    "Format",
    "Granularity",
    "Quantized",
    "ScaleKind",
    "Scaling",
    "block_amax",
    "decode",
    "dequantize",
    "encode",
    "expand_scales",
    "quantize",
    "scales_of",
    "straight_through",
]
