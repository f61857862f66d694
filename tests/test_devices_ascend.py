"""Ascend without an Ascend: the table of chips, NpuDevice.chip, and torch_npu's switches."""

from __future__ import annotations

import dataclasses
import sys
from types import SimpleNamespace

import pytest
import torch

import accel
from accel.devices import NumericsMode, ascend, chips
from accel.devices.npu import NpuDevice

# How torch_npu 2.13 numbers them (NpuVariables.h); Ascend 950 it knows by its prefix.
IDS = {
    100: "910PremiumA", 101: "910ProA", 102: "910A", 103: "910ProB", 104: "910B",
    200: "310P1", 201: "310P2", 202: "310P3", 203: "310P4", 204: "310P5", 205: "310P7",
    220: "910B1", 221: "910B2", 222: "910B2C", 223: "910B3", 224: "910B4", 225: "910B4-1",
    240: "310B1", 241: "310B2", 242: "310B3", 243: "310B4",
    250: "910_9391", 251: "910_9392", 252: "910_9381", 253: "910_9382", 254: "910_9372",
    255: "910_9362", 256: "910_9363",
}  # fmt: skip


class TestChips:
    def test_names_and_ids_are_torch_npus(self):
        below = {c.soc_id: c.soc_name for c in chips.CHIPS.values() if c.soc_id != 260}
        assert below == {number: f"Ascend{name}" for number, name in IDS.items()}
        newest = {name for name, c in chips.CHIPS.items() if c.soc_id == 260}
        assert newest == {name for name in chips.CHIPS if name.startswith("Ascend950")}
        assert all(name == c.soc_name for name, c in chips.CHIPS.items())

    @pytest.mark.parametrize("name", sorted(chips.CHIPS))
    def test_what_holds_of_every_chip(self, name):
        chip = chips.chip(name)
        # The rules that torch_npu states by id.
        assert chip.bfloat16 == (chip.soc_id >= 220)
        assert chip.saturates == (not (220 <= chip.soc_id < 240 or chip.soc_id >= 250))
        assert chip.internal_format == (not (220 <= chip.soc_id < 240 or chip.soc_id >= 250))
        assert chip.fp8 == (chip.soc_id >= 260)
        assert chip.vector_cores in (0, 2 * chip.cube_cores) or chip.generation in ("310P", "310B")
        assert 8 * 2**30 <= chip.memory_bytes <= 144 * 2**30
        assert 2**22 <= chip.l2_bytes <= 192 * 2**20
        assert "torch_npu" in chip.source
        assert "CANN" in chip.source

    @pytest.mark.parametrize(
        ("name", "generation", "memory_gib", "cores", "bfloat16", "fp8", "saturates"),
        [
            ("910A", "910", 32, (32, 0), False, False, True),
            ("Ascend910B", "910", 32, (30, 0), False, False, True),
            ("910B2", "A2", 64, (24, 48), True, False, False),
            ("910B4", "A2", 32, (20, 40), True, False, False),
            ("910_9391", "A3", 64, (24, 48), True, False, False),
            ("950", "950", 144, (32, 64), True, True, False),
            ("950PR", "950", 128, (32, 64), True, True, False),
            ("Ascend950DT_95ff", "950", 144, (32, 64), True, True, False),
        ],
    )
    def test_by_name(self, name, generation, memory_gib, cores, bfloat16, fp8, saturates):
        chip = chips.chip(name)
        assert (chip.generation, chip.memory_bytes) == (generation, memory_gib * 2**30)
        assert (chip.cube_cores, chip.vector_cores) == cores
        assert (chip.bfloat16, chip.fp8, chip.saturates) == (bfloat16, fp8, saturates)
        assert chip.soc_name.startswith("Ascend")

    def test_what_is_assumed_is_said(self):
        assert "assumed" not in chips.chip("910B2").source
        assert chips.chip("910A").source.endswith("assumed: memory")
        assert chips.chip("Ascend950DT_95ff").soc_name == "Ascend950DT_95ff"
        assert "assumed: memory, cores and L2" in chips.chip("Ascend950DT_95ff").source

    def test_a_short_name_of_two_generations_is_refused(self):
        with pytest.raises(ValueError, match=r"two generations.*Ascend910B for.*910B1"):
            chips.chip("910B")

    @pytest.mark.parametrize(
        "name", ["", "Ascend910", "Ascend910B5", "ascend910B2", "xAscend910B2", "Ascend910B2 ",
                 "910_93", "Ascend910_9500", "A100", "Ascend"]
    )  # fmt: skip
    def test_no_part_of_a_name_is_enough(self, name):
        with pytest.raises(ValueError, match=r"unknown Ascend chip.*910B2.*910_9391"):
            chips.chip(name)

    def test_what_is_no_name(self):
        with pytest.raises(TypeError, match="not 910"):
            chips.chip(910)


@pytest.fixture
def soc(monkeypatch):
    """Names the chip of every NPU."""

    def name_it(name):
        npu = SimpleNamespace(get_device_name=lambda index: name)
        monkeypatch.setattr(NpuDevice, "module", npu)
        return NpuDevice(0)

    return name_it


def test_a_device_knows_its_chip(soc):
    assert soc("Ascend910B2").chip is chips.CHIPS["Ascend910B2"]


def test_a_chip_of_the_future(soc, caplog):
    device = soc("Ascend960")
    with pytest.raises(accel.DeviceError, match="does not know: 'Ascend960'"):
        _ = device.chip
    assert device.fp8_compute_dtypes() == frozenset()
    assert "Ascend960" in caplog.text


class TorchNpu:
    """What the switches touch of torch_npu; options behave as its registry's."""

    def __init__(self, soc_id: int) -> None:
        self.options = dict.fromkeys(
            ("CUBE_MATH_TYPE", "ACL_PRECISION_MODE", "ALLOW_INTERNAL_FORMAT", "jitCompile",
             "TORCH_NPU_USE_COMPATIBLE_IMPL"), ""
        )  # fmt: skip
        self.level = 0
        self.soc_id = soc_id
        self.initialised = 0
        self._C = SimpleNamespace(
            _npu_getOption=lambda name: self.options[name].encode(),
            _npu_setOption=self.options.update,
            _npu_get_soc_version=lambda: self.soc_id,
            _npu_get_deterministic_level=lambda: self.level,
            _npu_set_deterministic_level=self.set_level,
        )
        self.npu = SimpleNamespace(
            init=self.init,
            matmul=SimpleNamespace(allow_hf32=False),
            conv=SimpleNamespace(allow_hf32=True),
            is_jit_compile_false=lambda: self.options["jitCompile"] == "disable",
            set_compile_mode=lambda jit_compile: self.options.update(
                jitCompile="enable" if jit_compile else "disable"
            ),
            are_compatible_impl_enabled=lambda: (
                self.options["TORCH_NPU_USE_COMPATIBLE_IMPL"] == "1"
            ),
            use_compatible_impl=lambda on: self.options.update(
                TORCH_NPU_USE_COMPATIBLE_IMPL="1" if on else "0"
            ),
        )

    def set_level(self, level):
        if level > 2:
            raise RuntimeError("level 3 requires newer CANN")
        self.level = level

    def init(self):
        self.initialised += 1
        if self.soc_id >= 220:  # the default that torch_npu sets then
            self.options["ALLOW_INTERNAL_FORMAT"] = self.options["ALLOW_INTERNAL_FORMAT"] or (
                "disable"
            )


@pytest.fixture
def torch_npu(monkeypatch):
    def install(soc_id):
        fake = TorchNpu(soc_id)
        monkeypatch.setattr(torch, "npu", fake.npu, raising=False)
        monkeypatch.setitem(sys.modules, "torch_npu", fake)
        return fake

    return install


DEFAULTS = {
    102: {"npu_precision_mode": "allow_fp32_to_fp16", "npu_internal_format": True},
    221: {"npu_precision_mode": "must_keep_origin_dtype", "npu_internal_format": False},
}
OTHERS = {
    "npu_matmul_hf32": True,
    "npu_conv_hf32": False,
    "npu_cube_math_type": "use_fp32_add",
    "npu_jit_compile": False,
    "npu_compatible_impl": True,
    "npu_deterministic_level": 2,
}


@pytest.mark.parametrize("soc_id", [102, 221])
def test_switches_are_read_set_and_put_back(torch_npu, soc_id):
    fake = torch_npu(soc_id)
    before = accel.numerics_mode()
    assert {name: getattr(before, name) for name in ascend.SWITCHES} == {
        "npu_matmul_hf32": False,
        "npu_conv_hf32": True,
        "npu_cube_math_type": "unset",
        "npu_jit_compile": True,
        "npu_compatible_impl": False,
        "npu_deterministic_level": 0,
        **DEFAULTS[soc_id],
    }
    changed = {
        **OTHERS,
        "npu_precision_mode": DEFAULTS[323 - soc_id]["npu_precision_mode"],
        "npu_internal_format": DEFAULTS[323 - soc_id]["npu_internal_format"],
    }
    assert changed.keys() == ascend.SWITCHES.keys()
    with accel.use_numerics_mode(NumericsMode(**changed)):
        assert (fake.npu.matmul.allow_hf32, fake.npu.conv.allow_hf32) == (True, False)
        assert fake.options == {
            "CUBE_MATH_TYPE": "4",
            "ACL_PRECISION_MODE": changed["npu_precision_mode"],
            "ALLOW_INTERNAL_FORMAT": "enable" if changed["npu_internal_format"] else "disable",
            "jitCompile": "disable",
            "TORCH_NPU_USE_COMPATIBLE_IMPL": "1",
        }
        assert fake.level == 2
    assert accel.numerics_mode() == before
    assert fake.options["CUBE_MATH_TYPE"] == ""


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("npu_cube_math_type", "fast", "keep_dtype"),
        ("npu_precision_mode", "fast", "must_keep_origin_dtype"),
        ("npu_deterministic_level", 3, "newer CANN"),
    ],
)
def test_values_that_are_refused(torch_npu, name, value, words):
    torch_npu(221)
    before = accel.numerics_mode()
    with (
        pytest.raises(accel.DeviceError, match=f"{name} cannot be {value!r} here: .*{words}"),
        accel.use_numerics_mode(NumericsMode(npu_conv_hf32=False, **{name: value})),
    ):
        raise AssertionError("entered")
    assert accel.numerics_mode() == before


@pytest.mark.without_npu
def test_the_driver_is_left_alone_where_torch_npu_is_not_loaded(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_npu", None)  # importing it would raise ImportError
    monkeypatch.delattr(torch, "npu", raising=False)
    mode = accel.numerics_mode()
    assert all(getattr(mode, name) is None for name in ascend.SWITCHES)


@pytest.mark.without_npu
def test_no_switch_can_be_read_where_the_device_does_not_start(torch_npu):
    fake = torch_npu(221)

    def fail():
        raise RuntimeError("no NPU is here")

    fake.npu.init = fake.npu.is_jit_compile_false = fail
    mode = accel.numerics_mode()
    assert mode.npu_cube_math_type is None
    assert mode.npu_jit_compile is None


def test_switches_are_plain_values_for_a_recording(torch_npu):
    torch_npu(221)
    values = accel.numerics_mode().to_dict()
    assert {type(values[name]) for name in ascend.SWITCHES} == {bool, str, int}
    assert dataclasses.replace(accel.numerics_mode(), npu_deterministic_level=1).differences(
        accel.numerics_mode()
    ) == {"npu_deterministic_level": (1, 0)}
