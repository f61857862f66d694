"""Gradients of one run that are a multiple of the other's: a loss that only one run scales."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from accel.numerics.comparing.comparison import Verdict
from accel.numerics.comparing.contents import distance, scaled
from accel.numerics.comparing.evidence import Evidence
from accel.numerics.comparing.wording import number_of

_APART = 0.01  # relative; what rounding does to a gradient is less, and to a mean of a batch more


def of_gradient_scale(evidence: Evidence) -> Iterator[Verdict]:
    """The finding that the gradients differ by a factor, where nothing else explains them.

    An operator that only one run has may scale the loss. Then each gradient differs as its inputs
    do, down to the first, whose input has no counterpart: only the factor itself tells.
    """
    pairs = []
    for pair in evidence.alignment.gradients:
        left, right = evidence.a.sketch(pair.a), evidence.b.sketch(pair.b)
        if left is not None and right is not None and left.norm > 0.0 and right.norm > 0.0:
            pairs.append((left, right))
    if not pairs:
        return
    factor = statistics.median(right.norm / left.norm for left, right in pairs)
    if abs(factor - 1.0) <= _APART:
        return
    apart = [distance(left, scaled(right, 1.0 / factor)) for left, right in pairs]
    close = sum(one is not None and one <= _APART for one in apart)
    if 2 * close <= len(pairs):
        return
    yield Verdict(
        "different program",
        f"the candidate's gradients are {factor:.6g} times the reference's, and nothing else that "
        "both runs have explains it",
        (
            f"{close} of {number_of(len(pairs), 'gradient')} of parameters and module outputs are "
            f"equal to within {_APART:.0%} once divided by {factor:.6g}",
            f"if the candidate scales its loss on purpose, compare with --scale {factor:.6g}",
        ),
    )
