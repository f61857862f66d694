"""Runs at the start of every Python process below `accel simulate`: makes the Ascend appear.

Python imports the first `sitecustomize` on its path, which is this one; the environment's own,
which it hides, is run afterwards.
"""

import importlib.machinery
import importlib.util
import os
import sys


def _run_hidden() -> None:
    here = os.path.dirname(os.path.abspath(__file__))
    rest = [entry for entry in sys.path if os.path.abspath(entry or ".") != here]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", rest)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


if os.environ.get("ACCEL_SIMULATE"):
    from accel.simulate.activation import install_hook

    install_hook()
_run_hidden()
