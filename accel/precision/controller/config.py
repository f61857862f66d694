"""Thresholds and waiting times of the precision controller."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class ControllerConfig:
    """When a tensor leaves its format and when it may come back.

    Every threshold comes twice: the one to leave a format lies above the one to come back to it, so
    that a tensor between them stays where it is.

    Attributes:
        interval: A reading of every tensor each so many steps; a suspicious one is read every step.
        confirm: Readings in a row in which a format must fail before the tensor leaves it.
        calm: Readings in a row in which a lower format must pass before the tensor comes back.
        cooldown: Least steps between a change and a way back; doubled each time that a tensor
            fails again within as many steps as it waited before.
        max_doublings: Of `cooldown`.
        promote: An eight-bit format fails where its error is above this many times the rounding
            error that it has on any well-scaled tensor (`Rung.floor`). Twice, as in MoR
            (arXiv 2512.22804), whose 4.5 % is twice E4M3's mean of 2.2 %.
        demote: It passes for a way back at or below this many times.
        wide_error: A 16-bit format fails above this relative error, sixteen times below FP8's
            rounding and six times above bfloat16's: only lost range gets it there.
        promote_underflow: An eight-bit format fails where more than this share of the nonzero
            values becomes zero. High, since 8 % of a healthy GELU's outputs do.
        demote_underflow: It passes for a way back at or below this share.
        promote_overflow: It fails where more than this share is beyond the scale and saturates.
        demote_overflow: It passes for a way back at or below this share.
        withhold: A step is withheld, and a tensor promoted at once, where an eight-bit format has
            more than this many times the error that makes it fail: weights would learn from noise.
        leap: A step is withheld, and everything measured in the next, where a tensor's largest
            magnitude is above this many times what it was lately: what was well scaled then has
            lost as much of its range. Looked at in every step, readings or not.
        budget: At most this share of the FLOPs of the controlled matrix products above FP8.
        displace: A tensor takes another's place in a full budget if it is this many times as bad.

    Raises:
        ValueError: A value is out of its range, or a way back is not below the way out.
    """

    interval: int = 20
    confirm: int = 3
    calm: int = 3
    cooldown: int = 100
    max_doublings: int = 6
    promote: float = 2.0
    demote: float = 1.5
    wide_error: float = 0.01
    promote_underflow: float = 0.25
    demote_underflow: float = 0.15
    promote_overflow: float = 1e-3
    demote_overflow: float = 1e-4
    withhold: float = 4.0
    leap: float = 64.0
    budget: float = 0.2
    displace: float = 2.0

    def __post_init__(self) -> None:
        for name in ("interval", "confirm", "calm", "cooldown", "max_doublings"):
            value, least = getattr(self, name), 0 if name in ("cooldown", "max_doublings") else 1
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} must be a whole number from {least} up, not {value!r}")
        for name in (field.name for field in fields(self) if field.type == "float"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or isinstance(value, bool):
                raise ValueError(f"{name} must be a number, not {value!r}")
            if not math.isfinite(value) or value < 0.0:
                raise ValueError(f"{name} must be finite and not negative, not {value!r}")
        if self.budget > 1.0:
            raise ValueError(f"the budget is a share from 0 to 1, not {self.budget}")
        for name in ("displace", "withhold", "leap"):
            if getattr(self, name) < 1.0:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for out, back in (
            ("promote", "demote"),
            ("promote_underflow", "demote_underflow"),
            ("promote_overflow", "demote_overflow"),
        ):
            if not 0.0 < getattr(self, back) < getattr(self, out):
                raise ValueError(
                    f"need 0 < {back} < {out}, so that a tensor between them stays where it is, "
                    f"not {back}={getattr(self, back)} and {out}={getattr(self, out)}"
                )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint or a log."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ControllerConfig:
        """What `to_dict` returned.

        Raises:
            ValueError: It is not that.
        """
        known = {field.name for field in fields(cls)}
        if set(values) != known:
            wrong = sorted(set(values) ^ known)
            raise ValueError(f"a controller's configuration has {sorted(known)}; wrong: {wrong}")
        return cls(**values)
