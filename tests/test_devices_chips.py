"""CUDA, ROCm and Ascend on faked drivers, and the facts that torch tells about each."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import accel
from accel.devices.cuda import CudaDevice, RocmDevice
from accel.devices.npu import NpuDevice

OCP = {torch.float8_e4m3fn, torch.float8_e5m2}
FNUZ = {torch.float8_e4m3fnuz, torch.float8_e5m2fnuz}


def fake_cuda(monkeypatch, *, cuda=None, hip=None, count=2, **attributes):
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    for name, value in attributes.items():
        monkeypatch.setattr(torch.cuda, name, value)


@pytest.mark.parametrize(
    ("build", "count", "expected"),
    [
        ({"cuda": "13.0"}, 2, (2, 0)),
        ({"hip": "7.0"}, 2, (0, 2)),
        ({"cuda": "13.0"}, 0, (0, 0)),
        ({}, 0, (0, 0)),
    ],
)
def test_cuda_and_rocm_are_told_apart(monkeypatch, build, count, expected):
    fake_cuda(monkeypatch, count=count, **build)
    assert (CudaDevice.count(), RocmDevice.count()) == expected


@pytest.mark.parametrize(
    ("capability", "dtypes"),
    [((8, 0), set()), ((8, 6), set()), ((8, 9), OCP), ((9, 0), OCP), ((12, 0), OCP)],
)
def test_fp8_on_nvidia(monkeypatch, capability, dtypes):
    asked = []
    fake_cuda(
        monkeypatch,
        cuda="13.0",
        get_device_capability=lambda index: asked.append(index) or capability,
        get_device_name=lambda index: f"NVIDIA no {index}",
    )
    assert CudaDevice(1).fp8_compute_dtypes() == dtypes
    assert CudaDevice(1).name == "NVIDIA no 1"
    assert asked == [1]


@pytest.mark.parametrize(
    ("architecture", "dtypes"),
    [
        ("gfx90a:sramecc+:xnack-", set()),
        ("gfx942:sramecc+:xnack-", FNUZ),
        ("gfx950", OCP),
        ("gfx1201", OCP),
        ("gfx1100", set()),
    ],
)
def test_fp8_on_amd(monkeypatch, architecture, dtypes):
    properties = SimpleNamespace(gcnArchName=architecture)
    fake_cuda(monkeypatch, hip="7.0", get_device_properties=lambda index: properties)
    assert RocmDevice(0).fp8_compute_dtypes() == dtypes


@pytest.mark.parametrize(
    ("name", "dtypes"),
    [
        ("Ascend910B", set()),
        ("Ascend910B3", set()),
        ("Ascend910_9391", set()),
        ("Ascend310P3", set()),
        ("Ascend950DT_9581", OCP),
    ],
)
@pytest.mark.without_npu
def test_ascend(monkeypatch, name, dtypes):
    npu = SimpleNamespace(
        is_available=lambda: True, device_count=lambda: 8, get_device_name=lambda index: name
    )
    monkeypatch.setattr(torch, "npu", npu, raising=False)
    monkeypatch.setattr(torch, "get_device_module", lambda kind: npu)
    monkeypatch.setattr(torch, "device", lambda kind, index: f"{kind}:{index}")
    assert NpuDevice.count() == 8
    assert NpuDevice(1).name == name
    assert NpuDevice(1).fp8_compute_dtypes() == dtypes
    npu.is_available = lambda: False
    assert NpuDevice.count() == 0


@pytest.mark.without_npu
def test_no_ascend_without_torch_npu(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert NpuDevice.count() == 0


def test_the_autocast_dtype_is_torchs(monkeypatch):
    assert CudaDevice().autocast_dtype == torch.float16
    monkeypatch.setattr(torch, "get_autocast_dtype", {"cuda": torch.bfloat16}.get)
    assert RocmDevice().autocast_dtype == torch.bfloat16


@pytest.mark.parametrize(("kind", "backend"), [("cuda", "nccl"), ("xpu", "xccl"), ("ipu", None)])
def test_the_collective_backend_is_torchs(make_family, kind, backend):
    assert make_family("toy", torch_type=kind)().collective_backend == backend


def test_no_collectives_in_a_torch_without_them(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
    assert accel.current_device().collective_backend is None
