"""What every replacement asks: what an argument means here, and to count the call."""

from __future__ import annotations

import functools
import re
import sys
from typing import Any

import torch

from accel.devices.choice import current_device
from accel.tracing.recorder import Recorder
from accel.tracing.settings import Settings

# The true classes, whatever `torch.device` is later.
TrueDevice = torch.device
TrueGenerator = torch.Generator
_NAME = re.compile(r"cuda(?::(\d+))?")
# Whose calls of torch.cuda are not the program's: they get torch's own answers.
_INTERNAL = frozenset({"torch", "torch_npu", "accel", "accel_kernels"})
# Here torch calls a function in the name of the program that it compiles.
_COMPILING = "torch._dynamo.variables"

NO_EQUIVALENT = "no equivalent: torch answers as without CUDA"


class Tracer:
    """Redirects and counts in one process."""

    def __init__(self, settings: Settings) -> None:
        self._recorder = Recorder(settings, torch.__version__)
        self._claims = settings.claim_cuda
        self._places: dict[int | None, torch.device] = {}

    @functools.cached_property
    def target(self) -> str:
        """The type of the device that calls go to: `cpu`, `npu`, …; `cuda` where it is here.

        Raises:
            DeviceError: Which one is not clear; the message says how to choose.
        """
        kind = current_device().torch_type
        self._recorder.device = kind
        return kind

    @property
    def claims_cuda(self) -> bool:
        """Whether a CPU passes for a GPU."""
        return self._claims and self.target == "cpu"

    def redirected(self, given: object) -> torch.device | None:
        """The device that a CUDA device means here; None if `given` names none.

        Only a whole name counts (`cuda`, `cuda:1`), an index, or a torch device of that type.
        """
        if isinstance(given, str):
            found = _NAME.fullmatch(given) if given.startswith("cuda") else None
            if found is None:
                return None
            index = None if found[1] is None else int(found[1])
        elif isinstance(given, TrueDevice):
            if given.type != "cuda":
                return None
            index = given.index
        elif isinstance(given, int) and not isinstance(given, bool):
            # -1 is what `get_device()` says of a tensor on a CPU.
            if given < (-1 if self.target == "cpu" else 0):
                return None
            index = given
        else:
            return None
        return self._place(None if self.target == "cpu" else index)

    def _place(self, index: int | None) -> torch.device:
        # Kept, as a mode of the program's would see them made.
        if index not in self._places:
            parts = (self.target,) if index is None else (self.target, index)
            self._places[index] = TrueDevice(*parts)
        return self._places[index]

    def note(self, api: str, given: object, to: object, note: str = "") -> None:
        """Count a call, unless torch is compiling: a compiled call has no line."""
        if not torch.compiler.is_compiling():
            self._recorder.note(api, "" if given is None else str(given), str(to), note)

    def device(self, api: str, given: Any) -> Any:
        """`given` as it is, or redirected and counted if it names a CUDA device."""
        place = self.redirected(given)
        if place is None:
            return given
        self.note(api, given, place)
        return place


def called_from_inside() -> bool:
    """Whether the caller's caller is code of torch or of this library."""
    name: str = sys._getframe(2).f_globals.get("__name__") or ""
    return name.partition(".")[0] in _INTERNAL and not name.startswith(_COMPILING)
