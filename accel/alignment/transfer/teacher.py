"""A teacher that is the exponential moving average of its student."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from accel.alignment.transfer.decay import Decay, check_decay, decay_at
from accel.alignment.transfer.locking import LockedTower, locked
from accel.precision.fp8 import restore_linears
from accel.precision.modules import restore

Buffers = Literal["copy", "average"]
_NARROW_BITS = 16


class EMATeacher(nn.Module):
    """An exponential moving average of a module, to learn from (Mean Teacher, arXiv 1703.01780).

    Example:
        ```
        teacher = accel.alignment.EMATeacher(model, decay=0.999)
        ...
        if precision.step(optimizer):
            teacher.update(model)
        ```

    The copy is made once and then updated in place, after an optimizer step: each parameter becomes
    `decay * average + (1 - decay) * parameter`. Averages of parameters in 16 bits and fewer are
    kept in float32, where small steps are not lost, and rounded into the copy. Buffers are copied,
    running statistics being averages already; with `buffers="average"` floating-point ones are
    averaged like parameters. Updates are element by element: they are deterministic, and alike on
    every rank that has the same student.

    The copy never gets a gradient, and stays in evaluation mode. Layers in eight bits are plain
    layers in it: it computes in the dtype of its parameters, or of the autocast around it. Forward
    hooks of the module are copied with it.

    A step that `Precision.step` skips is no reason to update; asking waits for the device, as the
    example does. Whoever rather updates after every step repeats an average with unchanged
    parameters now and then. Parameters that are not finite would stay in the average for good.

    The state dict holds the copy as `module.*` and, as extra state, the number of updates and the
    float32 averages; `teacher.module.state_dict()` has exactly the keys of the student.

    Args:
        module: The student, also under DDP or `torch.compile`; what these add is not copied. Under
            FSDP2 make the teacher first, then shard both alike.
        decay: Share of the average that is kept, or a function from the number of updates so far
            to it, such as `CosineDecay`.
        warm_up: The decay is at most `(1 + t) / (warm_up + t)` after t updates, so that the first
            ones are not all but ignored; 1: no warm-up.
        buffers: What an update does to buffers.

    Attributes:
        module: The copy. May be moved and cast; averages keep their precision.
        updates: How many there have been.

    Raises:
        TypeError: The student is no module.
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        module: nn.Module,
        decay: Decay = 0.999,
        *,
        warm_up: float = 10.0,
        buffers: Buffers = "copy",
    ) -> None:
        super().__init__()
        if not isinstance(module, nn.Module):
            raise TypeError(f"a teacher is made of a module, not {type(module).__name__}")
        if not callable(decay):
            check_decay("decay", decay)
        if not warm_up >= 1.0:
            raise ValueError(f"warm_up must be at least 1, which means none, not {warm_up}")
        if buffers not in ("copy", "average"):
            raise ValueError(f"buffers are 'copy' or 'average', not {buffers!r}")
        self.decay, self.warm_up, self.buffers_rule = decay, warm_up, buffers
        self.updates = 0
        self.module = locked(_plain_copy(module))
        # Made when they are first needed: by then parameters may have become sharded ones.
        self._averages: dict[str, Tensor] = {}
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The copy's own, which is locked: without gradients."""
        return self.module(*args, **kwargs)

    def train(self, mode: bool = True) -> EMATeacher:
        """Evaluation mode, whatever the mode."""
        return super().train(False)

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Follow the student by one step.

        Args:
            module: The student, wrapped or not; on any device, in any dtype.

        Raises:
            ValueError: Its parameters or buffers are not those of the copy, in name or shape.
        """
        student, own = (_tensors(one) for one in (_unwrapped(module), self.module))
        _check_alike(own, student)
        averaged = self._averaged()
        weight = 1.0 - decay_at(self.decay, self.warm_up, self.updates)
        together: list[tuple[Tensor, Tensor]] = []
        for name, tensor in own.items():
            if name not in averaged:
                tensor.copy_(student[name])
                continue
            average, given = self._average(name, tensor), student[name].detach()
            if (average.dtype, average.device) == (given.dtype, given.device):
                together.append((average, given))
            else:
                average.lerp_(given.to(average.device, average.dtype), weight)
        if together:
            averages, parameters = zip(*together, strict=True)
            torch._foreach_lerp_(list(averages), list(parameters), weight)
        for name, average in self._averages.items():
            own[name].copy_(average)
        self.updates += 1

    def get_extra_state(self) -> dict[str, Any]:
        """Of the state dict: what the copy alone does not say."""
        return {"updates": self.updates, "averages": dict(self._averages)}

    def set_extra_state(self, state: Any) -> None:
        """Restore what `get_extra_state` returned.

        Raises:
            ValueError: It is not that, or of a teacher of other shapes or dtypes; nothing changes
                then.
        """
        if not isinstance(state, Mapping) or set(state) != {"updates", "averages"}:
            raise ValueError("this is no state of an EMATeacher: give what its state_dict() said")
        updates, averages = state["updates"], state["averages"]
        if isinstance(updates, bool) or not isinstance(updates, int) or updates < 0:
            raise ValueError(f"updates are a count, not {updates!r}")
        narrow = {name: one for name, one in self._averaged().items() if _is_narrow(one)}
        given, expected = _described(averages), _described(narrow)
        # Before the first update there may be none yet.
        if given != expected and (updates or not given.items() <= expected.items()):
            raise ValueError(
                "the checkpoint's float32 averages are not those of this teacher: make it of a "
                "student in the dtypes of the checkpoint's"
            )
        self.updates = updates
        self._averages = {
            name: torch.empty_like(narrow[name], dtype=torch.float32).copy_(one)
            for name, one in averages.items()
        }

    def _average(self, name: str, tensor: Tensor) -> Tensor:
        """Where the average of a tensor of the copy is kept: in itself, or apart in float32."""
        if not _is_narrow(tensor):
            return tensor
        if name not in self._averages:
            self._averages[name] = tensor.detach().to(torch.float32)
        return self._averages[name]

    def _averaged(self) -> dict[str, Tensor]:
        """The tensors of the copy that are averages; the others are copied."""
        named: dict[str, Tensor] = dict(self.module.named_parameters())
        if self.buffers_rule == "average":
            named |= dict(self.module.named_buffers())
        return {
            name: one for name, one in named.items() if one.is_floating_point() or one.is_complex()
        }

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> EMATeacher:
        """Moving the teacher moves its averages; no cast of the copy rounds them."""
        before = {
            name: self._averages.get(name, one.detach()) for name, one in self._averaged().items()
        }
        super()._apply(fn, recurse)
        apart, self._averages = self._averages.keys(), {}
        with torch.no_grad():
            for name, one in self._averaged().items():
                wide = name in apart or not _is_narrow(before[name])
                if _is_narrow(one) and wide:
                    self._averages[name] = before[name].to(one.device, torch.float32)
                elif name in apart or one.dtype != before[name].dtype:
                    one.copy_(before[name])
        return self


def _plain_copy(module: nn.Module) -> nn.Module:
    """A copy without wrappers, eight-bit layers and locks."""
    twin = copy.deepcopy(_unwrapped(module))
    restore_linears(twin)
    for one in twin.modules():
        restore(one, LockedTower)
    return twin


def _unwrapped(module: nn.Module) -> nn.Module:
    """The module that a wrapper calls."""
    wrappers = (nn.parallel.DistributedDataParallel, nn.DataParallel)
    while True:
        if isinstance(module, wrappers):
            module = module.module
        elif "_orig_mod" in module._modules:
            module = module.get_submodule("_orig_mod")
        else:
            return module


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name; sharded ones as what they are between steps.

    After a forward without a backward FSDP2 leaves the parameters of a root whole, and forgets what
    is written to those.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")
    for one in module.modules():
        if fsdp is not None and isinstance(one, fsdp.FSDPModule):
            one.reshard()
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _is_narrow(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and torch.finfo(tensor.dtype).bits <= _NARROW_BITS


def _check_alike(own: dict[str, Tensor], student: dict[str, Tensor]) -> None:
    strange = sorted(own.keys() ^ student.keys())
    if strange:
        raise ValueError(
            f"this is not the student the teacher was made of: only one of them has {strange[0]!r}"
        )
    for name, tensor in own.items():
        if tensor.shape != student[name].shape:
            raise ValueError(
                f"this is not the student the teacher was made of: {name!r} is "
                f"{list(student[name].shape)}, not {list(tensor.shape)}"
            )


def _described(averages: Any) -> dict[Any, Any]:
    """Names and shapes, for a comparison."""
    if not isinstance(averages, Mapping):
        return {"": None}
    return {name: one.shape if isinstance(one, Tensor) else None for name, one in averages.items()}
