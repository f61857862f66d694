"""The same initial weights on every device and in every layout, by the names of the parameters."""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from accel_kernels.sketch import Part, check_part

if TYPE_CHECKING:
    from accel.numerics.portable_rng import PortableRng

_RESETS = ("reset_parameters", "_reset_parameters")
_aten = torch.ops.aten


@torch.no_grad()
def initialise(
    model: nn.Module,
    rng: PortableRng,
    *,
    function: Callable[[nn.Module], None] | None = None,
    shards: Mapping[str, Part] | None = None,
) -> None:
    """Initialise a model by its own methods, with random numbers by parameter name.

    Each module's `reset_parameters` (or `function`), children first, runs on whole parameters in
    float32 on the CPU, with `uniform_` and `normal_` drawn from `rng`; the part that this process
    holds is then rounded to its dtype and moved. So neither dtype, device nor layout matters, and
    a bound that follows from a parameter's size is that of the whole. What torch computes between
    (`erfinv_` for `trunc_normal_`, `qr` for `orthogonal_`) may differ in the last bits between
    CPUs. A whole parameter is in memory only until no further module can change it.

    Args:
        model: With its parameters in memory.
        rng: Its seed decides; the step does not count.
        function: Called with each module in place of its own method.
        shards: By parameter name, the shape of the whole and where the part begins that this
            process holds as a plain tensor. Of a DTensor that is known.

    Raises:
        ValueError: A parameter has no memory (meta device, lazy module) or is initialised by no
            module, a module draws random numbers in another way, or a shard does not fit.
    """
    stand_ins = _StandIns(model, shards or {})
    resets = {}
    for path, module in reversed(list(model.named_modules())):
        if (reset := _reset_of(module, function)) is not None:
            resets[path] = module, reset
            stand_ins.expect(module)
    for path, (module, reset) in resets.items():
        with stand_ins.in_place(module), _Draws(rng, path, stand_ins):
            reset()
        stand_ins.leave(module)
    if missing := sorted(set(stand_ins.names.values()) - stand_ins.written):
        raise ValueError(
            f"no module initialises {', '.join(missing)}: give the module that owns it a "
            "`reset_parameters` method, or give `function=`"
        )


def _reset_of(
    module: nn.Module, function: Callable[[nn.Module], None] | None
) -> Callable[[], object] | None:
    if function is not None:
        return functools.partial(function, module)
    for name in _RESETS:
        found: object = getattr(module, name, None)
        if callable(found):
            return found
    return None


class _StandIns:
    """Whole parameters on the CPU, in place of those that a module and its children hold."""

    def __init__(self, model: nn.Module, shards: Mapping[str, Part]) -> None:
        self.names = {parameter: name for name, parameter in model.named_parameters()}
        self.written: set[str] = set()
        self._shards = shards
        self._whole: dict[nn.Parameter, nn.Parameter] = {}
        self._expected: Counter[nn.Parameter] = Counter()
        if unknown := sorted(set(shards) - set(self.names.values())):
            raise ValueError(f"shards names what is no parameter: {', '.join(unknown)}")
        for parameter, name in self.names.items():
            if nn.parameter.is_lazy(parameter) or parameter.is_meta:
                raise ValueError(
                    f"{name} has no memory yet: call `to_empty(device=...)`, or of a lazy module "
                    "a first forward"
                )
            if name in shards:
                check_part(parameter.shape, shards[name])

    def expect(self, module: nn.Module) -> None:
        """Note that the module will initialise what it and its children hold."""
        self._expected.update(set(module.parameters()))

    @contextlib.contextmanager
    def in_place(self, module: nn.Module) -> Iterator[None]:
        """Put the stand-ins into the module and its children inside."""
        places = [
            (owner._parameters, attribute, parameter)
            for owner in module.modules()
            for attribute, parameter in owner._parameters.items()
            if parameter is not None
        ]
        for parameters, attribute, parameter in places:
            if parameter not in self._whole:
                self._whole[parameter] = self._made(parameter)
            parameters[attribute] = self._whole[parameter]
        try:
            yield
        finally:
            for parameters, attribute, parameter in places:
                parameters[attribute] = parameter

    def leave(self, module: nn.Module) -> None:
        """Copy to their places those parameters that no further module holds."""
        for parameter in set(module.parameters()):
            self._expected[parameter] -= 1
            if not self._expected[parameter]:
                whole = self._whole.pop(parameter)
                if self.names[parameter] in self.written:
                    _copy(parameter, whole, self._shards.get(self.names[parameter]))

    def name_of(self, tensor: Tensor) -> str | None:
        """The name of the parameter whose stand-in the tensor is, or looks at."""
        address = tensor.untyped_storage().data_ptr()
        for parameter, whole in self._whole.items():
            if whole.numel() and whole.untyped_storage().data_ptr() == address:
                return self.names[parameter]
        return None

    def _made(self, parameter: nn.Parameter) -> nn.Parameter:
        name = self.names[parameter]
        shape = self._shards[name][0] if name in self._shards else parameter.shape
        dtype = torch.promote_types(parameter.dtype, torch.float32)
        if not parameter.numel():
            self.written.add(name)  # there is nothing to initialise
        return nn.Parameter(torch.zeros(tuple(shape), dtype=dtype), parameter.requires_grad)


def _copy(parameter: nn.Parameter, whole: Tensor, shard: Part | None) -> None:
    """The part that this process holds, to its device."""
    if hasattr(parameter, "placements"):
        from torch.distributed.tensor import DTensor, distribute_tensor

        if isinstance(parameter, DTensor):
            local = whole.detach().to(parameter.device, parameter.dtype)
            # Every process has the whole: nothing is sent.
            parameter.copy_(
                distribute_tensor(
                    local, parameter.device_mesh, parameter.placements, src_data_rank=None
                )
            )
            return
    if shard is not None:
        for dim, (first, size) in enumerate(zip(shard[1], parameter.shape, strict=True)):
            whole = whole.narrow(dim, first, size)
    parameter.copy_(whole)


class _Draws(TorchDispatchMode):
    """Fills by `uniform_` and `normal_` from the portable generator; refuses other random numbers.

    A draw's name is that of the parameter, or the module's path for a tensor beside, with a number
    for the second and further ones.
    """

    def __init__(self, rng: PortableRng, path: str, stand_ins: _StandIns) -> None:
        super().__init__()
        self._rng, self._path, self._stand_ins = rng, path, stand_ins
        self._drawn: Counter[str] = Counter()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload[..., object],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        self._note_writes(func, args, kwargs)
        if func is _aten.uniform_.default:
            return self._uniform(*args, **kwargs)
        if func is _aten.normal_.default:
            return self._normal(*args, **kwargs)
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise ValueError(
                f"the module {self._path!r} initialises with {func}, which is not portable: use "
                "uniform_ or normal_, or give `function=`"
            )
        return func(*args, **kwargs)

    def _note_writes(
        self,
        func: torch._ops.OpOverload[..., object],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> None:
        for index, argument in enumerate(func._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            given = args[index] if index < len(args) else kwargs.get(argument.name)
            for tensor in given if isinstance(given, (list, tuple)) else (given,):
                if isinstance(tensor, Tensor) and (name := self._stand_ins.name_of(tensor)):
                    self._stand_ins.written.add(name)

    def _name(self, tensor: Tensor) -> str:
        name = self._stand_ins.name_of(tensor) or f"({self._path})"
        self._drawn[name] += 1
        number = self._drawn[name] - 1
        return f"initial {name}#{number}" if number else f"initial {name}"

    def _uniform(
        self, tensor: Tensor, low: float = 0.0, high: float = 1.0, generator: object = None
    ) -> Tensor:
        numbers = self._rng.uniform(self._name(tensor), tensor.shape, step=0, dtype=torch.float64)
        return tensor.copy_(numbers * (high - low) + low)

    def _normal(
        self, tensor: Tensor, mean: float = 0.0, std: float = 1.0, generator: object = None
    ) -> Tensor:
        name = self._name(tensor)
        return tensor.copy_(
            self._rng.normal(name, tensor.shape, mean=mean, std=std, step=0, dtype=torch.float64)
        )
