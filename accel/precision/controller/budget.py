"""Which share of the matrix products' work runs above FP8."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from accel.precision.controller.decision import Controlled, Operand


class Budget:
    """The products of the controlled modules, and what they cost.

    A product runs above FP8 as soon as one of its operands does. Products that the policy keeps
    above FP8 are not counted: the controller cannot change them.

    Args:
        operands: All that are controlled.
    """

    def __init__(self, operands: Sequence[Controlled]) -> None:
        self._products = {one.operand: one.products for one in operands}
        self._all: dict[str, set[str]] = {}
        for one in operands:
            self._all.setdefault(one.operand.module, set()).update(one.products)

    def share(self, high: set[Operand], flops: Mapping[str, int]) -> float:
        """Of the work, what runs above FP8 if these operands do.

        Args:
            high: Operands above FP8.
            flops: Of one product of each module; those that are missing count as nothing.
        """
        above: dict[str, set[str]] = {}
        for operand in high:
            above.setdefault(operand.module, set()).update(self._products[operand])
        total = sum(len(products) * flops.get(name, 0) for name, products in self._all.items())
        spent = sum(len(products) * flops.get(name, 0) for name, products in above.items())
        return spent / total if total else float(bool(above))
