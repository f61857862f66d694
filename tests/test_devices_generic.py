"""The family for every chip that torch knows: for real through PrivateUse1, and on a fake."""

from __future__ import annotations

import pytest
import torch

import accel
from accel.devices import AcceleratorDevice, MemoryInfo

# A chip that torch knows as an accelerator, of which this library has never heard.
TOYCHIP = """
import torch, warnings
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

class Toy:
    calls = []
    def is_initialized(self): return True
    def is_available(self): return True
    def current_device(self): return 0
    def _is_in_bad_fork(self): return False
    def device_count(self): return 1
    def manual_seed_all(self, seed): self.calls.append(("all", seed))
    def manual_seed(self, seed): self.calls.append(("seed", seed))
    def get_device_name(self, device=None): return f"Toy 3000 no {device}"
    def get_rng_state(self, device="toychip"):
        self.calls.append(("get", device)); return torch.tensor([7], dtype=torch.uint8)
    def set_rng_state(self, state): self.calls.append(("set", state.tolist()))  # takes no index

_setup_privateuseone_for_python_backend("toychip", backend_module=Toy())
import accel
"""


def test_a_chip_that_only_torch_knows(run_python):
    result = run_python(
        TOYCHIP
        + """
device = accel.current_device()
print(repr(device), isinstance(device, accel.devices.AcceleratorDevice))
print(accel.available_devices(), accel.is_available(), accel.device_count())
print(device.name, device.collective_backend, torch.get_device_module("toychip") is device.module)
state = device.rng_state()
device.set_rng_state(state)
device.seed(3); drawn = torch.rand(3)
device.seed(3); print(torch.equal(torch.rand(3), drawn))
accel.manual_seed_all(5)
device.activate()
print(torch.toychip.calls)
with accel.use_device("cpu"): print(accel.current_device())
with accel.use_device("toychip:0") as inner: print(inner == device)
print(accel.current_stream().device)
accel.set_device(0)
for wrong in ("toychip:1",):
    try: accel.set_device(wrong)
    except accel.DeviceError as error: print(error)
"""
    )
    assert result.lines == [
        "<accel toychip device toychip:0> True",
        "[<accel toychip device toychip:0>, <accel cpu device cpu>] True 1",
        "Toy 3000 no 0 None True",
        "True",
        "[('get', 0), ('set', [7]), ('seed', 3), ('seed', 3), ('all', 5)]",
        "cpu",
        "True",
        "toychip:0",
        "'toychip:1' is not here: this process sees 1 toychip device(s), numbered from 0",
    ]


def test_what_that_chip_cannot_do_is_said(run_python):
    result = run_python(
        TOYCHIP
        + """
from accel.devices.batches import _can_pin
device = accel.current_device()
try: device.memory()
except accel.DeviceError as error: print(error)
print(_can_pin("toychip"))  # it brings no page-locked allocator
print(len(device.dtypes.refused), device.dtypes.compute)  # it brings no kernels
del Toy.get_rng_state, Toy.get_device_name
try: device.rng_state()
except accel.DeviceError as error: print(error)
print(device.name)
"""
    )
    assert result.lines[0].startswith("toychip:0 does not tell its memory (")
    assert "Add a chip" in result.lines[0]
    assert result.lines[1:3] == ["False", "20 frozenset()"]
    assert result.lines[3].startswith("torch.toychip has no get_rng_state()")
    assert result.lines[4] == "toychip:0"


class Module:
    """A device module in the shape of torch.cuda's."""

    def __init__(self):
        self.states = {}

    def get_rng_state(self, device="chip"):
        return self.states.get(device, torch.zeros(2, dtype=torch.uint8))

    def set_rng_state(self, new_state, device="chip"):
        self.states[device] = new_state

    def manual_seed(self, seed):
        self.states[torch.accelerator.current_device_index()] = torch.tensor(
            [seed, 0], dtype=torch.uint8
        )


@pytest.fixture
def chip(monkeypatch):
    """A generic device no. 1 of 2, on a faked torch.accelerator that notes its calls."""
    calls = []
    module = Module()
    current = [0]

    class Block:
        def __init__(self, index):
            self.index = index

        def __enter__(self):
            self.before, current[0] = current[0], self.index

        def __exit__(self, *_):
            current[0] = self.before

    def note(name, value=None):
        return lambda *arguments: calls.append((name, *map(str, arguments))) or value

    answers = {
        "synchronize": None,
        "get_memory_info": (30, 40),
        "memory_allocated": 10,
        "max_memory_allocated": 20,
        "reset_peak_memory_stats": None,
        "empty_cache": None,
        "set_device_index": None,
        "current_stream": "stream",
    }
    for name, value in answers.items():
        monkeypatch.setattr(torch.accelerator, name, note(name, value))
    monkeypatch.setattr(torch.accelerator, "device_index", Block)
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: current[0])
    monkeypatch.setattr(AcceleratorDevice, "module", module)

    class Chip(AcceleratorDevice):
        family = "chip"
        torch_type = "xpu"

        @classmethod
        def count(cls):
            return 2

    accel.register_device(Chip)
    device = Chip(1)
    device.calls, device.states = calls, module.states
    return device


def test_memory_and_the_rest_go_to_torch_accelerator(chip):
    assert chip.memory() == MemoryInfo(used=10, peak=20, free=30, total=40)
    chip.synchronize()
    chip.reset_peak_memory()
    chip.empty_cache()
    chip.activate()
    # By device and not by number: torch refuses another chip's device, and would take its number.
    assert {call for call in chip.calls if len(call) > 1} == {
        (name, "xpu:1")
        for name in (
            "get_memory_info",
            "memory_allocated",
            "max_memory_allocated",
            "synchronize",
            "reset_peak_memory_stats",
            "set_device_index",
        )
    }
    assert ("empty_cache",) in chip.calls


def test_random_state_of_the_right_device(chip):
    chip.seed(9)
    assert chip.states[1].tolist() == [9, 0]
    state = chip.rng_state()
    torch.rand(3)
    chip.states[1] = torch.tensor([1, 1], dtype=torch.uint8)
    expected = torch.Generator().set_state(state.cpu)
    chip.set_rng_state(state)
    assert chip.states[1].tolist() == [9, 0]
    assert torch.equal(torch.rand(3), torch.rand(3, generator=expected))
    assert 0 not in chip.states


def test_flat_functions_act_on_the_current_accelerator(chip):
    with accel.use_device("chip:1"):
        assert accel.is_available()
        assert accel.device_count() == 2
        assert (accel.memory_allocated(), accel.max_memory_allocated(0)) == (10, 20)
        accel.synchronize()
        accel.synchronize(0)
        accel.reset_peak_memory_stats("chip:0")
        accel.empty_cache()
        assert accel.current_stream() == "stream"
        accel.manual_seed(4)
        assert set(chip.states) == {1}
        accel.manual_seed_all(5)
    assert {index: state[0].item() for index, state in chip.states.items()} == {0: 5, 1: 5}
    for call in [
        ("synchronize", "xpu:1"),
        ("synchronize", "xpu:0"),
        ("reset_peak_memory_stats", "xpu:0"),
        ("max_memory_allocated", "xpu:0"),
        ("empty_cache",),
        ("current_stream", "xpu:1"),
    ]:
        assert call in chip.calls
