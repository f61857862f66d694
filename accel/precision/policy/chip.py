"""What becomes of a policy's formats on a chip: computed there, emulated, or replaced."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import nn

from accel.devices import Device, find_device
from accel.devices.chips import chip as ascend_chip
from accel.devices.formats import ScaledProduct, ascend_products, cuda_products
from accel.dispatch import backends
from accel.errors import DeviceError
from accel.precision.operand import GEMMS, OPERANDS, ModulePlan, OperandFormat, Slot
from accel.precision.policy.formats import DTYPES, format_text

Verdict = Literal["native", "pieces", "emulated", "replaced"]
REFUSED = "the policy is refused there unless its settings say `emulate`"
ACCEPTED: frozenset[Verdict] = frozenset({"native", "pieces"})
_WORDS: dict[Verdict, str] = {
    "native": "computed natively",
    "pieces": "computed natively, one product for each stretch of columns with one scale: slower",
    "emulated": (
        "stored as bytes, emulated by a product of wider numbers: the same codes, no gain in speed"
    ),
    "replaced": "replaced by float32",
}


@dataclass(frozen=True)
class ChipFormats:
    """What a chip computes in.

    Attributes:
        name: The chip, in words.
        dtypes: Those of float32, bfloat16 and float16 that it computes in.
        products: The scaled 8-bit products that it computes itself.
        torch_type: Its device type.
    """

    name: str
    dtypes: frozenset[torch.dtype]
    products: frozenset[ScaledProduct]
    torch_type: str


class Statement(NamedTuple):
    """What a chip does with one thing that a policy needs.

    Attributes:
        needs: A dtype, or the formats of a product's operands.
        verdict: `native`; `pieces`: natively too, in more than one product; `emulated`: the same
            codes in wider numbers; `replaced`: by float32.
        text: The same in words.
        modules: How many modules need it.
        unproven: The kernel that would compute it natively and has never run on such hardware, so
            that plain PyTorch computes the same until this kernel is named.
    """

    needs: str
    verdict: Verdict
    text: str
    modules: int
    unproven: str = ""


def chip_formats(device: Device | torch.device | str) -> ChipFormats:
    """What a device computes in, or a chip that is not here.

    Args:
        device: A device of this machine, or `sm_90` for an NVIDIA GPU of capability 9.0, or an
            Ascend chip by its driver's name, such as `910B2` or `Ascend950PR_9589`.

    Raises:
        accel.DeviceError: The device is not here.
        ValueError: No Ascend chip has this name, or two may be meant.
    """
    if isinstance(device, str):
        capability = re.fullmatch(r"sm_?(\d+)(\d)[af]?", device)
        if capability is not None:
            return _nvidia(int(capability[1]), int(capability[2]))
        if device.startswith("Ascend") or device[:1].isdecimal():
            return _ascend(device)
    found = _here(device)
    computes = found.dtypes.compute & frozenset(DTYPES.values())
    name = f"{found} ({found.name})"
    return ChipFormats(name, computes, found.scaled_products(), found.torch_type)


def _here(device: Device | torch.device | str) -> Device:
    try:
        return find_device(device)
    except DeviceError as error:
        raise DeviceError(
            f"{error}; a chip that is not here is named by its NVIDIA capability (sm_80, sm_90) or "
            "its Ascend name (910B2, 950)"
        ) from None


def devices_of(model: nn.Module) -> list[torch.device]:
    """Where a model's parameters are; `meta` is nowhere."""
    devices = {parameter.device: None for parameter in model.parameters()}
    return [device for device in devices if device.type != "meta"]


def statements(
    compute: torch.dtype, plans: Iterable[ModulePlan], chip: ChipFormats
) -> list[Statement]:
    """What a chip does with everything that a policy needs.

    Args:
        compute: What operators outside of the plans' modules compute in.
        plans: Of the modules.
        chip: The chip.
    """
    needs: dict[OperandFormat | tuple[OperandFormat, OperandFormat], set[str]] = {}
    needs[OperandFormat(dtype=compute)] = set()
    for plan in plans:
        for need in needs_of(plan):
            needs.setdefault(need, set()).add(plan.name)
    return [_statement(need, chip, len(names)) for need, names in needs.items()]


def needs_of(
    plan: ModulePlan,
) -> Iterable[OperandFormat | tuple[OperandFormat, OperandFormat]]:
    """The dtypes that a module computes in, and its pairs of 8-bit operands."""
    yield OperandFormat(dtype=plan.compute)
    for gemm in GEMMS if plan.slots else ():
        left, right = (plan.slots[Slot(gemm, role)] for role in OPERANDS[gemm])
        yield (left, right) if left.is_fp8 and right.is_fp8 else left


def _statement(
    need: OperandFormat | tuple[OperandFormat, OperandFormat], chip: ChipFormats, modules: int
) -> Statement:
    if isinstance(need, OperandFormat):
        verdict: Verdict = "native" if need.dtype in chip.dtypes else "replaced"
        return Statement(format_text(need), verdict, _WORDS[verdict], modules)
    needs = f"{format_text(need[0])} by {format_text(need[1])}"
    wanted = product_of(*need)
    verdict = _verdict(wanted, chip)
    unproven = _unproven(wanted, chip) if verdict in ACCEPTED else ""
    return Statement(needs, verdict, _WORDS[verdict], modules, unproven)


def never_run(said: Iterable[Statement]) -> list[str]:
    """Of kernels that dispatch takes only when they are named, one sentence each."""
    return [
        f"the kernel {name} has never run there: until you name it, with "
        f"ACCEL_BACKEND=scaled_matmul={name}, plain PyTorch computes the same without its speed"
        for name in dict.fromkeys(one.unproven for one in said if one.unproven)
    ]


def _unproven(wanted: ScaledProduct, chip: ChipFormats) -> str:
    """The kernel for a product if dispatch takes none for it by itself."""
    blocks = f"{wanted.left_blocks} by {wanted.right_blocks}"
    able = [
        spec
        for spec in backends("scaled_matmul")
        if chip.torch_type in spec.devices and blocks in spec.features
    ]
    proven = any(chip.torch_type in spec.proven_on for spec in able)
    return "" if proven or not able else able[0].name


def _verdict(wanted: ScaledProduct, chip: ChipFormats) -> Verdict:
    if wanted in chip.products:
        return "native"
    # With MX scales there would be a product for each 32 columns.
    whole = wanted._replace(left_blocks="tensor", right_blocks="tensor")
    is_mx = "1x32" in (wanted.left_blocks, wanted.right_blocks)
    return "pieces" if whole in chip.products and not is_mx else "emulated"


def product_of(left: OperandFormat, right: OperandFormat) -> ScaledProduct:
    """What a chip must have for this product of two 8-bit operands."""
    assert left.scaling is not None and right.scaling is not None, "both have eight bits"  # noqa: S101, PT018
    return ScaledProduct(
        left.scaling.format.name,
        right.scaling.format.name,
        left.scaling.granularity,
        right.scaling.granularity,
    )


def _nvidia(major: int, minor: int) -> ChipFormats:
    dtypes = {torch.float32, torch.float16} | ({torch.bfloat16} if major >= 8 else set())
    name = f"CUDA capability {major}.{minor}"
    return ChipFormats(name, frozenset(dtypes), cuda_products((major, minor)), "cuda")


def _ascend(name: str) -> ChipFormats:
    known = ascend_chip(name)
    dtypes = {torch.float32, torch.float16} | ({torch.bfloat16} if known.bfloat16 else set())
    return ChipFormats(known.soc_name, frozenset(dtypes), ascend_products(known), "npu")
