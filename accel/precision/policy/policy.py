"""The policy: which dtypes a model keeps, computes in and returns, and the rules of its modules."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from accel.precision.policy.formats import DTYPES
from accel.precision.policy.rule import Rule

if TYPE_CHECKING:
    from accel.devices import Device
    from accel.precision.policy.explain import Explanation
    from accel.precision.policy.resolve import Resolution


@dataclass(frozen=True, init=False)
class Policy:
    """Which numbers a model is trained in; immutable, printable, parseable.

    The three dtypes and their defaults are those of google-deepmind/jmp. The first rule that
    matches a module, or one operand of a linear layer's products, decides it; where none does,
    `compute` holds.

    Args:
        compute: What modules compute in, under autocast; None: as `params`.
        params: What parameters, and so optimizer states, are kept in.
        output: What the model returns; None: as `compute`.
        rules: What differs from `compute`, in order.
        emulate: Whether a format that the device does not compute in may be emulated there, with
            the same eight bits and no gain in speed, or a 16-bit dtype that it lacks replaced by
            float32. Without, `resolve` refuses such a device; with it, it warns.

    Raises:
        TypeError: A rule is no `Rule`.
        ValueError: A dtype is not one of float32, bfloat16 and float16, or two rules match alike.
    """

    compute: torch.dtype
    params: torch.dtype
    output: torch.dtype
    rules: tuple[Rule, ...]
    emulate: bool

    def __init__(
        self,
        compute: torch.dtype | None = None,
        params: torch.dtype = torch.float32,
        output: torch.dtype | None = None,
        rules: Sequence[Rule] = (),
        emulate: bool = False,
    ) -> None:
        _check_dtype("keeps parameters", params)
        compute = params if compute is None else compute
        _check_dtype("computes", compute)
        output = compute if output is None else output
        _check_dtype("returns", output)
        if not isinstance(emulate, bool):
            raise TypeError(f"a policy emulates or not: True or False, not {emulate!r}")
        values = (compute, params, output, _checked(rules), emulate)
        for field, value in zip(self.__dataclass_fields__, values, strict=True):
            object.__setattr__(self, field, value)

    @classmethod
    def parse(cls, text: str) -> Policy:
        """Read a policy from its notation (`accel.precision.policy.notation`).

        `"compute=bfloat16"`, `"fp8_rowwise; head=float32"` and
        `"{linear: fp16, conv: bf16, embedding: fp32}"` are policies.

        Raises:
            TypeError: It is no text.
            ValueError: It is not understood; says which part, and what may stand there.
        """
        from accel.precision.policy.notation import parse_policy

        return parse_policy(text)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Policy:
        """Read a policy from a TOML or JSON file (`accel.precision.policy.files`).

        Raises:
            OSError: The file cannot be read.
            ValueError: It holds no policy; says in which line.
        """
        from accel.precision.policy.files import load_policy

        return load_policy(path)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a file that `load` reads back as the same policy: TOML or JSON, by its ending.

        Raises:
            OSError: The file cannot be written.
            ValueError: Its name ends neither in .toml nor in .json.
        """
        from accel.precision.policy.files import save_policy

        save_policy(self, path)

    def resolve(
        self, model: nn.Module, device: Device | torch.device | str | None = None
    ) -> Resolution:
        """What each module of a model gets.

        Args:
            model: Nothing of it is changed.
            device: Where it will be trained; None: where its parameters are. Nothing is checked
                for parameters on `meta`.

        Raises:
            ValueError: A rule decides nothing in this model, or two formats that one product would
                need do not go together.
            accel.DeviceError: The device lacks a format, and the policy does not say `emulate`.
        """
        from accel.precision.policy.resolve import resolve_policy

        return resolve_policy(self, model, device)

    def explain(
        self, model: nn.Module, device: Device | torch.device | str | None = None
    ) -> Explanation:
        """A printable table of what each module gets and by which rule, and what the chip does.

        Refuses no chip: it says what a policy would be on it.

        Args:
            model: Nothing of it is changed.
            device: As for `resolve`, or the name of a chip that is not here, such as `sm_90` or
                `910B2`.

        Raises:
            ValueError: A rule decides nothing in this model.
        """
        from accel.precision.policy.explain import explain_policy

        return explain_policy(self, model, device)

    def __str__(self) -> str:
        from accel.precision.policy.notation import policy_text

        return policy_text(self)


def _check_dtype(does: str, dtype: object) -> None:
    if dtype not in DTYPES.values():
        raise ValueError(f"a policy {does} in one of {', '.join(DTYPES)}, not in {dtype}")


def _checked(rules: Sequence[Rule]) -> tuple[Rule, ...]:
    if isinstance(rules, str) or not all(isinstance(rule, Rule) for rule in rules):
        raise TypeError(f"a policy's rules are a sequence of Rule, not {rules!r}")
    seen: dict[str, Rule] = {}
    for rule in rules:
        earlier = seen.setdefault(rule.selector, rule)
        if earlier is not rule:
            raise ValueError(
                f"two rules match {rule.selector}: {earlier} and {rule}; the second would never "
                "apply: remove one"
            )
    return tuple(rules)
