"""From rules to what each module gets."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from accel.devices import Device
from accel.errors import DeviceError
from accel.precision.operand import GEMMS, OPERANDS, SLOTS, Gemm, ModulePlan, OperandFormat, Slot
from accel.precision.policy.chip import (
    ACCEPTED,
    ChipFormats,
    Statement,
    chip_formats,
    devices_of,
    never_run,
    statements,
)
from accel.precision.policy.families import (
    is_container,
    is_fused_attention,
    own_class,
    why_not_fp8,
)
from accel.precision.policy.formats import dtype_name, format_text
from accel.precision.policy.matching import matches, why_unused
from accel.precision.policy.policy import Policy
from accel.precision.policy.rule import Rule
from accel.precision.policy.tree import Node, nodes_of
from accel_kernels.fp8.formats import HIF8

DEFAULT = "the policy's compute"
_logger = logging.getLogger("accel")
_FLOAT32 = OperandFormat(dtype=torch.float32)


@dataclass(frozen=True, repr=False)
class Resolution(Mapping[str, ModulePlan]):
    """What each module that computes gets, by its name in `named_modules`.

    Modules that only hold others, and those that their parent computes without calling them, as
    `nn.MultiheadAttention` does with its `out_proj`, are not in it.

    Attributes:
        policy: Whose it is.
        compute: The policy's compute dtype, or what replaces it on the device.
        plans: In the order of `named_modules`.
        nodes: Every module of the model, by the same names.
        sources: Per module, the rules that gave it something; None: the policy's compute.
        passed: Per module, rules that match it and cannot give it what they say, and why.
        widened: Per module, in words, products of which one operand gets another format than its
            rule says, because of the other one.
        statements: Per chip, what it does with each format; empty where no device is known.
    """

    policy: Policy
    compute: torch.dtype
    plans: dict[str, ModulePlan]
    nodes: dict[str, Node]
    sources: dict[str, tuple[Rule | None, ...]]
    passed: dict[str, tuple[tuple[Rule, str], ...]]
    widened: dict[str, tuple[str, ...]]
    statements: dict[str, list[Statement]]

    def __getitem__(self, name: str) -> ModulePlan:
        return self.plans[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.plans)

    def __len__(self) -> int:
        return len(self.plans)

    def __repr__(self) -> str:
        return f"<Resolution of {self.policy} for {len(self)} modules>"

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        """The modules of the plans, by the same names."""
        return {name: self.nodes[name].module for name in self.plans}

    @property
    def dtypes(self) -> frozenset[torch.dtype]:
        """All that something is computed in, besides eight bits."""
        plans = self.plans.values()
        operands = {given.dtype for plan in plans for given in plan.slots.values() if given.dtype}
        return frozenset({self.compute, *(plan.compute for plan in plans), *operands})

    @property
    def plain_names(self) -> dict[str, str]:
        """The plans' names without what wrappers such as `torch.compile` and DDP add to them."""
        return {name: self.nodes[name].name for name in self.plans}


def resolve_policy(
    policy: Policy, model: nn.Module, device: Device | torch.device | str | None = None
) -> Resolution:
    """See `Policy.resolve`."""
    resolution = plan_of(policy, model)
    places = devices_of(model) if device is None else [device]
    for chip in {str(place): chip_formats(place) for place in places}.values():
        resolution = _on(resolution, chip)
    return resolution


def plan_of(policy: Policy, model: nn.Module) -> Resolution:
    """What each module gets, whatever the chip.

    Raises:
        TypeError: It is no module.
        ValueError: A rule decides nothing, or two formats do not go together.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"a policy speaks of an nn.Module, not of {type(model).__name__}")
    nodes = nodes_of(model)
    work = _Work(policy, nodes)
    plans = {node.path: plan for node in nodes if (plan := work.plan(node)) is not None}
    work.check_rules()
    return Resolution(
        policy,
        policy.compute,
        plans,
        {node.path: node for node in nodes},
        {path: tuple(dict.fromkeys(work.sources[path])) for path in plans},
        {path: tuple(pairs) for path, pairs in work.passed.items()},
        {path: tuple(lines) for path, lines in work.widened.items()},
        {},
    )


class _Work:
    """One resolution while it is made."""

    def __init__(self, policy: Policy, nodes: list[Node]) -> None:
        self.policy = policy
        self.nodes = nodes
        self.passed: dict[str, list[tuple[Rule, str]]] = {}
        self.widened: dict[str, list[str]] = {}
        self.sources: dict[str, list[Rule | None]] = {node.path: [] for node in nodes}

    def plan(self, node: Node) -> ModulePlan | None:
        """What a module gets; None if it computes nothing itself."""
        rules = [rule for rule in self.policy.rules if matches(rule, node)]
        fused = _never_called_by(node)
        if fused:
            # What decided the attention holds for what is computed with its weights.
            decided = {rule for outer in fused for rule in self.sources[outer.path]}
            for rule in rules:
                if rule not in decided:
                    self.pass_by(node, rule, "nn.MultiheadAttention computes it without calling it")
            return None
        if is_container(node.module):
            return None  # a rule that matches it also matches what is inside
        compute, why = self.compute(node, rules)
        kind = own_class(node.module).__name__
        if why_not_fp8(node.module) is not None:
            if why == DEFAULT and not _computes(node):
                return None
            return ModulePlan(node.path, kind, compute, {}, {"compute": why})
        return ModulePlan(node.path, kind, compute, *self.slots(node, rules, compute, why))

    def compute(self, node: Node, rules: list[Rule]) -> tuple[torch.dtype, str]:
        """The dtype of what a module computes in no eight bits, and by which rule."""
        obstacle = why_not_fp8(node.module)
        for rule in rules:
            if rule.whole and rule.format.dtype is not None:
                self.sources[node.path].append(rule)
                return rule.format.dtype, str(rule)
            if obstacle is not None:
                no_operands = "single operands have formats in nn.Linear only"
                self.pass_by(node, rule, obstacle if rule.format.is_fp8 else no_operands)
        self.sources[node.path].append(None)
        return self.policy.compute, DEFAULT

    def slots(
        self, node: Node, rules: list[Rule], compute: torch.dtype, why: str
    ) -> tuple[dict[Slot, OperandFormat], dict[Slot | str, str]]:
        """The formats of a linear layer's operands, and by which rule each."""
        formats: dict[Slot, OperandFormat] = {}
        words: dict[Slot | str, str] = {"compute": why}
        for slot in SLOTS:
            rule = next((rule for rule in rules if slot in rule.slots), None)
            formats[slot] = OperandFormat(dtype=compute) if rule is None else rule.format
            words[slot] = why if rule is None else str(rule)
            if rule is not None:
                self.sources[node.path].append(rule)
        for gemm in GEMMS:
            self.settle(node, gemm, formats, words)
        return formats, words

    def settle(
        self,
        node: Node,
        gemm: Gemm,
        formats: dict[Slot, OperandFormat],
        words: dict[Slot | str, str],
    ) -> None:
        """Give both operands of one product formats that it can be computed in.

        It is computed in eight bits if both have them; otherwise in the wider of both dtypes.

        Raises:
            ValueError: Both have eight bits, and nothing multiplies them.
        """
        left, right = (Slot(gemm, role) for role in OPERANDS[gemm])
        one, other = formats[left], formats[right]
        if one.scaling is not None and other.scaling is not None:
            if (one.scaling.format == HIF8) != (other.scaling.format == HIF8):
                raise ValueError(
                    f"{node.title}: the product {gemm} would multiply {format_text(one)} by "
                    f"{format_text(other)} (rules {words[left]} and {words[right]}); hifloat8 goes "
                    "with hifloat8 only: change one of them"
                )
            return
        wide = _wider(one, other)
        for slot, partner in ((left, right), (right, left)):
            narrow, formats[slot] = formats[slot], wide
            if narrow != wide:
                reason = f"the {partner.role} is {format_text(other if slot is left else one)}"
                words[slot] += f", but {format_text(wide)}: {reason}"
                self.widened.setdefault(node.path, []).append(
                    f"{gemm} is computed in {format_text(wide)} and not with the {slot.role} in "
                    f"{format_text(narrow)}, since {reason}"
                )

    def pass_by(self, node: Node, rule: Rule, reason: str) -> None:
        self.passed.setdefault(node.path, []).append((rule, reason))

    def check_rules(self) -> None:
        used = {rule for rules in self.sources.values() for rule in rules}
        for rule in self.policy.rules:
            if rule not in used and not rule.optional:
                raise ValueError(why_unused(rule, self.policy, self.nodes, self.passed))


def _never_called_by(node: Node) -> list[Node]:
    """The attentions that a module is inside of, by all of its names, and that never call it."""
    found = []
    for chain in node.chains:
        fused = [outer for outer in chain[:-1] if is_fused_attention(outer.module)]
        if not fused:
            return []
        found += fused
    return found


def _computes(node: Node) -> bool:
    """Whether a module that no rule names computes something itself."""
    own = any(True for _ in node.module.parameters(recurse=False))
    return own or not any(True for _ in node.module.children()) or "attention" in node.families


def _wider(one: OperandFormat, other: OperandFormat) -> OperandFormat:
    dtypes = [given.dtype for given in (one, other) if given.dtype is not None]
    return OperandFormat(dtype=torch.promote_types(dtypes[0], dtypes[-1]))


def _on(resolution: Resolution, chip: ChipFormats) -> Resolution:
    """The same on a chip, if the policy accepts what becomes of it there.

    Raises:
        DeviceError: It lacks a format, and the policy does not say `emulate`.
    """
    said = statements(resolution.policy.compute, resolution.plans.values(), chip)
    lacking = [one for one in said if one.verdict not in ACCEPTED]
    if lacking and not resolution.policy.emulate:
        what = "; ".join(f"{one.needs} would be {one.text}" for one in lacking)
        raise DeviceError(
            f"{chip.name} does not compute all that this policy needs: {what}. Accept it by adding "
            "`emulate` to the policy's settings, as in 'fp8_rowwise,emulate' or "
            "'compute=bfloat16,emulate', or choose other formats"
        )
    plans = {name: _replaced(plan, chip) for name, plan in resolution.plans.items()}
    compute = resolution.compute if resolution.compute in chip.dtypes else torch.float32
    for one in said:
        if one.verdict != "native":
            _logger.warning("on %s %s is %s", chip.name, one.needs, one.text)
    for sentence in never_run(said):
        _logger.warning("on %s %s", chip.name, sentence)
    told = {**resolution.statements, chip.name: said}
    return replace(resolution, compute=compute, plans=plans, statements=told)


def _replaced(plan: ModulePlan, chip: ChipFormats) -> ModulePlan:
    """A plan with float32 in place of dtypes that the chip lacks."""
    changes: dict[str, Any] = {}
    rules = dict(plan.rules)
    if plan.compute not in chip.dtypes:
        changes["compute"] = torch.float32
        rules["compute"] += f", but float32: {chip.name} has no {dtype_name(plan.compute)}"
    slots = dict(plan.slots)
    for slot, given in plan.slots.items():
        if given.dtype is not None and given.dtype not in chip.dtypes:
            slots[slot] = _FLOAT32
            rules[slot] += f", but float32: {chip.name} has no {dtype_name(given.dtype)}"
    return replace(plan, slots=slots, rules=rules, **changes)
