"""Random numbers that are the same on every device, in every layout and when computed again.

A number depends on the seed, the step, a name and its logical position only: there is no state
that another order of calls, another number of processes or a recomputation could advance.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from accel.numerics import portable_initialisation
from accel_kernels import philox
from accel_kernels.sketch import Part, check_part

Device: TypeAlias = "torch.device | str"
_Kind = Literal["uniform", "normal", "integers", "dropout"]
# Words at a time: on the CPU what its caches hold, elsewhere 1 GB of temporaries at most.
_CPU_CHUNK, _CHUNK = 1 << 16, 1 << 23


class PortableRng:
    """Random numbers keyed by seed, step, name and logical position (Philox4x32-10).

    The seed is Philox's key; the SHA-256 digest of kind of draw, name and step, cut to 64 bits, is
    the upper half of its counter; the position in the whole tensor is the lower half. A copy of a
    model shares the generator of the original, so that both follow one step.

    Args:
        seed: 64 bits, the same in every process.

    Raises:
        ValueError: The seed is negative or has more than 64 bits.
    """

    def __init__(self, seed: int) -> None:
        if not 0 <= seed < 1 << 64:
            raise ValueError(f"a seed has 64 bits, 0 to 2**64 - 1, and is not {seed}")
        self.seed = seed
        self._step: int | None = None

    def __deepcopy__(self, memo: dict[int, object]) -> PortableRng:
        return self

    @contextlib.contextmanager
    def at_step(self, step: int) -> Iterator[None]:
        """Draw for this step inside; forward and backward both belong inside.

        Raises:
            ValueError: The step is negative.
        """
        before, self._step = self._step, _checked_step(step)
        try:
            yield
        finally:
            self._step = before

    def uniform(
        self,
        name: str,
        shape: Sequence[int],
        *,
        step: int | None = None,
        offset: Sequence[int] | None = None,
        whole: Sequence[int] | None = None,
        dtype: torch.dtype = torch.float32,
        device: Device = "cpu",
    ) -> Tensor:
        """Uniform numbers in [0, 1), multiples of 2**-24 in float32 (`philox.uniform`).

        Args:
            name: What they are for; other names give independent numbers.
            shape: Of what is returned.
            step: Instead of that of `at_step`.
            offset: Where in the whole tensor this part begins; its beginning by default.
            whole: Shape of the whole tensor that this is a part of; `shape` by default.
            dtype: float64, float32, float16 or bfloat16.
            device: Where they are made.

        Raises:
            ValueError: There is no step, or the part is not inside the whole.
            TypeError: Another dtype.
        """
        make = _Draw(self, "uniform", name, step)
        return make(shape, offset, whole, dtype, device, lambda w: philox.uniform(w, dtype))

    def normal(
        self,
        name: str,
        shape: Sequence[int],
        *,
        mean: float = 0.0,
        std: float = 1.0,
        step: int | None = None,
        offset: Sequence[int] | None = None,
        whole: Sequence[int] | None = None,
        dtype: torch.dtype = torch.float32,
        device: Device = "cpu",
    ) -> Tensor:
        """Normal numbers, made in float64 on the CPU (`philox.normal`), rounded and moved.

        Args and errors are those of `uniform`; `dtype` may be any floating-point one.
        """
        if not dtype.is_floating_point:
            raise TypeError(f"normal numbers have a floating-point dtype, not {dtype}")
        make = _Draw(self, "normal", name, step)
        numbers = make(shape, offset, whole, dtype, "cpu", lambda w: philox.normal(w) * std + mean)
        return numbers.to(device)

    def integers(
        self,
        name: str,
        high: int,
        shape: Sequence[int],
        *,
        step: int | None = None,
        offset: Sequence[int] | None = None,
        whole: Sequence[int] | None = None,
        device: Device = "cpu",
    ) -> Tensor:
        """Integers from 0 to `high - 1` in int64, with the bias that `philox.integers` states.

        Args and errors are those of `uniform`; `high` is from 1 to 2**31.
        """
        make = _Draw(self, "integers", name, step)
        return make(shape, offset, whole, torch.int64, device, lambda w: philox.integers(w, high))

    def dropout(
        self,
        x: Tensor,
        p: float,
        name: str,
        *,
        step: int | None = None,
        offset: Sequence[int] | None = None,
        whole: Sequence[int] | None = None,
        training: bool = True,
    ) -> Tensor:
        """Zero each element with probability `p` and divide the others by `1 - p`.

        Args:
            x: Any shape and floating-point dtype; differentiable.
            p: Probability to be dropped, exact to 2**-32.
            name: Which dropout this is; two of one name in one step drop the same positions.
            step: Instead of that of `at_step`.
            offset: Where in the whole tensor `x` begins.
            whole: Shape of the whole tensor that `x` is a part of.
            training: Otherwise `x` is returned.

        Raises:
            ValueError: There is no step, the part is not inside the whole, or `p` is not from 0
                to 1.
        """
        if not 0 <= p <= 1:
            raise ValueError(f"a dropout's probability is from 0 to 1, and not {p}")
        if not training or p == 0:
            return x
        make = _Draw(self, "dropout", name, step)
        kept = make(x.shape, offset, whole, torch.bool, x.device, lambda w: philox.keep(w, p))
        return torch.where(kept, x * (1 / (1 - p)) if p < 1 else x, 0.0)

    def initialise(
        self,
        model: nn.Module,
        *,
        function: Callable[[nn.Module], None] | None = None,
        shards: Mapping[str, Part] | None = None,
    ) -> None:
        """Give a model the same initial weights on every device and in every layout.

        See `portable_initialisation.initialise`.
        """
        portable_initialisation.initialise(model, self, function=function, shards=shards)

    def replace_dropout(self, model: nn.Module) -> list[str]:
        """Put a `PortableDropout` in place of each `nn.Dropout`; their names are its paths.

        Returns:
            The paths of what was replaced.

        Raises:
            ValueError: The model has dropout that cannot be replaced; nothing is then.
        """
        _check_replaceable(model)
        replaced: dict[nn.Module, PortableDropout] = {}
        found = [
            (path, module)
            for path, module in model.named_modules(remove_duplicate=False)
            if isinstance(module, nn.Dropout)
        ]
        for path, module in found:
            if module not in replaced:
                replaced[module] = PortableDropout(module.p, self, path)
                replaced[module].train(module.training)
            parent, _, attribute = path.rpartition(".")
            setattr(model.get_submodule(parent), attribute, replaced[module])
        return [path for path, _ in found]

    def _stream(self, kind: _Kind, name: str, step: int | None) -> int:
        """64 bits for a kind of draw, a name and a step."""
        if step is None:
            step = self._step
        if step is None:
            raise ValueError(
                f"no step to draw {name!r} for: give `step=`, or draw inside `rng.at_step(...)`, "
                "where the backward belongs too if it computes activations again"
            )
        key = b"\0".join((kind.encode(), name.encode(), _checked_step(step).to_bytes(8, "little")))
        return int.from_bytes(hashlib.sha256(key).digest()[:8], "little")


class PortableDropout(nn.Module):
    """Dropout whose mask is the same on every device, in every layout and when computed again.

    A module that is called more than once in a step drops the same positions each time, unless
    `call` tells the calls apart: counting them would make a recomputation differ.

    Args:
        p: Probability to be dropped.
        rng: Shared by the model; its `at_step` tells the step.
        name: Of this dropout, best its path in the model.

    Raises:
        ValueError: `p` is not from 0 to 1.
    """

    def __init__(self, p: float, rng: PortableRng, name: str) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"a dropout's probability is from 0 to 1, and not {p}")
        self.p = p
        self.rng = rng
        self.name = name

    def forward(
        self,
        x: Tensor,
        call: int = 0,
        *,
        offset: Sequence[int] | None = None,
        whole: Sequence[int] | None = None,
    ) -> Tensor:
        """Drop elements of `x` while training; otherwise as `PortableRng.dropout`."""
        name = f"{self.name}[{call}]" if call else self.name
        return self.rng.dropout(x, self.p, name, offset=offset, whole=whole, training=self.training)

    def extra_repr(self) -> str:
        """What the module's line says in brackets."""
        return f"p={self.p}, name={self.name!r}"


class _Draw:
    """One draw: the stream of its words, and how they become a tensor."""

    def __init__(self, rng: PortableRng, kind: _Kind, name: str, step: int | None) -> None:
        self._seed = rng.seed
        self._stream = rng._stream(kind, name, step)

    def __call__(
        self,
        shape: Sequence[int],
        offset: Sequence[int] | None,
        whole: Sequence[int] | None,
        dtype: torch.dtype,
        device: Device,
        make: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """The numbers that `make` makes of the words, of this shape, dtype and device."""
        # A recorder that watches operators sees a value from outside, not how it is made.
        with _unwatched():
            starts, length = runs(shape, offset, whole)
            return self._made(starts, length, dtype, device, make).view(tuple(shape))

    def _made(
        self,
        starts: Tensor,
        length: int,
        dtype: torch.dtype,
        device: Device,
        make: Callable[[Tensor], Tensor],
    ) -> Tensor:
        result = torch.empty(len(starts) * length, dtype=dtype, device=device)
        chunk = _CPU_CHUNK if result.is_cpu else _CHUNK
        if result.numel() == 0:
            return result
        if len(starts) > 1 and length < chunk:
            rows = max(chunk // length, 1)
            lines = result.view(len(starts), length)
            for begin in range(0, len(starts), rows):
                some = starts[begin : begin + rows].to(device)
                words = philox.words_in_runs(some, length, self._seed, self._stream)
                lines[begin : begin + rows] = make(words)
            return result
        for line, start in zip(result.view(len(starts), length), starts.tolist(), strict=True):
            for begin in range(0, length, chunk):
                n = min(chunk, length - begin)
                words = philox.words_from(start + begin, n, self._seed, self._stream, device=device)
                line[begin : begin + n] = make(words)
        return result


def _unwatched() -> contextlib.AbstractContextManager[object]:
    if torch.compiler.is_compiling():
        return contextlib.nullcontext()
    return _disable_current_modes()


def runs(
    shape: Sequence[int], offset: Sequence[int] | None, whole: Sequence[int] | None
) -> tuple[Tensor, int]:
    """Row-major positions, in the whole, of a part: where each run begins, and their length.

    Returns:
        int64 `[runs]` on the CPU, and the length that all have.

    Raises:
        ValueError: The part is not inside the whole.
    """
    whole = tuple(shape) if whole is None else tuple(whole)
    offset = (0,) * len(shape) if offset is None else tuple(offset)
    check_part(shape, (whole, offset))
    starts, length, stride, joined = torch.zeros(1, dtype=torch.int64), 1, 1, True
    for size, full, first in zip(reversed(shape), reversed(whole), reversed(offset), strict=True):
        if joined:  # all inner dimensions are complete: this one lengthens the run
            starts = starts + first * stride
            length *= size
        else:
            outer = (torch.arange(size, dtype=torch.int64) + first) * stride
            starts = (outer.unsqueeze(1) + starts).flatten()
        joined = joined and size == full
        stride *= full
    return starts, length


def _checked_step(step: int) -> int:
    if not 0 <= step < 1 << 64:
        raise ValueError(f"a step is counted from 0 and is not {step}")
    return step


def _check_replaceable(model: nn.Module) -> None:
    others = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
    inner = (nn.MultiheadAttention, nn.RNNBase)
    wrong = [
        f"{path or 'the model itself'} ({type(module).__name__})"
        for path, module in model.named_modules()
        if (isinstance(module, others) and module.p)
        or (isinstance(module, inner) and module.dropout)
        or (isinstance(module, nn.Dropout) and not path)
    ]
    if wrong:
        raise ValueError(
            f"this dropout cannot be replaced: {', '.join(wrong)}; set its probability to 0, or "
            "call PortableRng.dropout where it is"
        )
