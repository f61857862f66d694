"""A policy's table for one model: what each module gets, by which rule, and what the chip does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from accel.devices import Device
from accel.precision.operand import GEMMS, OPERANDS, Gemm, ModulePlan, OperandFormat, Slot
from accel.precision.policy.chip import (
    ACCEPTED,
    REFUSED,
    Statement,
    chip_formats,
    devices_of,
    never_run,
    statements,
)
from accel.precision.policy.formats import dtype_name, format_text
from accel.precision.policy.grouping import grouped
from accel.precision.policy.notes import in_eight_bits, notes_of
from accel.precision.policy.policy import Policy
from accel.precision.policy.resolve import DEFAULT, Resolution, plan_of
from accel.report.text import table

_HEADERS = ("module", "type", "computes in", *(gemm.replace("_", " ") for gemm in GEMMS), "rules")


@dataclass(frozen=True)
class Row:
    """One module of the table.

    Attributes:
        name: Its name without what wrappers add.
        kind: Its class's name.
        compute: The dtype of what it computes in no eight bits.
        products: Formats of both operands of each product of a linear layer, `""` for others.
        rules: Numbers of the rules that gave it something, in order, from 1; 0: the policy's
            compute.
        parameters: How many numbers it holds itself.
    """

    name: str
    kind: str
    compute: str
    products: tuple[str, str, str]
    rules: tuple[int, ...]
    parameters: int


@dataclass(frozen=True)
class Explanation:
    """What a policy does with a model; `str` of it is meant to be read.

    Attributes:
        policy: The policy.
        rows: One per module that computes something, in the order of `named_modules`.
        notes: What a table cannot say: what is left out and why, what is padded, what is shared.
        chips: Per chip, what it does with each format that the model needs.
        share: Which part of the multiplications of linear layers, forward and backward, is in
            eight bits: 0 to 1.
    """

    policy: Policy
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    chips: dict[str, list[Statement]]
    share: float

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        policy = self.policy
        yield (
            f"parameters {dtype_name(policy.params)}, compute {dtype_name(policy.compute)}, output "
            f"{dtype_name(policy.output)}; {self.share:.1%} of the multiplications of linear "
            "layers in eight bits"
        )
        yield ""
        shown = [row for row in self.rows if row.parameters or row.rules != (0,)]
        rows = [(row.kind, row.compute, *row.products, _numbers(row.rules)) for row in shown]
        names = [row.name or "(the model)" for row in shown]
        yield table(_HEADERS, [(name, *cells) for name, cells in grouped(names, rows)])
        if len(shown) < len(self.rows):
            rest = len(self.rows) - len(shown)
            yield f"and {_modules(rest)} without parameters, by rule 0"
        yield from self._rules()
        if self.notes:
            yield ""
            yield from (f"- {note}" for note in self.notes)
        for chip, said in self.chips.items():
            yield ""
            yield f"on {chip}:"
            words = [(one.needs, one.text, _modules(one.modules)) for one in said]
            yield table(("format", "is", "for"), words)
            if not self.policy.emulate and any(one.verdict not in ACCEPTED for one in said):
                yield REFUSED
            yield from never_run(said)

    def _rules(self) -> Iterator[str]:
        yield ""
        rows = [(0, DEFAULT, sum(0 in row.rules for row in self.rows))]
        for number, rule in enumerate(self.policy.rules, 1):
            rows.append((number, str(rule), sum(number in row.rules for row in self.rows)))
        yield table(("no.", "rule", "modules"), rows)


def explain_policy(
    policy: Policy, model: nn.Module, device: Device | torch.device | str | None = None
) -> Explanation:
    """See `Policy.explain`."""
    resolution = plan_of(policy, model)
    chips: dict[str, list[Statement]] = {}
    for place in devices_of(model) if device is None else [device]:
        chip = chip_formats(place)
        chips[chip.name] = statements(policy.compute, resolution.values(), chip)
    return Explanation(
        policy,
        tuple(_row(plan, resolution) for plan in resolution.values()),
        tuple(notes_of(resolution)),
        chips,
        share_in_eight_bits(resolution),
    )


def share_in_eight_bits(resolution: Resolution) -> float:
    """Which part of the multiplications of linear layers a resolution does in eight bits."""
    done = total = 0
    for name, plan in resolution.items():
        module = resolution.nodes[name].module
        if isinstance(module, nn.Linear) and not nn.parameter.is_lazy(module.weight):
            size = module.in_features * module.out_features
            total += size * len(GEMMS)
            done += size * sum(in_eight_bits(plan, gemm) for gemm in GEMMS)
    return done / total if total else 0.0


def _row(plan: ModulePlan, resolution: Resolution) -> Row:
    node, rules = resolution.nodes[plan.name], resolution.policy.rules
    forward, data_gradient, weight_gradient = (_product(plan, gemm) for gemm in GEMMS)
    used = {rules.index(rule) + 1 if rule else 0 for rule in resolution.sources[plan.name]}
    own = node.module.parameters(recurse=False)
    return Row(
        node.name,
        plan.kind,
        dtype_name(plan.compute),
        (forward, data_gradient, weight_gradient),
        tuple(sorted(used)),
        sum(1 if nn.parameter.is_lazy(parameter) else parameter.numel() for parameter in own),
    )


def _product(plan: ModulePlan, gemm: Gemm) -> str:
    """`input * weight` in the notation, short; one word where both are alike."""
    if not plan.slots:
        return ""
    left, right = (_short(plan.slots[Slot(gemm, role)]) for role in OPERANDS[gemm])
    return left if left == right else f"{left} * {right}"


def _short(given: OperandFormat) -> str:
    name, *options = format_text(given).split(":")
    return ":".join([_SHORT.get(name, name), *options])


_SHORT = {"float8_e4m3fn": "e4m3", "float8_e5m2": "e5m2", "hifloat8": "hif8"}


def _numbers(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers))


def _modules(count: int) -> str:
    if not count:
        return "what is in no module"
    return f"{count} module{'' if count == 1 else 's'}"
