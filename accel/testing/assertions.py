"""Assertions for tests of kernels and backends, in your project as in this one."""

from __future__ import annotations

from torch import Tensor

from accel_kernels import budgets


def assert_within_budget(
    actual: Tensor,
    reference: Tensor,
    truth: Tensor,
    *,
    floor: budgets.Deviation | None = None,
    tolerance: float = budgets.FACTOR,
    name: str = "the result",
) -> None:
    """Assert that a result is about as close to the truth as its dtype allows.

    There is no atol or rtol to choose: the budget is `tolerance` times the error that an
    independent implementation in the same dtype makes on the same inputs, plus the rounding of the
    output (`accel_kernels.budgets`).

    Args:
        actual: The result under test, any shape, dtype and device.
        reference: The same by an independent implementation in the same dtype.
        truth: The same in float64, from the same (rounded) inputs.
        floor: The least reference error that is believed: `budgets.typical` of the tensors computed
            together, since a single small one can be exact by luck.
        tolerance: Times the reference's error; `KernelSpec.tolerance` of the kernel under test.
        name: What the message calls the result.

    Raises:
        AssertionError: It is further away; the message gives error and budget.
        ValueError: The shapes differ.
        TypeError: `reference` has another dtype than `actual`.
    """
    if actual.dtype != reference.dtype:
        raise TypeError(
            f"the reference must be in the dtype under test, {actual.dtype}, not {reference.dtype}"
        )
    allowed = budgets.budget(
        budgets.deviation(reference, truth), actual.dtype, floor=floor, factor=tolerance
    )
    reason = allowed.exceeded_by(budgets.deviation(actual, truth))
    if reason is not None:
        raise AssertionError(f"{name}: {reason}")
