"""Our Triton kernel, in a process of its own, and the tables that it walks by."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from accel_kernels.masks import Sizes, row_bounds, visibility
from accel_kernels.segmented_attention.tiles import EMPTY, FULL, tile_kinds
from accel_kernels.segmented_attention.triton.blocks import block_table
from tests.kernels.block_masks import MASKS

# Where ci/setup puts it: a triton beside torch would be imported by every process that compiles.
APART = Path(sys.prefix) / "triton"
PATH = os.pathsep.join([str(APART), *filter(None, [os.environ.get("PYTHONPATH")])])
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None and not (APART / "triton").is_dir(),
    reason="the triton kernel needs triton",
)
TESTS = Path(__file__).with_name("triton_attention.py")


@needs_triton
@pytest.mark.parametrize(
    "options", [[], pytest.param(["--long", "-m", "long"], marks=pytest.mark.long)], ids=str
)
def test_the_kernel_in_a_process_of_its_own(options) -> None:
    """Triton interprets or compiles all that its process defines, from its first import on."""
    interpreted = "0" if torch.cuda.is_available() else "1"
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, str(TESTS)],
        env={**os.environ, "PYTHONPATH": PATH, "TRITON_INTERPRET": interpreted},
        capture_output=True,
        text=True,
        timeout=1800,
        cwd=TESTS.parents[2],
    )
    print(result.stdout[-20_000:], result.stderr[-4_000:])
    assert result.returncode == 0, "see the output of the inner run"


@needs_triton
def test_cpu_tensors_are_refused_without_the_interpreter(run_python) -> None:
    code = """
        import torch
        from accel_kernels.segmented_attention.triton import kernel
        t = torch.zeros(1, 1, 4, 4)
        try:
            kernel.segmented_attention(t, t, t)
        except ValueError as error:
            print(error)
    """
    assert "TRITON_INTERPRET=1" in run_python(code, path=APART, TRITON_INTERPRET="0").lines[0]


@pytest.mark.parametrize("name", [name for name in MASKS if name != "dense"])
@pytest.mark.parametrize(("rows", "keys"), [(16, 32), (32, 16), (7, 5), (128, 128)])
def test_tables_of_blocks_hold_what_the_mask_shows(name, rows, keys) -> None:
    """Every tile in a range once; those called full are; none that is seen is left out."""
    sizes = Sizes(2, 2, 70, 101)
    see = visibility(MASKS[name](sizes), sizes, torch.device("cpu"))
    bounds = row_bounds(see, sizes, torch.device("cpu"))
    kinds = tile_kinds(see, sizes, rows, keys)
    visits, full = torch.zeros_like(kinds).int(), torch.zeros_like(kinds).int()
    for interval in block_table(bounds, sizes.key_length, rows, keys).tolist():
        for b, entry in enumerate(interval):
            for block, (start, full_start, full_end, end) in enumerate(entry):
                assert 0 <= start <= full_start <= full_end <= end or start == end
                visits[b, block, start:end] += 1
                full[b, block, full_start:full_end] += 1
    assert visits.max() <= 1
    assert (visits[kinds != EMPTY] == 1).all()
    assert (kinds[full == 1] == FULL).all()
    whole = torch.tensor([(n + 1) * keys <= sizes.key_length for n in range(kinds.shape[2])])
    if name in ("none", "causal", "window"):  # one interval a row, so what is full is found
        assert torch.equal(full == 1, (kinds == FULL) & whole)
        assert (visits[kinds == EMPTY] == 0).all()
