"""The first divergence: which output differs by more than its inputs and rounding explain.

Of each pair of values the distance d = |B - A| / |A| is estimated from sketches. An output is
expected to differ by no more than

    expected = LIMIT * typical * amplification * (d_in + u)

where d_in is the largest distance among its inputs; u the unit roundoff of the coarsest dtype that
it was computed from; the amplification 1 except for sums, products, quotients and roots (see
`amplifying`); and typical the median of d / (amplification * (d_in + u)) over the other outputs of
operators of this name and phase in the same two runs, at least 1 and at most 32.

The limits are global. Over 66 benign pairs of runs (a GPT with composed and with fused attention
and a CNN, one step with AdamW in float32, autocast and bfloat16; again, threads, oneDNN off,
split-K, online softmax, one-pass norms, other sums and formulas, composed norms, other attention,
channels last, foreach and plain AdamW: the fault zoo's variants) the largest d / (typical *
amplification * (d_in + u)) was 24 where u is float32's (the gradient of a convolution's input, by
threads; 6 without convolutions) and 2.7 where it is bfloat16's. The limits are about twice that.
Sketches cannot tell an operator at fault from one that is badly conditioned, so what exceeds its
limit is a place to look at closely, not a verdict.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from accel.numerics.comparing.alignment import Alignment, ValuePair
from accel.numerics.comparing.amplifying import amplification
from accel.numerics.comparing.comparison import Row, Status
from accel.numerics.comparing.contents import Contents, distance, is_float, is_same, rounding
from accel.numerics.comparing.given import given
from accel.numerics.comparing.pairing import Measured
from accel.numerics.comparing.relations import mask_text
from accel.numerics.storage.entries import Operator

LIMIT, LIMIT_16 = 48.0, 6.0
_MOST_TYPICAL = 32.0
_FLOAT32 = 2.0**-24
_FEW = 3  # instances of an operator below which they say nothing of it
_EXACT_RANDOM = frozenset(
    {"bernoulli", "rand", "rand_like", "randn", "randn_like", "randint", "randint_like", "randperm",
     "normal", "uniform", "exponential", "multinomial", "native_dropout", "_fused_dropout",
     "random", "geometric", "log_normal", "cauchy", "rrelu_with_noise"}
)  # fmt: skip


@dataclass(frozen=True)
class Noise:
    """What one output and its inputs differ by.

    Attributes:
        apart: Distance of the output; None if unknown.
        inputs: Largest distance of its inputs; None if none is known.
        unit: Unit roundoff of the coarsest dtype that it was computed from.
        scale: How many times the relative differences of its inputs it may have, at least 1.
    """

    apart: float | None
    inputs: float | None
    unit: float
    scale: float

    @property
    def ratio(self) -> float | None:
        """The output's distance over what one rounding and the inputs' distances make."""
        base = self.base
        return None if self.apart is None or base == 0.0 else self.apart / base

    @property
    def base(self) -> float:
        """The inputs' distances and one rounding, relative to the output."""
        return ((self.inputs or 0.0) + self.unit) * self.scale


def noises(a: Contents, b: Contents, everything: Sequence[Measured]) -> list[Noise]:
    """The noise of each pair of values, in order."""
    found: list[Noise] = []
    largest = 0.0
    inside: dict[str, float] = {}
    for one in everything:
        inputs = _input_distance(a, b, one.pair)
        if one.pair.op == "module":  # what differs inside comes out
            inputs = max(inputs or 0.0, _inside(inside, one.pair.module))
        if inputs is None and one.operators is None:
            inputs = largest  # nobody knows what it came from: anything before
        apart = distance(a.sketch(one.pair.a), b.sketch(one.pair.b))
        scale = amplification(a, one, inputs)
        found.append(Noise(apart, inputs, _unit(a, b, one), scale))
        if apart is not None and math.isfinite(apart):
            largest = max(largest, apart)
            module = one.pair.module
            inside[module] = max(inside.get(module, 0.0), apart)
    return found


def _inside(known: dict[str, float], module: str) -> float:
    """The largest distance so far in the modules below one."""
    prefix = f"{module}." if module else ""
    below = (far for path, far in known.items() if path != module and path.startswith(prefix))
    return max(below, default=0.0)


def _input_distance(a: Contents, b: Contents, pair: ValuePair) -> float | None:
    known = [distance(a.sketch(x), b.sketch(y)) for x, y in pair.inputs]
    return max((one for one in known if one is not None), default=None)


def _unit(a: Contents, b: Contents, one: Measured) -> float:
    pairs = (*one.pair.inputs, (one.pair.a, one.pair.b))
    dtypes = {a.value(x).dtype for x, _ in pairs} | {b.value(y).dtype for _, y in pairs}
    return max(map(rounding, dtypes))


def typical_ratios(everything: Sequence[Measured], found: Sequence[Noise]) -> list[float]:
    """What each pair's operator makes of differences, by the other operators of its name."""
    peers: dict[tuple[str, str], list[float]] = defaultdict(list)
    for one, noise in zip(everything, found, strict=True):
        ratio = noise.ratio
        if ratio is not None and 0.0 < ratio < math.inf:
            peers[one.pair.phase, one.pair.op].append(ratio)
    typical = {
        place: min(max(1.0, statistics.median(ratios)), _MOST_TYPICAL)
        for place, ratios in peers.items()
        if len(ratios) >= _FEW
    }
    return [typical.get((one.pair.phase, one.pair.op), 1.0) for one in everything]


def rows_of(
    a: Contents, b: Contents, alignment: Alignment, everything: Sequence[Measured]
) -> list[Row]:
    """A row for each pair of values."""
    found = noises(a, b, everything)
    classes = {call.module: call.class_name for call in a.step.modules}
    rows = []
    typical = typical_ratios(everything, found)
    for order, parts in enumerate(zip(everything, found, typical, strict=True)):
        rows.append(_row(order, a, b, *parts, classes))
    return rows


def _row(
    order: int,
    a: Contents,
    b: Contents,
    one: Measured,
    noise: Noise,
    typical: float,
    classes: dict[str, str],
) -> Row:
    pair = one.pair
    left, right = a.sketch(pair.a), b.sketch(pair.b)
    differ = left is not None and right is not None and left.mask != right.mask
    status, expected = judged(a, b, one, noise, typical)
    return Row(
        order=order,
        name=pair.name,
        key=pair.key,
        phase=pair.phase,
        module=pair.module,
        module_class=classes.get(pair.module, ""),
        op=pair.op,
        aligned=pair.how,
        place=None if one.operators is None else one.operators.b.place or one.operators.a.place,
        dtypes=(a.value(pair.a).dtype, b.value(pair.b).dtype),
        shape=b.value(pair.b).shape,
        distance=noise.apart,
        input_distance=noise.inputs,
        expected=expected,
        status=status,
        masks=(mask_text(left), mask_text(right)) if differ and left and right else None,
        arguments=given(a, b, one),
    )


def judged(
    a: Contents, b: Contents, one: Measured, noise: Noise, typical: float
) -> tuple[Status, float | None]:
    """The status of one pair of values, and up to which distance it would be explained."""
    if noise.apart is None:
        return "unknown", None
    if noise.apart == 0.0:
        same = is_same(a.sketch(one.pair.a), b.sketch(one.pair.b))
        return ("equal" if same else "rounding"), None
    came = (noise.inputs or 0.0) > 0.0
    if not is_float(a.value(one.pair.a).dtype):
        return ("carried", math.inf) if came else ("diverges", 0.0)  # an index flips or does not
    if noise.inputs == math.inf:
        return "carried", math.inf
    limit = LIMIT_16 if noise.unit > _FLOAT32 else LIMIT
    expected = limit * typical * noise.base
    if noise.apart <= limit * noise.unit * noise.scale:
        return "rounding", expected
    if noise.apart <= expected:
        return "carried", expected
    # What is only alike need not be meant to be the same.
    return ("unknown" if one.pair.how == "content" else "diverges"), expected


def is_random(operator: Operator) -> bool:
    """Whether an operator draws random numbers."""
    bare = operator.key.op.split("::")[-1].rstrip("_")
    if bare in _EXACT_RANDOM:
        return operator.arguments.get("train") is not False
    probability = operator.arguments.get("dropout_p")
    if not isinstance(probability, float) or probability == 0.0:
        return False
    try:
        packet = getattr(torch.ops.aten, operator.name.split("::")[-1])
        return torch.Tag.nondeterministic_seeded in getattr(packet, operator.overload).tags
    except AttributeError:
        return True  # a vendor's operator with dropout
