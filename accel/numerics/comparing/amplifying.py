"""By how much an operator may enlarge differences of its inputs, from sketches alone.

Norms do not see that terms cancel or that an element is divided by next to nothing, so for sums,
products, quotients and roots a bound is made from the norms, least and largest elements that a
sketch holds. For all other operators the amplification is 1 here.

A sum of terms x with independent errors e errs by |e|, which is |x| / |sum| times more, relative to
the sum, than to its terms. A product of matrices over K inner places errs by |X| |e| / sqrt(K).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from accel.numerics.comparing.contents import Contents
from accel.numerics.comparing.pairing import Measured
from accel_kernels.sketch import Sketch

_TINY = 1e-300


class Case(NamedTuple):
    """One output of an operator.

    Attributes:
        out: The output, not zero.
        given: What it was made from, in the order of the arguments.
        apart: Relative difference of what it was made from.
        output: Which output it is.
        batch: Its first dimension.
        last: Its last dimension.
    """

    out: Sketch
    given: Sequence[Sketch]
    apart: float
    output: int
    batch: int
    last: int


def amplification(a: Contents, one: Measured, inputs: float | None) -> float:
    """How many times the relative difference of its inputs an output may differ, at least 1.

    Args:
        a: The values of the reference.
        one: The output.
        inputs: The relative difference of its inputs.
    """
    bound = _BOUNDS.get(one.pair.op.split("::")[-1].rstrip("_"))
    if bound is None:
        return 1.0
    out = a.sketch(one.pair.a)
    given = [found for x, _ in one.pair.inputs if (found := a.sketch(x)) is not None]
    if out is None or not given or out.count == 0:
        return 1.0
    if out.norm == 0.0:
        return math.inf
    shape = a.value(one.pair.a).shape
    sizes = shape[:1] + shape[-1:] or (1, 1)
    case = Case(out, given, inputs or 0.0, one.output, *sizes)
    return max(1.0, bound(case))


def _added(case: Case) -> float:
    """Terms that cancel leave the rounding of what they were."""
    return max(one.norm for one in case.given) / case.out.norm


def _averaged(case: Case) -> float:
    return _added(case) * case.out.count / max(1, case.given[0].count)


def _product(out: Sketch, a: Sketch, b: Sketch, batch: int = 1) -> float:
    """A product of matrices, or of as many pairs as `batch`."""
    inner = math.sqrt(max(1.0, a.count * b.count / max(1, out.count * batch)))
    return a.norm * b.norm / (math.sqrt(inner * batch) * out.norm)


def _multiplied(case: Case) -> float:
    if len(case.given) < 2:
        return 1.0
    return _product(case.out, case.given[-2], case.given[-1])


def _multiplied_in_batches(case: Case) -> float:
    if len(case.given) < 2:
        return 1.0
    return _product(case.out, case.given[-2], case.given[-1], case.batch)


def _convolved(case: Case) -> float:
    return _product(case.out, case.given[0], case.given[1]) if len(case.given) > 1 else 1.0


def _convolved_back(case: Case) -> float:
    """Gradients of input, weight and bias, from gradient, input and weight."""
    if len(case.given) < 3:
        return 1.0
    gradient, x, weight = case.given[:3]
    if case.output == 2:
        return gradient.norm / case.out.norm
    return _product(case.out, gradient, weight if case.output == 0 else x)


def _normalised_back(case: Case) -> float:
    """Gradients of weight and bias are sums over what was normalised."""
    return 1.0 if case.output == 0 else case.given[0].norm / case.out.norm


def _attended_back(case: Case) -> float:
    """Gradients of queries and keys: weights times what their rows have in common cancels.

    The gradient of a query is the sum over keys k of p (g v - D) k / sqrt(size), with weights p
    that add up to one, g the gradient of the output, v the values and D the mean of g v: where
    values or keys are much alike, only rounding of the products is left. Those are as large as
    |g| |v| |k| / size for rows in random directions.
    """
    if len(case.given) < 4 or case.output > 1:
        return 1.0
    gradient, query, key, value = case.given[:4]
    other = key if case.output == 0 else query
    rows = math.sqrt(max(1.0, value.count / case.last) * max(1.0, other.count / case.last))
    return gradient.norm * value.norm * other.norm / (rows * case.last * case.out.norm)


def _rooted(case: Case) -> float:
    """A square root: steepest at the least element; |sqrt(x) - sqrt(y)| <= sqrt(|x - y|)."""
    of = case.given[0]
    if case.apart == 0.0:
        return 1.0
    steepest = of.norm / (2.0 * math.sqrt(max(of.least, _TINY)) * case.out.norm)
    moved = math.sqrt(math.sqrt(of.count) * case.apart * of.norm)
    return min(steepest, moved / (case.out.norm * case.apart))


def _divided(case: Case) -> float:
    """A quotient: its elements err as much more as the divisor is below its own size."""
    if case.apart == 0.0:
        return 1.0
    above, by = case.given[0], case.given[-1]
    size = max(abs(case.out.least), abs(case.out.largest))
    moved = max(above.norm, size * by.norm) / max(_nearest_to_zero(by), _TINY)
    return min(moved / case.out.norm, 1.0 / case.apart)


def _stepped(case: Case) -> float:
    """A parameter after a step that is a quotient (Adam): at most the step itself may differ."""
    if case.apart == 0.0 or len(case.given) < 3:
        return 1.0
    by = case.given[2]
    return _step(case, by.norm / math.sqrt(by.count), _nearest_to_zero(by))


def _fused_step(case: Case) -> float:
    """The same where the divisor, the root of the second moment, is not to be seen."""
    if case.apart == 0.0 or len(case.given) < 4:
        return 1.0
    gradient, squares = case.given[1], case.given[3]
    return _step(
        case, gradient.norm / math.sqrt(gradient.count), math.sqrt(max(0.0, squares.least))
    )


def _gated(case: Case) -> float:
    """What passes where an activation is positive: elements near zero pass in one run only.

    Of a tensor that differs by d, about d of the elements change sides, each by all of what it
    lets pass: sqrt(d) relative L2. LIMIT_16 times a half of that is allowed; 0.9 was measured.
    """
    apart = case.apart
    return 0.5 / math.sqrt(apart) if 0.0 < apart < math.inf else 1.0


def _step(case: Case, size: float, least: float) -> float:
    """How much of a step may be other, over the difference of what it was made from."""
    step = math.dist(case.given[0].sums, case.out.sums)
    return min(size / max(least, _TINY), 1.0 / case.apart) * step / case.out.norm


def _nearest_to_zero(one: Sketch) -> float:
    if one.least > 0.0:
        return one.least
    return -one.largest if one.largest < 0.0 else 0.0


_BOUNDS: dict[str, Callable[[Case], float]] = {
    **dict.fromkeys(("sum", "add", "sub", "rsub", "_foreach_add", "_foreach_sub"), _added),
    **dict.fromkeys(("embedding_dense_backward", "cumsum"), _added),
    "mean": _averaged,
    **dict.fromkeys(("mm", "addmm", "mv", "addmv", "dot", "linear", "matmul"), _multiplied),
    **dict.fromkeys(("bmm", "baddbmm"), _multiplied_in_batches),
    **dict.fromkeys(("convolution", "_convolution", "mkldnn_convolution"), _convolved),
    "convolution_backward": _convolved_back,
    **dict.fromkeys(
        (
            "native_layer_norm_backward",
            "native_batch_norm_backward",
            "native_group_norm_backward",
            "_fused_rms_norm_backward",
        ),
        _normalised_back,
    ),
    **dict.fromkeys(
        (
            "_scaled_dot_product_flash_attention_for_cpu_backward",
            "_scaled_dot_product_flash_attention_backward",
            "_scaled_dot_product_efficient_attention_backward",
            "_scaled_dot_product_cudnn_attention_backward",
            "_flash_attention_backward",
            "_efficient_attention_backward",
        ),
        _attended_back,
    ),
    **dict.fromkeys(
        (
            "threshold_backward",
            "leaky_relu_backward",
            "_prelu_kernel_backward",
            "hardtanh_backward",
            "hardsigmoid_backward",
            "hardshrink_backward",
            "softshrink_backward",
            "sgn",
            "sign",
        ),
        _gated,
    ),
    **dict.fromkeys(("sqrt", "_foreach_sqrt"), _rooted),
    **dict.fromkeys(("div", "reciprocal", "rsqrt", "_foreach_div"), _divided),
    **dict.fromkeys(("addcdiv", "_foreach_addcdiv"), _stepped),
    **dict.fromkeys(("_fused_adam", "_fused_adamw"), _fused_step),
}
