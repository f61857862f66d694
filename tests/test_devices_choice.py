"""Which device a program gets: accel.devices.choice."""

from __future__ import annotations

import threading

import pytest
import torch

import accel
from accel.devices import AcceleratorDevice, CpuDevice, choice, find_device, registry


@pytest.fixture(autouse=True)
def only_fakes():
    """No chip of this machine takes part."""
    registry._load_plugins()
    registry._registry.families = {"cpu": CpuDevice}
    registry._registry.selected = {}
    monkey = pytest.MonkeyPatch()
    monkey.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: None)
    yield
    monkey.undo()


def test_cpu_where_there_is_no_accelerator():
    assert accel.current_device() == CpuDevice()
    assert accel.available_devices() == [CpuDevice()]


def test_the_only_accelerator_is_taken(make_family):
    toy = make_family("toy", 2)
    assert accel.current_device() == toy(0)
    assert [str(d) for d in accel.available_devices()] == ["xpu:0", "xpu:1", "cpu"]
    assert toy.calls == []  # nothing touched the chip


def test_an_absent_family_is_not_ambiguous(make_family):
    make_family("toy")
    make_family("gone", 0)
    assert accel.current_device().family == "toy"


def test_two_accelerators_and_none_named(make_family, monkeypatch):
    make_family("toy")
    make_family("rival", torch_type="hpu")
    with pytest.raises(accel.DeviceError, match=r"toy and rival.*ACCEL_DEVICE=toy"):
        accel.current_device()
    monkeypatch.setenv("ACCEL_DEVICE", "rival")
    assert accel.current_device().family == "rival"
    with accel.use_device("toy"):
        assert accel.current_device().family == "toy"


@pytest.mark.parametrize(
    ("name", "expected"),
    [("cpu", "cpu"), ("cpu:0", "cpu"), ("toy", "xpu:0"), ("toy:0", "xpu:0"), ("toy:2", "xpu:2")],
)
def test_accel_device_names_it(make_family, monkeypatch, name, expected):
    make_family("toy", 3)
    monkeypatch.setenv("ACCEL_DEVICE", name)
    assert str(accel.current_device()) == expected


def test_the_choice_follows_the_variable(make_family, monkeypatch):
    make_family("toy", 3)
    for name, expected in [("toy:1", "xpu:1"), ("cpu", "cpu"), ("", "xpu:0"), ("toy:2", "xpu:2")]:
        monkeypatch.setenv("ACCEL_DEVICE", name)
        assert str(accel.current_device()) == expected


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("toy:3", "'toy:3' is not here: this process sees 3 toy"),
        ("toy:", "names no device"),
        ("toy:x", "names no device"),
        ("toy:-1", "names no device"),
        ("toy:1:2", "names no device"),
        ("TOY", "unknown.*usable here: toy, cpu.*accel doctor"),
        ("nonsense", "unknown.*known families: cpu, gone, toy"),
        ("gone", "is not on this machine.*usable here: toy, cpu"),
        ("meta", "unknown"),
    ],
)
def test_names_that_are_not_here(make_family, monkeypatch, name, message):
    make_family("toy", 3)
    make_family("gone", 0)
    for choose in (find_device, lambda name: accel.use_device(name).__enter__()):
        with pytest.raises(accel.DeviceError, match=message):
            choose(name)
    monkeypatch.setenv("ACCEL_DEVICE", name)
    with pytest.raises(accel.DeviceError, match=message):
        accel.current_device()


@pytest.mark.parametrize("name", [None, 3, 1.5, ["cpu"]])
def test_what_names_no_device_at_all(name):
    with pytest.raises(TypeError, match=r"string or a torch\.device"):
        find_device(name)


def test_torch_devices_and_devices_name_themselves(make_family):
    toy = make_family("toy", 2)
    assert find_device(torch.device("cpu")) == CpuDevice()
    assert find_device(torch.device("xpu:1")) == toy(1)  # torch's name finds the family here
    assert find_device(toy(1)) == toy(1)
    with pytest.raises(accel.DeviceError, match="xpu:2 is not here"):
        find_device(toy(2))


def test_cuda_means_the_family_that_is_there(make_family):
    make_family("cuda", 0, torch_type="cuda")
    make_family("rocm", 2, torch_type="cuda")
    for name in ("cuda:1", "rocm:1", torch.device("cuda:1")):
        assert (find_device(name).family, find_device(name).index) == ("rocm", 1)


class TestLocalRank:
    def test_taken_and_made_current_once(self, make_family, monkeypatch):
        toy = make_family("toy", 4)
        monkeypatch.setenv("LOCAL_RANK", "3")
        assert accel.current_device() == toy(3)
        assert accel.current_device() == toy(3)
        assert toy.calls == [(3, "activate")]

    @pytest.mark.parametrize("named", ["toy", "xpu"])
    def test_taken_for_a_name_without_an_index(self, make_family, monkeypatch, named):
        toy = make_family("toy", 4)
        monkeypatch.setenv("LOCAL_RANK", "2")
        assert find_device(named) == toy(2)
        with accel.use_device(named) as device:
            assert device == toy(2)
        monkeypatch.setenv("ACCEL_DEVICE", named)
        assert accel.current_device() == toy(2)

    def test_an_index_in_the_name_wins(self, make_family, monkeypatch):
        toy = make_family("toy", 4)
        monkeypatch.setenv("LOCAL_RANK", "3")
        monkeypatch.setenv("ACCEL_DEVICE", "toy:1")
        assert accel.current_device() == toy(1)
        assert toy.calls == [(1, "activate")]

    @pytest.mark.parametrize("rank", ["2", "17", "-1", "x"])
    def test_too_high_says_what_to_do(self, make_family, monkeypatch, rank):
        make_family("toy", 2)
        monkeypatch.setenv("LOCAL_RANK", rank)
        with pytest.raises(accel.DeviceError, match=r"2 toy device.*at most 2.*ACCEL_DEVICE=toy:0"):
            accel.current_device()

    def test_ignored_on_a_cpu(self, make_family, monkeypatch):
        monkeypatch.setenv("LOCAL_RANK", "7")
        assert accel.current_device() == CpuDevice()
        make_family("toy", 2)
        monkeypatch.setenv("ACCEL_DEVICE", "cpu")
        assert accel.current_device() == CpuDevice()


class TestUseDevice:
    def test_nests_and_restores(self, make_family):
        toy = make_family("toy", 2)
        with accel.use_device("toy:1"):
            with accel.use_device("cpu") as inner:
                assert accel.current_device() == inner == CpuDevice()
            assert accel.current_device() == toy(1)
        assert accel.current_device() == toy(0)
        assert toy.calls == [(1, "enter"), (1, "exit")]

    def test_restores_after_an_exception(self, make_family):
        toy = make_family("toy", 2)
        with pytest.raises(KeyError), accel.use_device("toy:1"):
            raise KeyError
        assert accel.current_device() == toy(0)
        assert toy.calls[-1] == (1, "exit")

    def test_is_of_the_thread(self, make_family):
        make_family("toy", 2)
        seen = []
        with accel.use_device("toy:1"):
            thread = threading.Thread(target=lambda: seen.append(str(accel.current_device())))
            thread.start()
            thread.join()
        assert seen == ["xpu:0"]


class TestSetDevice:
    def test_fixes_the_index(self, make_family, monkeypatch):
        toy = make_family("toy", 3)
        monkeypatch.setenv("LOCAL_RANK", "0")
        choice.set_device(2)
        assert accel.current_device() == toy(2)
        assert toy.calls[-1] == (2, "activate")
        monkeypatch.setenv("ACCEL_DEVICE", "toy")
        assert accel.current_device() == toy(2)
        with accel.use_device("toy") as device:
            assert device == toy(2)

    def test_refuses_another_family_and_the_absent(self, make_family):
        make_family("toy", 3)
        for name in (3, -1, "toy:3"):
            with pytest.raises(accel.DeviceError):
                choice.set_device(name)
        with pytest.raises(accel.DeviceError, match=r"among the toy devices.*ACCEL_DEVICE"):
            choice.set_device("cpu")

    def test_inside_a_block_is_refused(self, make_family):
        make_family("toy", 2)
        with accel.use_device("toy:0"), pytest.raises(ValueError, match="inside a use_device"):
            choice.set_device(1)

    def test_on_a_cpu_pins_nothing_for_later(self, make_family, monkeypatch):
        choice.set_device(0)
        toy = make_family("toy", 3)
        monkeypatch.setenv("LOCAL_RANK", "1")
        assert accel.current_device() == toy(1)


def test_without_a_fixed_index_torchs_current_one_is_followed(make_family, monkeypatch):
    class Toy(AcceleratorDevice):
        family = "toy"
        torch_type = "xpu"

        @classmethod
        def count(cls):
            return 3

    accel.register_device(Toy)
    now = [0]
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: now[0])
    for now[0] in (0, 2, 1):
        assert accel.current_device() == Toy(now[0]) == find_device("toy")
