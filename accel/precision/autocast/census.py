"""In which dtype this machine's own autocast computes every operator, found by calling it.

`python -m accel.precision.autocast.census` prints the answer as one JSON document: that is what
`accel doctor --autocast` runs.
"""

from __future__ import annotations

import json
import sys
import warnings
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from accel.devices import available_devices
from accel.precision.autocast.context import portable_autocast
from accel.precision.autocast.examples import EXAMPLES, WITHOUT_EXAMPLE, Operands
from accel.precision.autocast.kernels import autocast_key, find_operator
from accel.precision.autocast.table import OF_ONE_DEVICE, TABLE, Treatment

SCHEMA = "accel.autocast"
DEFAULT_DTYPE = torch.bfloat16  # of portable_autocast
ABSENT = "not on this device"
REFUSED = "refused"
FAILED = "fails"
NO_FLOAT = "no floating-point result"
ROUNDED = ", rounded inside"
_BAND = 2.0**-14  # relative: far above roundings of float32, and far below one of 16 bits


@dataclass(frozen=True)
class Measured:
    """One operator, called with operands of one dtype.

    Attributes:
        operator: Its name in the table.
        operands: Their dtype.
        table: The dtype of the result by the table, or `refused`.
        native: The dtype under the device's own autocast; or `refused`, `fails`, `not on this
            device`, `no floating-point result`; with `, rounded inside` where the dtype is right
            and the values are those of a computation in 16 bits.
        portable: The same under `portable_autocast`.
    """

    operator: str
    operands: str
    table: str
    native: str
    portable: str

    @property
    def differs(self) -> bool:
        """Whether the device's own autocast does something else than the table."""
        return self.native not in (ABSENT, NO_FLOAT, self.table)

    @property
    def is_portable(self) -> bool:
        """Whether `portable_autocast` keeps to the table here."""
        return self.portable in (ABSENT, NO_FLOAT, self.table)


@dataclass(frozen=True)
class DeviceCensus:
    """One device.

    Attributes:
        device: `cpu`, `npu:0`.
        name: The chip.
        default_dtype: Of `torch.autocast` there.
        dtype: The lower dtype that was asked for in these calls.
        measured: Every call.
        unknown: Operators that the device's own autocast treats and the table does not name.
    """

    device: str
    name: str
    default_dtype: str
    dtype: str
    measured: tuple[Measured, ...]
    unknown: tuple[str, ...]


def take_census(device: torch.device, name: str = "") -> DeviceCensus:
    """Call every operator of the table on a device, with operands of float32 and of bfloat16.

    Args:
        device: Where.
        name: The chip's.

    Returns:
        What was found; an operator that cannot be called is content and no exception.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of prototypes and slow paths, which are not the subject
        measured = tuple(
            measure(operator, operands, DEFAULT_DTYPE, device)
            for operator in EXAMPLES
            for operands in (torch.float32, DEFAULT_DTYPE)
            if find_operator(operator) is not None
        )
    default = torch.get_autocast_dtype(device.type)
    return DeviceCensus(
        device=str(device),
        name=name,
        default_dtype=_name(default),
        dtype=_name(DEFAULT_DTYPE),
        measured=measured,
        unknown=unknown_operators(device.type),
    )


def measure(
    operator: str, operands: torch.dtype, dtype: torch.dtype, device: torch.device
) -> Measured:
    """Call one operator under the device's own autocast and under the portable one.

    Args:
        operator: Its name in the table.
        operands: Dtype of its operands.
        dtype: Dtype of the regions.
        device: Where.
    """
    here = device.type
    native, values = _result(operator, operands, device, torch.autocast(here, dtype=dtype))
    portable, precise = _result(operator, operands, device, portable_autocast(here, dtype))
    if native == portable == "float32" and not all(map(_is_close, values, precise)):
        native += ROUNDED
    if native == portable == FAILED:  # such as a fused cell that only GPUs have
        alone = [
            _result(operator, kind, device, torch.autocast(here, enabled=False))[0]
            for kind in (torch.float32, dtype)
        ]
        if alone == [FAILED, FAILED]:
            native = portable = ABSENT
    expected = expected_dtype(TABLE[operator], operands, dtype, portable)
    return Measured(operator, _name(operands), expected, native, portable)


def expected_dtype(
    treatment: Treatment, operands: torch.dtype, dtype: torch.dtype, like: str = ""
) -> str:
    """The dtype of a result by the table, of operands that all have one dtype.

    Args:
        treatment: Of the operator.
        operands: Their dtype.
        dtype: The region's.
        like: A measured result: whether the operator's results are complex.
    """
    if treatment is Treatment.REFUSED:
        return REFUSED
    computed = torch.float32
    if treatment is Treatment.LOWER:
        computed = dtype
    elif treatment is Treatment.WIDEST:
        computed = torch.promote_types(dtype, operands)
    elif treatment is Treatment.OPERANDS:
        computed = operands
    is_complex = like.startswith("complex") and computed is torch.float32
    return "complex64" if is_complex else _name(computed)


def unknown_operators(device_type: str) -> tuple[str, ...]:
    """What the device's own autocast treats and the table does not name."""
    listed = torch._C._dispatch_get_registrations_for_dispatch_key(autocast_key(device_type))
    names = {name.removeprefix("aten::") for name in listed if name.startswith("aten::")}
    known = TABLE.keys() | OF_ONE_DEVICE.get(device_type, frozenset())
    return tuple(sorted(name for name in names - known if "Dimname" not in name))


def _result(
    operator: str, operands: torch.dtype, device: torch.device, region: AbstractContextManager[Any]
) -> tuple[str, list[Tensor]]:
    """The dtypes of a call's results, joined by `/` where they differ, and the results."""
    call = find_operator(operator)
    assert call is not None, operator  # noqa: S101
    arguments = EXAMPLES[operator](Operands(device, operands))
    try:
        with torch.no_grad(), region:
            results = call(*arguments)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        return REFUSED if "binary_cross_entropy_with_logits" in str(error) else FAILED, []
    tensors = [leaf for leaf in tree_leaves(results) if isinstance(leaf, Tensor)]
    found = [t.dtype for t in tensors if t.is_floating_point() or t.is_complex()]
    return "/".join(dict.fromkeys(map(_name, found))) or NO_FLOAT, tensors


def _is_close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=_BAND, atol=_BAND / 16, equal_nan=True)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def main() -> int:
    """Print the census of every kind of device here."""
    kinds = {device.torch_type: device for device in reversed(available_devices())}
    found = [take_census(device.torch_device, device.name) for device in kinds.values()]
    document = {
        "schema": SCHEMA,
        "torch": torch.__version__,
        "default_dtype": _name(DEFAULT_DTYPE),
        "operators": len(TABLE),
        "not_called": sorted(WITHOUT_EXAMPLE),
        "devices": [_to_json(census) for census in reversed(found)],
    }
    json.dump(document, sys.stdout)
    sys.stdout.write("\n")
    return 0


def _to_json(census: DeviceCensus) -> dict[str, Any]:
    return {
        "device": census.device,
        "name": census.name,
        "default_dtype": census.default_dtype,
        "dtype": census.dtype,
        "called": len({row.operator for row in census.measured}),
        "absent": sorted({row.operator for row in census.measured if row.native == ABSENT}),
        "differs": [asdict(row) for row in census.measured if row.differs],
        "not_portable": [asdict(row) for row in census.measured if not row.is_portable],
        "unknown": list(census.unknown),
    }


if __name__ == "__main__":
    sys.exit(main())
