"""OpenCLIP's losses, from where ci/setup puts the package: outside the environment's own.

Its `loss.py` alone is loaded: the package itself needs torchvision.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
import warnings
from pathlib import Path
from types import ModuleType

PEERS = Path(os.environ.get("ACCEL_PEERS", Path(sys.prefix) / "peers"))
"""Packages to compare with, installed by `pip install --no-deps --target`."""


@functools.cache
def open_clip_losses() -> ModuleType:
    """The module `open_clip.loss`.

    Raises:
        FileNotFoundError: It is not there; says how to get it.
    """
    path = PEERS / "open_clip" / "loss.py"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not there: run ci/setup, or `pip install --no-deps --target {PEERS} "
            "open-clip-torch`"
        )
    spec = importlib.util.spec_from_file_location("open_clip_loss", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it imports is its own affair
        spec.loader.exec_module(module)
    return module
