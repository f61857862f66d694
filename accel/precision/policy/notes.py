"""What a policy's table cannot say about a model, in sentences."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from accel.precision.operand import GEMMS, OPERANDS, Gemm, ModulePlan, Slot
from accel.precision.policy.families import is_fused_attention, own_forward
from accel.precision.policy.formats import dtype_name
from accel.precision.policy.grouping import listed
from accel.precision.policy.resolve import Resolution
from accel.precision.policy.tree import Node

# cuBLASLt takes 8-bit matrices of which the inner dimension and the columns are multiples of it.
MULTIPLE = 16
_LIFTED = (torch.bfloat16, torch.float16)
# Families whose modules are a layer each, whatever modules they are made of.
_KNOWN = frozenset({"linear", "conv", "embedding", "norm"})


def notes_of(resolution: Resolution) -> Iterator[str]:
    """All that apply, the weightier first."""
    yield from _fused(resolution)
    yield from _passed(resolution)
    yield from _widened(resolution)
    yield from _other_matrices(resolution)
    yield from _fast_path(resolution)
    yield from _padded(resolution)
    yield from _shared(resolution)
    yield from _tied(resolution)
    yield from _other_parameters(resolution)
    if any(plan.compute in _LIFTED for plan in resolution.values()):
        yield (
            "a module that computes in 16 bits does so under autocast, whose table keeps some "
            "operators, such as softmax, norms and losses, in float32"
        )


def in_eight_bits(plan: ModulePlan, gemm: Gemm) -> bool:
    """Whether a product of a module is computed in eight bits."""
    return bool(plan.slots) and all(plan.slots[Slot(gemm, role)].is_fp8 for role in OPERANDS[gemm])


def padded(size: int) -> int:
    """The next multiple of 16."""
    return -(-size // MULTIPLE) * MULTIPLE


def _fused(resolution: Resolution) -> Iterator[str]:
    found: dict[torch.dtype, list[str]] = {}
    for node in resolution.nodes.values():
        if is_fused_attention(node.module) and node.path in resolution:
            found.setdefault(resolution[node.path].compute, []).append(node.title)
    for dtype, names in found.items():
        yield (
            f"{listed(names)}: nn.MultiheadAttention hands the weights of its projections "
            "(in_proj_weight, and out_proj, which is never called) to one call of torch's, so they "
            f"are computed in {dtype_name(dtype)} and no rule reaches them one by one; for eight "
            "bits use an attention with nn.Linear projections"
        )


def _passed(resolution: Resolution) -> Iterator[str]:
    found: dict[tuple[str, str], list[str]] = {}
    rules = resolution.policy.rules
    for path, pairs in resolution.passed.items():
        if not _is_expected_to_multiply(resolution.nodes[path]):
            continue
        for rule, reason in dict.fromkeys(pairs):
            words = f"rule {rules.index(rule) + 1}, {rule}"
            found.setdefault((words, reason), []).append(resolution.nodes[path].title)
    for (words, reason), names in found.items():
        yield f"{words}, does not apply to {listed(names)}: {reason}"


def _other_matrices(resolution: Resolution) -> Iterator[str]:
    """Products that no rule for linear layers reaches, where others are in eight bits."""
    if not any(in_eight_bits(plan, gemm) for plan in resolution.values() for gemm in GEMMS):
        return
    names = [
        node.title
        for node in resolution.nodes.values()
        if node.path in resolution and not node.families & _KNOWN and _is_expected_to_multiply(node)
    ]
    if names:
        yield (
            f"{listed(names)}: holds matrices and is no nn.Linear, so its products are in no eight "
            "bits"
        )


def _widened(resolution: Resolution) -> Iterator[str]:
    found: dict[str, list[str]] = {}
    for path, lines in resolution.widened.items():
        for line in lines:
            found.setdefault(line, []).append(resolution.nodes[path].title)
    for line, names in found.items():
        yield f"{listed(names)}: {line}"


def _is_expected_to_multiply(node: Node) -> bool:
    """Whether a module holds matrices for other use than by a layer that it is inside of."""
    if is_fused_attention(node.module) or any(outer.families & _KNOWN for outer in node.inside):
        return False
    return any(
        nn.parameter.is_lazy(parameter) or parameter.ndim >= 2
        for parameter in node.module.parameters(recurse=False)
    )


def _fast_path(resolution: Resolution) -> Iterator[str]:
    eight = [
        resolution.nodes[name]
        for name, plan in resolution.items()
        if any(in_eight_bits(plan, gemm) for gemm in GEMMS)
    ]
    layers = {
        outer.title: None
        for node in eight
        for outer in node.inside
        if own_forward(outer.module) is nn.TransformerEncoderLayer.forward
    }
    if layers:
        yield (
            f"{listed(list(layers))}: in evaluation without gradients torch may compute "
            "nn.TransformerEncoderLayer in one call, which calls none of its modules and knows no "
            "eight bits; torch.backends.mha.set_fastpath_enabled(False) stops it"
        )


def _padded(resolution: Resolution) -> Iterator[str]:
    found: dict[str, list[str]] = {}
    rows = False
    for name, plan in resolution.items():
        module = resolution.nodes[name].module
        if not (isinstance(module, nn.Linear) and any(in_eight_bits(plan, g) for g in GEMMS)):
            continue
        rows = rows or in_eight_bits(plan, "weight_gradient")
        found.setdefault(_sizes(module, plan), []).append(resolution.nodes[name].title)
    for words, names in found.items():
        if words:
            yield f"{listed(names)}: a chip's 8-bit product pads {words}"
    if rows:
        yield (
            "a chip's 8-bit weight_gradient pads the rows of a batch (all its dimensions but the "
            f"last, multiplied) to a multiple of {MULTIPLE}"
        )


def _sizes(module: nn.Linear, plan: ModulePlan) -> str:
    """What of a layer is padded, in words."""
    if isinstance(module.weight, nn.parameter.UninitializedParameter):
        return f"what is no multiple of {MULTIPLE}: its sizes are known after the first forward"
    needed = {"in_features": any(in_eight_bits(plan, gemm) for gemm in GEMMS)}
    needed["out_features"] = any(in_eight_bits(plan, g) for g in ("forward", "data_gradient"))
    words = [
        f"{key} from {getattr(module, key)} to {padded(getattr(module, key))}"
        for key, counts in needed.items()
        if counts and getattr(module, key) % MULTIPLE
    ]
    return " and ".join(words)


def _shared(resolution: Resolution) -> Iterator[str]:
    for name in resolution:
        node = resolution.nodes[name]
        if len(node.names) > 1:
            yield (
                f"{node.name} is one module with {', '.join(node.names[1:])}: a rule that matches "
                "any of these names holds for it"
            )


def _tied(resolution: Resolution) -> Iterator[str]:
    holders: dict[int, list[str]] = {}
    for node in resolution.nodes.values():
        for name, parameter in node.module._parameters.items():
            if parameter is not None:
                holders.setdefault(id(parameter), []).append(_join(node, name))
    for names in holders.values():
        if len(names) > 1:
            yield (
                f"{' and '.join(names)} are one parameter: it is stored once, and each module "
                "computes with it in its own format"
            )


def _join(node: Node, name: str) -> str:
    return f"{node.name}.{name}" if node.name else name


def _other_parameters(resolution: Resolution) -> Iterator[str]:
    found: dict[torch.dtype, list[str]] = {}
    for node in resolution.nodes.values():
        for name, parameter in node.module._parameters.items():
            if parameter is not None and parameter.is_floating_point():
                found.setdefault(parameter.dtype, []).append(_join(node, name))
    for dtype, names in found.items():
        if dtype != resolution.policy.params:
            yield (
                f"{len(names)} parameters are {dtype_name(dtype)} ({listed(names)}), while the "
                f"policy keeps parameters in {dtype_name(resolution.policy.params)}: cast them "
                f"with .to(torch.{dtype_name(resolution.policy.params)}) or change params="
            )
