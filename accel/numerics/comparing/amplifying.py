"""By how much an operator may enlarge differences of its inputs, from sketches alone.

Norms do not see that terms cancel or that an element is divided by next to nothing, so for the few
operators where this is the rule the bound is made from the norms, least and largest elements that
a sketch holds. For all others the amplification is 1 here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from accel.numerics.comparing.contents import Contents
from accel.numerics.comparing.pairing import Measured
from accel_kernels.sketch import Sketch

_TINY = 1e-300


def amplification(a: Contents, one: Measured, inputs: float | None) -> float:
    """How many times the relative difference of its inputs an output may differ, at least 1.

    Args:
        a: The values of the reference.
        one: The output.
        inputs: The relative difference of its inputs.
    """
    output = a.sketch(one.pair.a)
    bound = _BOUNDS.get(one.pair.op.split("::")[-1].rstrip("_"))
    known = [found for x, _ in one.pair.inputs if (found := a.sketch(x)) is not None]
    if bound is None or output is None or not known or output.count == 0:
        return 1.0
    if output.norm == 0.0:
        return math.inf
    return max(1.0, bound(output, known, inputs or 0.0))


def _added(output: Sketch, inputs: Sequence[Sketch], _: float) -> float:
    """A sum: terms that cancel leave the rounding of what they were."""
    largest = max(inputs, key=lambda found: found.norm)
    return largest.norm * math.sqrt(max(1.0, largest.count / output.count)) / output.norm


def _averaged(output: Sketch, inputs: Sequence[Sketch], relative: float) -> float:
    share = output.count / max(1, inputs[0].count)
    return _added(output, inputs, relative) * min(1.0, share)


def _rooted(output: Sketch, inputs: Sequence[Sketch], relative: float) -> float:
    """A square root: steepest at the least element; |sqrt(x) - sqrt(y)| <= sqrt(|x - y|)."""
    of = inputs[0]
    steepest = of.norm / (2.0 * math.sqrt(max(of.least, _TINY)) * output.norm)
    if relative == 0.0:
        return 1.0
    moved = math.sqrt(math.sqrt(of.count) * relative * of.norm)
    return min(steepest, moved / (output.norm * relative))


def _divided(output: Sketch, inputs: Sequence[Sketch], relative: float) -> float:
    """A quotient: its elements err as much more as the divisor is below its own size."""
    if relative == 0.0:
        return 1.0
    by = inputs[1] if len(inputs) > 1 else inputs[0]
    above, below = inputs[0], _nearest_to_zero(by)
    size = max(abs(output.least), abs(output.largest))
    moved = max(above.norm, size * by.norm) / max(below, _TINY)
    return min(moved / output.norm, 1.0 / relative)


def _stepped(output: Sketch, inputs: Sequence[Sketch], relative: float) -> float:
    """A parameter after a step that is a quotient (Adam): at most the step itself may differ."""
    before = inputs[0]
    if relative == 0.0 or len(inputs) < 3:
        return 1.0
    step = math.dist(before.sums, output.sums)
    by = inputs[-1]
    own = by.norm / (max(_nearest_to_zero(by), _TINY) * math.sqrt(by.count))
    return min(own, 1.0 / relative) * step / output.norm


def _nearest_to_zero(one: Sketch) -> float:
    if one.least > 0.0:
        return one.least
    return -one.largest if one.largest < 0.0 else 0.0


_BOUNDS: dict[str, Callable[[Sketch, Sequence[Sketch], float], float]] = {
    **dict.fromkeys(("sum", "add", "sub", "rsub", "_foreach_add", "_foreach_sub"), _added),
    **dict.fromkeys(("embedding_dense_backward",), _added),
    "mean": _averaged,
    **dict.fromkeys(("sqrt", "_foreach_sqrt"), _rooted),
    **dict.fromkeys(("div", "reciprocal", "rsqrt", "_foreach_div"), _divided),
    **dict.fromkeys(("addcdiv", "_foreach_addcdiv"), _stepped),
    **dict.fromkeys(("_fused_adam", "_fused_adamw"), _stepped),
}
