"""Compiled kernels on torch's threads and on threads of their own."""

from __future__ import annotations

import sys

import pytest
import torch

from accel_kernels import openmp
from accel_kernels.fp8 import native, quantize
from accel_kernels.fp8.formats import E4M3, Scaling
from accel_kernels.segmented_attention import cpu_amx
from accel_kernels.segmented_attention.cpu_amx.library import library as compiled

linux = pytest.mark.skipif(
    sys.platform != "linux" or not torch.backends.openmp.is_available(),
    reason="torch's threads are not OpenMP's here",
)


@linux
def test_the_runtime_of_torchs_wheel_is_found() -> None:
    assert openmp.team_starter()


@linux
def test_none_where_it_cannot_be_told_which_is_torchs(monkeypatch) -> None:
    openmp.team_starter.cache_clear()
    monkeypatch.setattr(openmp, "_RUNTIMES", openmp.re.compile(r"\.so[^/]*$"))  # every library
    monkeypatch.setattr(openmp.torch, "__file__", "/elsewhere/torch/__init__.py")
    try:
        assert openmp.team_starter() is None
    finally:
        openmp.team_starter.cache_clear()


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_codes_are_the_same_on_either(threads) -> None:
    library = native._library()
    if library is None:
        pytest.skip("no C compiler")
    values = torch.randn(2048, 1024)
    expected = quantize(values, Scaling(E4M3, "1x128"))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for team in (None, openmp.team_starter()):
            library.accel_use_team(team)
            found = quantize(values, Scaling(E4M3, "1x128"))
            assert torch.equal(found.codes, expected.codes)
            assert torch.equal(found.scales, expected.scales)
    finally:
        library.accel_use_team(openmp.team_starter())
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_is_the_same_on_either(dtype) -> None:
    if (reason := cpu_amx.why_absent(dtype)) is not None:
        pytest.skip(reason)
    library = compiled(dtype)
    inputs = [torch.randn(1, 2, 700, 64, dtype=dtype, requires_grad=True) for _ in range(3)]
    found = []
    try:
        for team in (None, openmp.team_starter()):
            library.accel_use_team(team)
            out, _ = cpu_amx.segmented_attention(*inputs)
            found.append([out, *torch.autograd.grad(out.float().square().sum(), inputs)])
    finally:
        library.accel_use_team(openmp.team_starter())
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
