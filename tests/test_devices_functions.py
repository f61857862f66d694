"""The flat functions on a CPU: torch.cuda's answers where it gives any, neutral ones elsewhere."""

from __future__ import annotations

import pytest
import torch

import accel

CALLS = [
    ("is_available", ()),
    ("device_count", ()),
    ("set_device", (0,)),
    ("synchronize", ()),
    ("synchronize", (0,)),
    ("empty_cache", ()),
    ("memory_allocated", ()),
    ("memory_allocated", (0,)),
    ("max_memory_allocated", ()),
    ("max_memory_allocated", (3,)),
    ("reset_peak_memory_stats", ()),
    ("manual_seed", (1,)),
    ("manual_seed_all", (1,)),
]


@pytest.fixture
def on_cpu(monkeypatch):
    monkeypatch.setenv("ACCEL_DEVICE", "cpu")


@pytest.mark.parametrize(("name", "arguments"), CALLS, ids=str)
def test_as_torch_cuda_where_it_is_silent(run_python, on_cpu, name, arguments):
    if torch.cuda.is_available():  # then torch.cuda's answers on a CPU are not to be had
        expected = {"is_available": False, "device_count": 0}.get(name)
        expected = 0 if "allocated" in name else expected
    else:
        try:
            expected = getattr(torch.cuda, name)(*arguments)
        except (AssertionError, AttributeError, RuntimeError):
            expected = None
    result = getattr(accel, name)(*arguments)
    assert result == expected
    assert type(result) is type(expected)


def test_the_stream_of_a_cpu_waits_for_nothing(on_cpu):
    stream = accel.current_stream()
    stream.synchronize()
    stream.wait_stream(accel.current_stream("cpu"))
    assert stream.query() is True


def test_seeding_leaves_the_cpus_generator_alone_as_torch_cuda_does(on_cpu):
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    accel.manual_seed(5)
    accel.manual_seed_all(5)
    assert torch.equal(torch.rand(2), expected)


def test_on_an_accelerator_they_act_on_it(make_family, monkeypatch):
    toy = make_family("toy", 2)
    monkeypatch.setenv("ACCEL_DEVICE", "toy")
    assert accel.is_available()
    assert accel.device_count() == 2
    assert (accel.memory_allocated(), accel.max_memory_allocated(1)) == (10, 20)
    assert (accel.memory_allocated("cpu"), accel.memory_allocated(toy(1))) == (0, 10)
    accel.set_device(1)
    accel.synchronize()
    accel.synchronize(0)
    accel.synchronize("cpu")
    accel.empty_cache()
    accel.reset_peak_memory_stats(torch.device("xpu:0"))
    accel.manual_seed(3)
    accel.manual_seed_all(4)
    assert toy.calls == [
        (1, "activate"),
        (1, "synchronize"),
        (0, "synchronize"),
        (1, "empty_cache"),
        (0, "reset_peak_memory"),
        (1, "seed", 3),
        (0, "seed", 4),
        (1, "seed", 4),
    ]
    for call in (accel.synchronize, accel.memory_allocated, accel.set_device):
        with pytest.raises(accel.DeviceError, match="toy:2"):
            call(2)
