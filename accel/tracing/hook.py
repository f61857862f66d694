"""An import hook that acts as soon as a module is imported. No torch.

It wraps the loader of the modules it waits for, and of no others; a process that never imports
torch pays for one look-up of a name per import.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:  # every Python process of the program imports this module, so it imports little
    from collections.abc import Callable, Sequence
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec
    from types import ModuleType


def install_hook() -> None:
    """Wait for torch in this process.

    Raises:
        RuntimeError: torch is already imported.
    """
    if "torch" in sys.modules:
        raise RuntimeError("torch is already imported: tracing begins before it")
    if not any(isinstance(finder, ImportHook) for finder in sys.meta_path):
        hook = ImportHook()
        sys.meta_path.insert(0, hook)
        hook.when_imported("torch", lambda: _trace(hook))


def _trace(hook: ImportHook) -> None:
    # Its modules import torch, so they cannot be imported before it.
    from accel.tracing.install import install

    install(hook)


class ImportHook:
    """Lets the other finders find a module and wraps its loader."""

    def __init__(self) -> None:
        self._waiting: dict[str, Callable[[], None]] = {}

    def when_imported(self, name: str, then: Callable[[], None]) -> None:
        """Call a function once a module is imported; now if it is already."""
        if name in sys.modules:
            then()
        else:
            self._waiting[name] = then

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec that the other finders have, with its loader wrapped; None for most modules."""
        if name not in self._waiting:
            return None
        spec = self._found_by_others(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = cast("Loader", _Loader(spec.loader, self._waiting[name]))
        return spec

    def _found_by_others(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None
    ) -> ModuleSpec | None:
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                return spec
        return None


class _Loader:
    """Runs the real loader, then what waited for it."""

    def __init__(self, real: Loader, then: Callable[[], None]) -> None:
        self._real = real
        self._then = then

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # From now on the module looks as it would without this hook.
        if module.__spec__ is not None:
            module.__spec__.loader = self._real
        module.__loader__ = self._real
        self._real.exec_module(module)
        self._then()

    def __getattr__(self, name: str) -> object:
        # Resources, source and the like: as the real loader has them.
        return getattr(self._real, name)
