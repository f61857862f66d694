"""The program that `accel doctor` runs in processes of its own; the only part that needs torch.

It is handed to the interpreter as text (`python -c`), so it uses nothing of Accel. Each thing it
learns is one line of JSON behind a mark, written before the next step is tried: what is known
when a later step hangs or crashes is known.

    torch [MODULE ...]          import torch (then the modules), describe it, try the CPU
    smoke DEVICE [MODULE ...]   matmul forward and backward on one device
    plugin GROUP NAME VALUE     load one entry point
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import sys
import time
import traceback
import warnings
from typing import Any

MARK = "accel-doctor-probe:"

Matrix = list[list[int]]


def emit(event: str, **fields: Any) -> None:
    """Print one event on a line of its own, whatever was printed before it."""
    print("\n" + MARK + json.dumps({"event": event, **fields}), flush=True)


def integers(rows: int, columns: int, step: int) -> Matrix:
    """A matrix of integers from -3 to 3: products and sums are exact in every float format."""
    return [[(r * step + c * 3 + step) % 7 - 3 for c in range(columns)] for r in range(rows)]


def product(left: Matrix, right: Matrix) -> Matrix:
    """The matrix product in Python's integers."""
    columns = list(zip(*right, strict=True))
    return [
        [sum(a * b for a, b in zip(row, column, strict=True)) for column in columns] for row in left
    ]


def transposed(matrix: Matrix) -> Matrix:
    """The transpose."""
    return [list(column) for column in zip(*matrix, strict=True)]


def smoke(torch: Any, device: str) -> None:
    """Multiply two matrices on a device, forward and backward, and compare with integers."""
    emit("stage", name=f"smoke test on {device}")
    started = time.monotonic()
    left, right, weight = integers(4, 6, 2), integers(6, 5, 4), integers(4, 5, 5)
    expected = {
        "product": product(left, right),
        "gradient of the left factor": product(weight, transposed(right)),
        "gradient of the right factor": product(transposed(left), weight),
    }
    made = {"dtype": torch.float32, "device": device}
    x = torch.tensor(left, requires_grad=True, **made)
    y = torch.tensor(right, requires_grad=True, **made)
    out = x @ y
    (out * torch.tensor(weight, **made)).sum().backward()
    actual = [value.detach().cpu().tolist() for value in (out, x.grad, y.grad)]
    wrong = [n for (n, want), have in zip(expected.items(), actual, strict=True) if want != have]
    seconds = time.monotonic() - started
    emit("smoke", device=device, ok=not wrong, wrong=wrong, seconds=round(seconds, 3))


def describe_build(torch: Any) -> None:
    """Version, place and what torch was built for."""
    version = getattr(torch, "version", None)
    emit(
        "build",
        version=str(torch.__version__),
        file=str(torch.__file__),
        cuda=getattr(version, "cuda", None),
        hip=getattr(version, "hip", None),
    )


def describe_numpy() -> None:
    """Whether numpy imports, and which."""
    try:
        import numpy

        emit("numpy", version=str(numpy.__version__))
    except Exception as error:  # numpy built for another Python raises more than ImportError
        emit("numpy", error=f"{type(error).__name__}: {error}")


def why_none(module: Any) -> str:
    """Why a family that torch was built for has no device, in the runtime's own words."""
    try:
        module.init()
        module.current_device()
    except Exception as error:  # the text of the refusal is the result
        return f"{type(error).__name__}: {error}"
    return ""


def describe_devices(torch: Any) -> None:
    """The accelerator torch would use, how many there are, and their names."""
    emit("stage", name="counting devices")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        accelerator = torch.accelerator.current_accelerator()
        kind = accelerator.type if accelerator is not None else ""
        count = torch.accelerator.device_count() if kind else 0
        module = getattr(torch, kind, None)
        reason = why_none(module) if kind and not count else ""
        name_of = getattr(module, "get_device_name", None)
        names = [str(name_of(index)) if name_of else kind for index in range(count)]
    said = [str(warning.message) for warning in caught]
    emit("devices", type=kind, count=count, names=names, reason=reason, warnings=said)


def probe_torch(modules: list[str]) -> None:
    """Import torch and say what it is; the CPU is tried before any device is touched."""
    torch = imported(["torch", *modules])
    describe_build(torch)
    describe_numpy()
    smoke(torch, "cpu")
    if hasattr(torch, "accelerator"):  # since torch 2.6
        describe_devices(torch)


def imported(modules: list[str]) -> Any:
    """Import modules in order and return the first."""
    for name in modules:
        emit("stage", name=f"import {name}")
        importlib.import_module(name)
    return sys.modules[modules[0]]


def probe_plugin(group: str, name: str, value: str) -> None:
    """Load one entry point as PyTorch or Accel would; PyTorch calls what it loaded."""
    if group == "torch.backends":
        imported(["torch"])
    emit("stage", name=f"load {value}")
    loaded = importlib.metadata.EntryPoint(name, value, group).load()
    if group == "torch.backends":
        loaded()
    emit("plugin", family=str(getattr(loaded, "family", name)))


def main(mode: str, *arguments: str) -> int:
    """Run one probe; whatever it raises becomes an event."""
    try:
        if mode == "torch":
            probe_torch(list(arguments))
        elif mode == "smoke":
            smoke(imported(["torch", *arguments[1:]]), arguments[0])
        else:
            probe_plugin(*arguments)
    except BaseException as error:  # SystemExit too: a plugin that leaves the process is broken
        cause = innermost(error)
        emit(
            "error",
            type=type(error).__name__,
            message=str(error),
            cause=f"{type(cause).__name__}: {cause}",
            traceback="".join(traceback.format_exception(error)),
        )
        return 1
    emit("done")
    return 0


def innermost(error: BaseException) -> BaseException:
    """The exception that the others were raised from."""
    while (inner := error.__cause__) is not None:
        error = inner
    return error


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
