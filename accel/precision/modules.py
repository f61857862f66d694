"""Change what one module does by changing its class: its parameters, name and state stay its own.

The module keeps its identity, so optimizers, hooks, DDP, FSDP2 and state dicts hold on to it; it
stays an instance of its former class. FSDP2's `fully_shard` works in the same way, and both
compose in either order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, SupportsIndex, TypeVar, cast

import torch
from torch import nn

from accel.precision.operand import ModulePlan

if TYPE_CHECKING:
    from accel.precision.autocast.region import ModuleRegion

_Module = TypeVar("_Module", bound=nn.Module)
_COMPUTE = (torch.float32, torch.bfloat16, torch.float16)


class ModuleMixin:
    """What a class given to `swap_class` derives from; overrides `forward` and calls `super()`'s.

    Attributes:
        swapped_state: Names of the attributes and buffers the mixin keeps on the module: `restore`
            deletes them.
    """

    swapped_state: ClassVar[tuple[str, ...]] = ()

    # Of a class made by `swap_class`, not of a mixin.
    _swapped_mixin: ClassVar[type[ModuleMixin]]
    _swapped_base: ClassVar[type[nn.Module]]

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple[Any, ...]:
        """By the classes it is made of: the class itself has no name to be found by."""
        reduced = super().__reduce_ex__(max(int(protocol), 2))
        assert isinstance(reduced, tuple), "a module is not a global"  # noqa: S101
        function, arguments, *rest = reduced
        own = type(self)
        bases = tuple(_former(own) if item is own else item for item in arguments)
        return (_rebuild, (_mixins(own), function, bases), *rest)


_swapped_classes: dict[tuple[type[ModuleMixin], type[nn.Module]], type[nn.Module]] = {}


def swap_class(module: _Module, mixin: type[ModuleMixin]) -> _Module:
    """Put `mixin` before the module's class, in place.

    Args:
        module: Any module; of `torch.nn`, of FSDP2, or swapped by another mixin already.
        mixin: Its methods come first; it sets the attributes that it needs itself.

    Returns:
        The same module, still an instance of its former class.

    Raises:
        TypeError: The mixin is not one, the module has it already, or its class cannot be changed
            (TorchScript, or the wrapper that `torch.compile(module)` returns).
    """
    if not (isinstance(mixin, type) and issubclass(mixin, ModuleMixin)):
        raise TypeError(f"a mixin is a subclass of ModuleMixin, not {mixin!r}")
    if isinstance(module, torch.jit.ScriptModule):
        raise TypeError(
            f"{type(module).__name__} is TorchScript, which keeps its own code: change the module "
            "before scripting it"
        )
    if "_orig_mod" in module._modules:
        raise TypeError(
            "torch.compile(module) returned a wrapper: change the module inside (`_orig_mod`), or "
            "compile after the change"
        )
    if mixin in _mixins(type(module)):
        raise TypeError(f"{type(module).__name__} is under {mixin.__name__} already: restore it")
    cast("nn.Module", module).__class__ = _swapped_class(mixin, type(module))
    return module


def restore(module: _Module, mixin: type[ModuleMixin] | None = None) -> _Module:
    """Give the module its former class back, and delete what the mixin kept on it.

    Args:
        module: A module; one that was never swapped stays as it is.
        mixin: The one to take away; None for every one.

    Returns:
        The same module. Of its children nothing changes.
    """
    for one in _mixins(type(module)):
        if mixin is None or one is mixin:
            for name in one.swapped_state:
                if hasattr(module, name):
                    delattr(module, name)
    module.__class__ = _without(type(module), mixin)
    return module


def apply_plan(module: _Module, plan: ModulePlan) -> _Module:
    """Let the module compute in the dtype of its plan, in place; see `ModuleRegion`.

    Args:
        module: Its parameters stay as they are.
        plan: Its `compute` is float32, bfloat16 or float16. Its `slots` are not looked at: the
            eight-bit layers take them.

    Returns:
        The same module. A second plan takes the place of the first.

    Raises:
        ValueError: The plan computes in another dtype.
        TypeError: As `swap_class`.
    """
    from accel.precision.autocast.region import ModuleRegion

    if plan.compute not in _COMPUTE:
        raise ValueError(
            f"{plan.name or 'the model'} computes in torch.float32, torch.bfloat16 or torch.float16"
            f", not in {plan.compute}"
        )
    if ModuleRegion not in _mixins(type(module)):
        swap_class(module, ModuleRegion)
    cast("ModuleRegion", module).region_dtype = plan.compute
    return module


def _swapped_class(mixin: type[ModuleMixin], base: type[nn.Module]) -> type[nn.Module]:
    key = (mixin, base)
    if key not in _swapped_classes:
        # The name stays: printed models, and rules that match it, look the same.
        body = {
            "__module__": mixin.__module__,
            "__qualname__": base.__qualname__,
            "__doc__": base.__doc__,
            "__new__": _new_of_base,
            "_swapped_mixin": mixin,
            "_swapped_base": base,
        }
        _swapped_classes[key] = type(base.__name__, (mixin, base), body)
    return _swapped_classes[key]


def _new_of_base(cls: type[Any], *arguments: Any, **keywords: Any) -> nn.Module:
    """Slicing a container calls its class: that gives a plain container, as FSDP2 does it."""
    if not arguments and not keywords:  # nn.DataParallel makes its replicas so
        return cast("nn.Module", object.__new__(cls))
    return cast("nn.Module", _without(cls, None)(*arguments, **keywords))


def _is_swapped(cls: type) -> bool:
    return "_swapped_mixin" in vars(cls)


def _mixins(cls: type) -> tuple[type[ModuleMixin], ...]:
    """The mixins in a class, outermost first."""
    return tuple(vars(c)["_swapped_mixin"] for c in cls.__mro__ if _is_swapped(c))


def _former(cls: type) -> type:
    """The class without any mixin."""
    return _without(cls, None)


def _without(cls: type[Any], mixin: type[ModuleMixin] | None) -> type[Any]:
    """The class as if `mixin` (None: every one) had never been put in it."""
    if not any(mixin is None or one is mixin for one in _mixins(cls)):
        return cls
    if _is_swapped(cls):
        own, base = vars(cls)["_swapped_mixin"], _without(vars(cls)["_swapped_base"], mixin)
        return base if mixin is None or own is mixin else _swapped_class(own, base)
    # A class that others made from a swapped one, as `fully_shard` does.
    body = {k: v for k, v in vars(cls).items() if k not in ("__dict__", "__weakref__")}
    return type(cls.__name__, tuple(_without(base, mixin) for base in cls.__bases__), body)


def _rebuild(
    mixins: tuple[type[ModuleMixin], ...],
    function: Callable[..., nn.Module],
    arguments: tuple[Any, ...],
) -> nn.Module:
    """Undo `ModuleMixin.__reduce_ex__`; whoever calls it sets the state."""
    module = function(*arguments)
    for mixin in reversed(mixins):
        module.__class__ = _swapped_class(mixin, type(module))
    return module


__all__ = ["ModuleMixin", "apply_plan", "restore", "swap_class"]
