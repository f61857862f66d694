"""What every device answers: facts, memory, random state, determinism."""

from __future__ import annotations

import sys

import pytest
import torch

import accel
from accel.devices import CpuDevice, DtypeSupport, RngState, dtypes


def test_a_cpu(monkeypatch):
    cpu = CpuDevice()
    info = cpu.info
    assert info.family == "cpu"
    assert info.name == cpu.name
    assert torch.backends.cpu.get_cpu_capability() in info.name
    assert info.total_memory == cpu.memory().total > 2**28
    assert info.collective_backend == "gloo"
    assert cpu.autocast_dtype == torch.bfloat16
    monkeypatch.setattr(sys, "platform", "darwin")  # where /proc is not
    assert cpu.info.total_memory == info.total_memory
    with pytest.raises(accel.DeviceError, match="psutil"):
        cpu.memory()


def test_equality_hash_and_text(make_family):
    one, other = make_family("one", 2), make_family("other", 2)
    assert one(1) == other(1) != one(0)
    assert len({one(1), other(1), one(0)}) == 2
    assert one(1) != "xpu:1"
    assert (str(one(1)), repr(one(1))) == ("xpu:1", "<accel one device xpu:1>")
    assert CpuDevice(3) == CpuDevice()


class TestDtypes:
    def test_on_a_cpu(self):
        support = CpuDevice().dtypes
        assert support.compute >= {
            torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64,
            torch.complex128, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8,
            torch.bool,
        }  # fmt: skip
        assert support.storage >= {torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu}
        assert not support.refused
        assert support.of(torch.float32) == "compute"
        assert support.of(torch.float8_e5m2) == "storage"
        assert support.of(torch.quint8) == "refused"

    def test_every_dtype_is_in_one_class(self, device):
        support = device.dtypes
        assert len(support.compute | support.storage | support.refused) == sum(
            map(len, (support.compute, support.storage, support.refused))
        )
        assert torch.float32 in support.compute

    @pytest.fixture
    def probe(self):
        """Probes the CPU anew, whatever was remembered."""
        return lambda fp8=frozenset(): dtypes.probe.__wrapped__(torch.device("cpu"), fp8)

    def test_a_chip_that_narrows_refuses_and_miscalculates(self, monkeypatch, probe):
        real_to, real_mul = torch.Tensor.to, torch.Tensor.__mul__

        def to(tensor, target, *rest):
            if isinstance(target, torch.device) and tensor.dtype == torch.bfloat16:
                raise RuntimeError("EE9999: bfloat16 not supported")
            if isinstance(target, torch.device) and tensor.dtype == torch.float64:
                return real_to(tensor, torch.float32)  # as torch_npu does
            if isinstance(target, torch.device) and tensor.dtype == torch.int16:
                return tensor + 1
            return real_to(tensor, target, *rest)

        def mul(a, b):
            if a.dtype == torch.int32:
                raise RuntimeError("no kernel")
            return real_mul(a, b) + (a.dtype == torch.float16)

        monkeypatch.setattr(torch.Tensor, "to", to)
        monkeypatch.setattr(torch.Tensor, "__mul__", mul)
        support = probe()
        assert support.refused == {torch.bfloat16, torch.float64, torch.int16}
        assert {torch.int32, torch.float16} <= support.storage
        assert torch.float32 in support.compute

    def test_fp8_is_what_the_family_says(self, probe):
        support = probe(frozenset({torch.float8_e4m3fn}))
        assert support.of(torch.float8_e4m3fn) == "compute"
        assert support.of(torch.float8_e5m2) == "storage"

    @pytest.mark.parametrize("mode", ["autocast", "meta", "fake", "float64", "inference"])
    def test_the_callers_modes_do_not_decide(self, probe, mode):
        from torch._subclasses.fake_tensor import FakeTensorMode

        expected = probe()
        contexts = {
            "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
            "meta": lambda: torch.device("meta"),
            "fake": FakeTensorMode,
            "inference": torch.inference_mode,
        }
        if mode == "float64":
            torch.set_default_dtype(torch.float64)
            assert probe() == expected
        else:
            with contexts[mode]():
                assert probe() == expected

    def test_a_warning_is_no_refusal(self, monkeypatch, probe):
        import warnings

        expected, real = probe(), dtypes._computes

        def warns(dtype, device):
            warnings.warn("narrowed", stacklevel=1)  # an error under this suite's filters
            return real(dtype, device)

        monkeypatch.setattr(dtypes, "_computes", warns)
        assert probe() == expected

    def test_tried_once(self, monkeypatch, make_family):
        tries = []
        monkeypatch.setattr(dtypes, "_classify", lambda *a: tries.append(a) or "compute")
        toy = make_family("toy", torch_type="hpu")
        assert toy().info.dtypes is toy().dtypes
        assert isinstance(toy().dtypes, DtypeSupport)
        assert len(tries) == len(dtypes._NAMES.split())


def test_memory_follows_a_real_allocation():
    cpu, size = CpuDevice(), 200 * 2**20
    before = cpu.memory()
    assert before.used <= before.peak <= before.total >= before.free > 0
    block = torch.ones(size // 4)
    held = cpu.memory()
    assert 0.9 * size < held.used - before.used < 1.3 * size
    assert held.peak >= held.used
    del block
    assert cpu.memory().used < held.used - 0.9 * size
    assert cpu.memory().peak > 0.99 * held.peak  # the kernel counts in batches
    cpu.reset_peak_memory()
    assert cpu.memory().peak < held.peak - 0.9 * size


def test_a_kernel_that_lets_no_peak_be_reset(monkeypatch):
    def refuse(self, text):
        raise PermissionError("not permitted")

    monkeypatch.setattr("pathlib.Path.write_text", refuse)
    with pytest.raises(accel.DeviceError, match="fresh process"):
        CpuDevice().reset_peak_memory()


class TestRandomState:
    def test_round_trip_and_seed(self, device):
        def draw():
            there = torch.rand(5, device=device.torch_device).cpu()
            return torch.cat([torch.rand(5), there])

        device.seed(11)
        state = device.rng_state()
        drawn = draw()
        assert not torch.equal(draw(), drawn)
        device.set_rng_state(state)
        assert torch.equal(draw(), drawn)
        device.seed(11)
        assert torch.equal(draw(), drawn)
        device.seed(12)
        assert not torch.equal(draw(), drawn)

    def test_a_chips_state_beside_the_cpus(self, make_family):
        toy = make_family("toy", 2)(1)
        state = toy.rng_state()
        assert state.device.tolist() == [1]
        toy.set_rng_state(state)
        toy.seed(3)
        assert toy.calls == [(1, "set_rng_state", [1]), (1, "seed", 3)]

    def test_between_a_cpu_and_a_chip_it_is_refused(self, make_family):
        toy, cpu = make_family("toy")(), CpuDevice()
        before = torch.get_rng_state()
        for taker, giver, words in [(cpu, toy, "toy .*on cpu"), (toy, cpu, "cpu .*on xpu:0")]:
            state = giver.rng_state()
            torch.rand(1)
            with pytest.raises(ValueError, match=f"taken on the family {words}.*device.seed"):
                taker.set_rng_state(state)
        torch.set_rng_state(before)
        with pytest.raises(ValueError, match=r"Device\.set_rng_state"):
            cpu.set_own_rng_state(before)

    def test_between_two_chip_families_it_is_refused(self, make_family):
        one, other = make_family("one")(), make_family("other")()
        with pytest.raises(ValueError, match=r"family one .*on xpu:0 \(other\)"):
            other.set_rng_state(one.rng_state())
        assert other.calls == []
        other.set_rng_state(type(other)().rng_state())
        assert other.calls == [(0, "set_rng_state", [0])]

    def test_one_that_is_refused_changes_nothing(self, make_family):
        class Strict(type(make_family("toy")())):
            def set_own_rng_state(self, state):
                raise RuntimeError("RNG state is wrong size")

        state = RngState(torch.get_rng_state(), torch.zeros(3, dtype=torch.uint8), "toy")
        torch.rand(4)
        before = torch.get_rng_state()
        with pytest.raises(RuntimeError, match="wrong size"):
            Strict().set_rng_state(state)
        assert torch.equal(torch.get_rng_state(), before)


class TestDeterministic:
    def test_inside_and_after(self, device):
        torch.backends.cudnn.benchmark = True
        torch.utils.deterministic.fill_uninitialized_memory = False
        before = accel.numerics_mode()

        def inside():
            assert torch.are_deterministic_algorithms_enabled()
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
            assert torch.backends.cudnn.deterministic
            assert torch.backends.mkldnn.deterministic
            assert not torch.backends.cudnn.benchmark
            assert torch.utils.deterministic.fill_uninitialized_memory
            raise KeyError

        with pytest.raises(KeyError), device.deterministic():
            inside()
        assert not torch.are_deterministic_algorithms_enabled()
        assert accel.numerics_mode() == before

    def test_an_operator_without_such_a_form_raises(self):
        index, values = torch.tensor([0, 0]), torch.ones(2)
        with (
            CpuDevice().deterministic(),
            pytest.raises(RuntimeError, match="does not have a deterministic implementation"),
        ):
            torch.zeros(3).put_(index, values, accumulate=False)
        torch.zeros(3).put_(index, values)
