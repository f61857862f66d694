"""NumericsMode as a whole: used, nested, compared, refused."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

import accel
from accel.devices import NumericsMode


def test_a_whole_mode_and_nesting():
    outer = accel.numerics_mode()
    first = dataclasses.replace(outer, cudnn_benchmark=True, num_threads=1, mha_fastpath=False)
    second = dataclasses.replace(first, mha_fastpath=True, deterministic_algorithms="warn")
    with accel.use_numerics_mode(first):
        assert accel.numerics_mode() == first
        with accel.use_numerics_mode(second):
            assert accel.numerics_mode() == second
        assert accel.numerics_mode() == first
    assert accel.numerics_mode() == outer


def test_what_is_changed_inside_is_put_back_too():
    before = accel.numerics_mode()
    with accel.use_numerics_mode(NumericsMode()):
        torch.set_num_threads(1)
        torch.use_deterministic_algorithms(True)
        torch.set_float32_matmul_precision("medium")
    assert dataclasses.replace(accel.numerics_mode(), cuda_matmul_fp32="none",
                               mkldnn_matmul_fp32="none") == before  # fmt: skip
    assert torch.get_float32_matmul_precision() == "highest"


def test_as_deterministic():
    mode = accel.numerics_mode().as_deterministic()
    assert set(mode.differences(accel.numerics_mode())) == {
        "deterministic_algorithms", "cudnn_deterministic", "mkldnn_deterministic"
    }  # fmt: skip
    torch.backends.cudnn.benchmark = True
    assert accel.numerics_mode().as_deterministic() == mode


@pytest.mark.without_npu
def test_differences_and_json():
    mode = accel.numerics_mode()
    other = dataclasses.replace(mode, num_threads=99, npu_conv_hf32=True, environment=(("A", "1"),))
    assert mode.differences(mode) == {}
    assert other.differences(mode) == {
        "num_threads": (99, mode.num_threads),
        "npu_conv_hf32": (True, None),
        "environment": ((("A", "1"),), mode.environment),
    }
    assert json.loads(json.dumps(other.to_dict())) == other.to_dict()
    assert other.to_dict()["environment"] == {"A": "1"}
    assert NumericsMode().to_dict()["environment"] is None
    assert hash(mode) == hash(accel.numerics_mode())


class TestRefused:
    def enter(self, mode):
        with accel.use_numerics_mode(mode):
            raise AssertionError("entered")

    def test_what_is_no_mode(self):
        with pytest.raises(TypeError, match="takes a NumericsMode, not dict"):
            self.enter({"num_threads": 1})

    @pytest.mark.without_npu
    def test_a_switch_that_is_not_here(self):
        before = accel.numerics_mode()
        mode = dataclasses.replace(before, num_threads=1, npu_conv_hf32=False, npu_jit_compile=True)
        with pytest.raises(accel.DeviceError) as caught:
            self.enter(mode)
        assert "not on this machine: npu_conv_hf32, npu_jit_compile" in str(caught.value)
        assert "replace(mode, npu_conv_hf32=None, npu_jit_compile=None)" in str(caught.value)
        assert accel.numerics_mode() == before

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("num_threads", 0),
            ("cuda_matmul_fp32", "bf16"),
            ("mkldnn_conv_fp32", "nonsense"),
            ("float32_matmul_precision", "nonsense"),
            ("default_dtype", "int64"),
            ("default_dtype", "nonsense"),
            ("deterministic_algorithms", "maybe"),
            ("linalg_library", "cusolver"),
            ("linalg_library", "nonsense"),
            ("sdp_priority", "nonsense"),
            ("quantized_engine", "nonsense"),
            ("opt_einsum", "greedy"),
            ("flash_implementation", "nonsense"),
            ("native_dsls_disabled", "nonsense"),
        ],
    )
    def test_a_value_that_torch_does_not_take(self, name, value):
        if torch.cuda.is_available() and value == "cusolver":
            return
        before = accel.numerics_mode()
        mode = NumericsMode(**{name: value, "cudnn_benchmark": True, "mha_fastpath": False})
        with pytest.raises(accel.DeviceError, match=f"{name} cannot be {value!r} here"):
            self.enter(mode)
        assert accel.numerics_mode() == before

    @pytest.mark.parametrize(
        "change",
        [
            {"float32_matmul_precision": "high"},
            {"float32_matmul_precision": "medium"},
            {"cudnn_allow_tf32": False},
        ],
    )
    def test_a_flag_that_the_rest_of_the_mode_undoes(self, change):
        before = accel.numerics_mode()
        with pytest.raises(ValueError, match=rf"contradicts itself: {next(iter(change))}="):
            self.enter(dataclasses.replace(before, **change))
        assert accel.numerics_mode() == before


class TestEnvironment:
    def test_is_read_and_a_difference_warns(self, monkeypatch, caplog):
        monkeypatch.setenv("MKL_CBWR", "AVX2")
        mode = accel.numerics_mode()
        assert ("MKL_CBWR", "AVX2") in mode.environment
        with accel.use_numerics_mode(mode), accel.use_numerics_mode(NumericsMode(num_threads=1)):
            assert not caplog.records
        monkeypatch.delenv("MKL_CBWR")
        with accel.use_numerics_mode(mode):
            assert "cannot be set now" in caplog.text
            assert "'MKL_CBWR': 'AVX2'" in caplog.text
