"""Whether ONNX Runtime and the exporter's packages are here; nothing imports them before use."""

from __future__ import annotations

import importlib

from accel.errors import BackendError

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
INSTALL = 'pip install "accel-torch[onnx]"'


def why_absent() -> str | None:
    """Why ONNX Runtime cannot be used here, with the command that mends it; None if it can."""
    missing = []
    for name in PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError as error:
            missing.append(f"{name} cannot be imported ({error})")
    return f"{'; '.join(missing)}: {INSTALL}" if missing else None


def check_present() -> None:
    """Check that the packages can be used.

    Raises:
        BackendError: One is missing or broken; the message names the command that mends it.
    """
    absent = why_absent()
    if absent is not None:
        raise BackendError(absent)
