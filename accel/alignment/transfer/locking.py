"""Locked towers: encoders that stay as they are while others learn to agree with them.

Locked-image tuning (LiT, Zhai et al., arXiv 2111.07991) trains one tower against another that was
trained before and is kept. A module is locked by changing its class, so that its parameters,
names, state dict and copies stay its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, TypeVar, cast

import torch
from torch import nn

from accel.alignment.inputs import without_graph
from accel.precision.modules import ModuleMixin, restore, swap_class

_Module = TypeVar("_Module", bound=nn.Module)


class LockedTower(ModuleMixin):
    """What `locked` puts before a module's class."""

    swapped_state: ClassVar[tuple[str, ...]] = ("_locked_parameters", "_unlocked_modules")

    _locked_parameters: tuple[str, ...]
    _unlocked_modules: tuple[str, ...]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own, of which no graph is kept but that of what is unlocked."""
        inner = super().forward  # type: ignore[misc]
        if not self._unlocked_modules:
            with torch.no_grad():
                return inner(*args, **kwargs)
        args, kwargs = without_graph((args, kwargs))
        return inner(*args, **kwargs)

    def train(self, mode: bool = True) -> Any:
        """Evaluation mode, whatever the mode; `mode` for what is unlocked."""
        super().train(False)  # type: ignore[misc]
        for name in self._unlocked_modules:
            cast("nn.Module", self).get_submodule(name).train(mode)
        return self


def locked(
    module: _Module, unlocked: int | Iterable[str] = 0, *, blocks: str | None = None
) -> _Module:
    """Keep a module as it is while what is around it is trained, in place.

    Its parameters need no gradient, so DDP does not wait for one; it stays in evaluation mode when
    a parent calls `train()`, so dropout is off and running statistics stay; its forward keeps no
    graph, and no gradient reaches its inputs. With something unlocked, a graph is kept from there
    on; inputs are then detached in mappings, lists, tuples, dataclasses and what pytree knows, but
    not in objects of other classes. Make the optimizer and wrap in DDP or FSDP2 afterwards.
    Parameters that did not need a gradient before are not unlocked either.

    What a module does beyond its forward (a method that another calls) keeps evaluation mode and
    parameters without gradients, but passes gradients on to its inputs.

    Args:
        module: Any module; its names and its state dict stay the same.
        unlocked: What goes on learning: the last so many blocks, or qualified names of submodules.
        blocks: The `nn.ModuleList` or `nn.Sequential` that holds the blocks, by qualified name;
            None: the only one there is, not counting those within its blocks.

    Returns:
        The same module.

    Raises:
        TypeError: It is no module, or its class cannot be changed (TorchScript; the wrapper that
            `torch.compile(module)` returns).
        ValueError: It is locked already, there is no such submodule, there are fewer blocks, or it
            is not clear which they are.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"locked takes a module, not {type(module).__name__}")
    if isinstance(module, LockedTower):
        raise ValueError(f"this {type(module).__name__} is locked already: unlock it first")
    names = _unlocked_names(module, unlocked, blocks)
    modes = [module.get_submodule(name).training for name in names]
    learning = {
        id(parameter) for name in names for parameter in module.get_submodule(name).parameters()
    }
    frozen = tuple(
        name
        for name, parameter in module.named_parameters()
        if parameter.requires_grad and id(parameter) not in learning
    )
    swap_class(module, LockedTower)
    tower = cast("LockedTower", module)
    tower._locked_parameters, tower._unlocked_modules = frozen, names
    for name in frozen:
        module.get_parameter(name).requires_grad_(False)
    module.eval()
    for name, mode in zip(names, modes, strict=True):
        module.get_submodule(name).train(mode)
    return module


def unlock(module: _Module) -> _Module:
    """Let a module that `locked` has kept learn again, in place.

    The mode it is in stays that of evaluation until someone calls `train()`.

    Returns:
        The same module.

    Raises:
        ValueError: It is not locked.
    """
    if not isinstance(module, LockedTower):
        raise ValueError(f"this {type(module).__name__} is not locked: there is nothing to unlock")
    for name in module._locked_parameters:
        cast("nn.Module", module).get_parameter(name).requires_grad_(True)
    return cast("_Module", restore(cast("nn.Module", module), LockedTower))


def _unlocked_names(
    module: nn.Module, unlocked: int | Iterable[str], blocks: str | None
) -> tuple[str, ...]:
    if isinstance(unlocked, bool) or (isinstance(unlocked, int) and unlocked < 0):
        raise ValueError(f"unlocked is how many of the last blocks, or names, not {unlocked!r}")
    if isinstance(unlocked, int):
        return _last_blocks(module, unlocked, blocks) if unlocked else ()
    if blocks is not None:
        raise ValueError("blocks says where the last blocks are found: give their number")
    names = (unlocked,) if isinstance(unlocked, str) else tuple(unlocked)
    known = {name for name, _ in module.named_modules(remove_duplicate=False) if name}
    missing = [name for name in names if name not in known]
    if missing:
        raise ValueError(
            f"{type(module).__name__} has no submodule {missing[0]!r}; it has "
            f"{', '.join(name for name, _ in module.named_children()) or 'none'}"
        )
    return names


def _last_blocks(module: nn.Module, number: int, blocks: str | None) -> tuple[str, ...]:
    """Qualified names of the last blocks."""
    lists = _block_lists(module)
    if blocks is None and len(lists) != 1:
        found = ", ".join(repr(name) for name in lists) or "none"
        raise ValueError(
            f"the last {number} blocks of {type(module).__name__} are looked for in its only "
            f"ModuleList or Sequential, but it has {found}: say which by blocks=, or name what is "
            "unlocked"
        )
    where = next(iter(lists)) if blocks is None else blocks
    holder = dict(module.named_modules(remove_duplicate=False)).get(where)
    if not isinstance(holder, nn.ModuleList | nn.Sequential):
        raise ValueError(
            f"blocks={where!r} is no ModuleList or Sequential of {type(module).__name__}; there is "
            f"{', '.join(repr(name) for name in lists) or 'none'}"
        )
    if number > len(holder):
        raise ValueError(f"{where or 'the module'} has {len(holder)} blocks, not {number}")
    names = [name for name, _ in holder.named_children()][-number:]
    return tuple(f"{where}.{name}" if where else name for name in names)


def _block_lists(module: nn.Module) -> list[str]:
    """The outermost lists of modules."""
    found: list[str] = []
    for name, one in module.named_modules():
        inside = any(not outer or name.startswith(f"{outer}.") for outer in found)
        if isinstance(one, nn.ModuleList | nn.Sequential) and not inside:
            found.append(name)
    return found
