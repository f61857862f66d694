"""One rule of a policy: which modules and operands it speaks of, and the format it gives them."""

from __future__ import annotations

import difflib
import fnmatch
import json
import re
from dataclasses import dataclass
from functools import cached_property

import torch

from accel.precision.operand import GEMMS, ROLES, SLOTS, Gemm, OperandFormat, Role, Slot
from accel.precision.policy.formats import checked, format_text, near, parse_format
from accel_kernels.fp8.formats import Scaling

# What a name may hold without quotes; `?` at its end would read as the mark of an optional rule.
PLAIN_NAME = r"[\w.*?\[\]!|-]*[\w.*\[\]!|-]"
_KEYS = ("params", "compute", "output", "emulate", "preset")


@dataclass(frozen=True, init=False)
class Rule:
    """Gives a format to the modules and operands that it matches.

    Args:
        format: A format or its text, a dtype, or a `Scaling`.
        name: Glob for the names of modules (`*` also matches dots; `|` separates alternatives). It
            matches a module, and with it everything inside: `encoder` means all of the encoder.
        type: A family (linear, conv, embedding, norm, attention, head) or the name of a class or
            base class; with a module of it, everything inside matches. Empty for any.
        role: Only this operand: input, weight or gradient. None for all.
        gemm: Only this product: forward, data_gradient or weight_gradient. None for all.
        optional: It may match nothing; other rules must match.

    Raises:
        TypeError: An argument has not the type it should have.
        ValueError: An argument is not one of these, or role and product do not go together.
    """

    format: OperandFormat
    name: str
    type: str
    role: Role | None
    gemm: Gemm | None
    optional: bool

    def __init__(
        self,
        format: OperandFormat | Scaling | torch.dtype | str,  # noqa: A002 - the notation's word
        name: str = "*",
        type: str = "",  # noqa: A002 - the notation's word
        role: Role | None = None,
        gemm: Gemm | None = None,
        optional: bool = False,
    ) -> None:
        if not (isinstance(name, str) and isinstance(type, str)):
            raise TypeError(f"a rule's name and type are text, not {name!r} and {type!r}")
        if not isinstance(optional, bool):
            raise TypeError(f"a rule is optional or not: True or False, not {optional!r}")
        if not name:
            raise ValueError("a rule's name must not be empty: write * for every module")
        if type and not re.fullmatch(r"[^\W\d]\w*", type):
            raise ValueError(
                f"a rule's type is a family or the name of a class, such as linear or Conv2d, not "
                f"{type!r}"
            )
        _one_of("role", role, ROLES)
        _one_of("gemm", gemm, GEMMS)
        values = (as_format(format), name, type, role, gemm, optional)
        for field, value in zip(self.__dataclass_fields__, values, strict=True):
            object.__setattr__(self, field, value)
        if not self.slots:
            takes = " and ".join(slot.role for slot in SLOTS if slot.gemm == gemm)
            raise ValueError(f"the product {gemm} has the operands {takes}, so no {role}")

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The operands that it speaks of."""
        return tuple(
            slot
            for slot in SLOTS
            if self.role in (None, slot.role) and self.gemm in (None, slot.gemm)
        )

    @property
    def whole(self) -> bool:
        """Whether it speaks of whole modules, not of single operands only."""
        return self.role is None and self.gemm is None

    @property
    def selector(self) -> str:
        """What it matches, in the notation."""
        parts = []
        if self.name != "*" or (not self.type and self.whole):
            parts.append(_quoted(self.name))
        if self.type:
            parts.append(f"<{self.type}>")
        if self.role:
            parts.append(f"/{self.role}")
        if self.gemm:
            parts.append(f"@{self.gemm}")
        return "".join(parts)

    def matches_name(self, name: str) -> bool:
        """Whether its glob matches this name."""
        return self._pattern.fullmatch(name) is not None

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(map(fnmatch.translate, self.name.split("|"))))

    def __str__(self) -> str:
        return f"{self.selector}{'?' if self.optional else ''}={format_text(self.format)}"


def as_format(given: OperandFormat | Scaling | torch.dtype | str) -> OperandFormat:
    """A format from what stands for one.

    Raises:
        TypeError: It stands for none.
        ValueError: No policy can have it.
    """
    if isinstance(given, str):
        return parse_format(given)
    if isinstance(given, torch.dtype):
        return checked(OperandFormat(dtype=given))
    if isinstance(given, Scaling):
        return checked(OperandFormat(scaling=given))
    if isinstance(given, OperandFormat):
        return checked(given)
    raise TypeError(
        f"a format is text such as 'float8_e4m3fn:row', a dtype, a Scaling or an OperandFormat, "
        f"not {given!r}"
    )


def _one_of(key: str, given: str | None, allowed: tuple[str, ...]) -> None:
    if given is not None and given not in allowed:
        hint = near(given, allowed) if isinstance(given, str) else ""
        raise ValueError(f"a rule's {key} is one of {', '.join(allowed)}, not {given!r}{hint}")


def like_a_setting(name: str) -> bool:
    """Whether a name is the policy's own key or a slip of one: a module so named needs quotes."""
    if name in ("p", "c", "o"):
        return True
    return bool(difflib.get_close_matches(name.lower(), _KEYS, n=1, cutoff=0.8))


def _quoted(name: str) -> str:
    plain = re.fullmatch(PLAIN_NAME, name) and not like_a_setting(name)
    return name if plain else json.dumps(name)
