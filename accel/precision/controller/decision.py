"""What the controller decides, as values that a log can hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from accel.precision.controller.ladder import Rung

Kind = Literal["promote", "demote", "refuse", "displace"]


class Operand(NamedTuple):
    """One operand of one module: what a state belongs to.

    Attributes:
        module: Its qualified name.
        role: `input`, `weight` or `gradient`.
    """

    module: str
    role: str

    def __str__(self) -> str:
        return f"{self.module}/{self.role}"


class Controlled(NamedTuple):
    """An operand that is controlled.

    Attributes:
        operand: Which.
        rungs: Its formats, the policy's first.
        products: The module's matrix products with this operand that run in FP8 by the policy.
    """

    operand: Operand
    rungs: tuple[Rung, ...]
    products: tuple[str, ...]


class Decision(NamedTuple):
    """A change, or one that the budget did not allow.

    Attributes:
        step: After which optimizer step.
        operand: Whose format.
        kind: `promote` and `demote`; `refuse`: the budget was full and it got at most the best
            eight-bit format; `displace`: it gave its place in the budget to a worse one.
        before: Number of the rung before.
        after: Number of the rung after; the same where nothing changed.
        formats: Their names.
        reason: The numbers that led to it, in words.
        share: Of the FLOPs above FP8 afterwards.
    """

    step: int
    operand: Operand
    kind: Kind
    before: int
    after: int
    formats: tuple[str, str]
    reason: str
    share: float

    def __str__(self) -> str:
        change = " -> ".join(dict.fromkeys(self.formats))
        return f"step {self.step}: {self.kind} {self.operand} {change}: {self.reason}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "step": self.step,
            "module": self.operand.module,
            "role": self.operand.role,
            "change": self.kind,
            "before": self.before,
            "after": self.after,
            "formats": list(self.formats),
            "reason": self.reason,
            "share": self.share,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Decision:
        """What `to_dict` returned."""
        operand = Operand(values["module"], values["role"])
        before, after = values["formats"]
        return cls(
            values["step"], operand, values["change"], values["before"], values["after"],
            (before, after), values["reason"], values["share"],
        )  # fmt: skip
