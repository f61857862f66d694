"""The Triton kernels of the contrastive losses, in processes of their own."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

# Where ci/setup puts it: a triton beside torch would be imported by every process that compiles.
APART = Path(sys.prefix) / "triton"
PATH = os.pathsep.join([str(APART), *filter(None, [os.environ.get("PYTHONPATH")])])
HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None and not (APART / "triton").is_dir(),
    reason="the triton kernels need triton",
)
LONG = ["--long", "-m", "long"]
# The marker, for a GPU's own sizes, is of tests that skip themselves elsewhere.
options = pytest.mark.parametrize(
    "options", [[], pytest.param(LONG, marks=pytest.mark.long)], ids=str
)


def run_tests(name: str, interpreted: bool, options: list[str], cache: Path) -> None:
    """Triton interprets or compiles all that its process defines, from its first import on."""
    environment = {"PYTHONPATH": PATH, "TRITON_INTERPRET": str(int(interpreted))}
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, HERE / name],
        env={**os.environ, **environment, "TRITON_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        timeout=3600,
        cwd=HERE.parents[1],
    )
    print(result.stdout[-20_000:], result.stderr[-4_000:])
    assert result.returncode == 0, "see the output of the inner run"


@options
def test_the_kernels_against_float64(options, tmp_path) -> None:
    interpreted = not torch.cuda.is_available()
    run_tests("triton_contrastive_loss.py", interpreted, options, tmp_path)


@options
def test_the_kernels_compile_for_gpus_that_are_not_here(options, tmp_path) -> None:
    run_tests("triton_contrastive_compile.py", False, options, tmp_path)


def test_cpu_tensors_are_refused_without_the_interpreter(run_python) -> None:
    code = """
        import torch
        from accel_kernels.contrastive_loss.pairing import Pairing
        from accel_kernels.contrastive_loss.triton import PASSES
        x, samples, one = torch.zeros(3, 4), torch.arange(3), torch.ones(())
        try:
            PASSES.sigmoid(x, x, one, one, Pairing(samples, samples), with_gradients=False)
        except ValueError as error:
            print(error)
    """
    assert "TRITON_INTERPRET=1" in run_python(code, path=APART, TRITON_INTERPRET="0").lines[0]
