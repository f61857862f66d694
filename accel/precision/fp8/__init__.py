"""Linear layers that compute their products in eight bits, for training."""

from accel.precision.fp8.conversion import convert_linear as convert_linear
from accel.precision.fp8.conversion import convert_linears as convert_linears
from accel.precision.fp8.conversion import linear_states as linear_states
from accel.precision.fp8.conversion import restore_linears as restore_linears
from accel.precision.fp8.delayed import advance as advance
from accel.precision.fp8.linear import Fp8Linear as Fp8Linear
from accel.precision.fp8.linear import fp8_linear as fp8_linear
from accel.precision.fp8.state import LinearState as LinearState

__all__ = [
    "Fp8Linear",
    "LinearState",
    "advance",
    "convert_linear",
    "convert_linears",
    "fp8_linear",
    "linear_states",
    "restore_linears",
]
