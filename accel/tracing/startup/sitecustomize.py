"""Runs at the start of every Python process of a traced program: waits for torch.

Python imports the first `sitecustomize` on its path, which is this one; the environment's own,
which it hides, is run afterwards. The one of a simulated Ascend is done here too, and not run: each
would take the other for the hidden one.
"""

import os
import sys
from importlib.machinery import PathFinder


def _run_hidden() -> None:
    here = os.path.dirname(os.path.abspath(__file__))
    package = os.path.dirname(os.path.dirname(here))
    ours = {here, os.path.join(package, "simulate", "startup")}
    rest = [entry for entry in sys.path if os.path.abspath(entry or ".") not in ours]
    spec = PathFinder.find_spec("sitecustomize", rest)
    if spec is not None and spec.loader is not None:
        from importlib.util import module_from_spec

        spec.loader.exec_module(module_from_spec(spec))


if os.environ.get("ACCEL_SIMULATE"):
    from accel.simulate.activation import install_hook as install_simulator

    install_simulator()
if os.environ.get("ACCEL_TRACE"):
    from accel.tracing.hook import install_hook

    install_hook()
_run_hidden()
