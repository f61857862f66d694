"""torch's float32 precision, kept twice: its older getters raise once the two disagree."""

from __future__ import annotations

import dataclasses
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import accel
from accel.devices import NumericsMode, float32
from accel.devices.switches import SWITCHES

B = torch.backends
C = torch._C


def float32_state():
    """Which entries inherit, too; what no setter of torch can say again counts as tf32."""
    state = float32.Float32State.capture()
    entries = {k: "tf32" if v == "untouched" else v for k, v in state.entries.items()}
    return dataclasses.replace(state, entries=entries)


def legacy_getters():
    def ask(getter):
        try:
            return getter()
        except RuntimeError as error:
            return type(error)

    return [
        ask(torch.get_float32_matmul_precision),
        ask(lambda: B.cuda.matmul.allow_tf32),
        ask(lambda: B.cudnn.allow_tf32),
    ]


ENTRIES = [
    (backend, operator)
    for backend, operators in {"generic": ["all"], "cuda": [], "mkldnn": []}.items()
    for operator in operators or ["all", "matmul", "conv", "rnn"]
]
STEPS = st.one_of(
    st.sampled_from(["highest", "high", "medium"]).map(
        lambda value: partial(torch.set_float32_matmul_precision, value)
    ),
    st.booleans().map(lambda value: partial(C._set_cudnn_allow_tf32, value)),
    st.tuples(st.sampled_from(ENTRIES), st.sampled_from(["ieee", "tf32", "none"])).map(
        lambda step: partial(float32.write, *step[0], step[1])
    ),
)


class TestFloat32Apis:
    """torch keeps this state twice, and its older getters raise once the two disagree."""

    MIXES = (
        ("cuda_matmul_fp32", "tf32"),
        ("mkldnn_matmul_fp32", "bf16"),
        ("cudnn_conv_fp32", "ieee"),
    )

    @pytest.mark.parametrize(("name", "value"), MIXES)
    def test_a_mix_is_read_and_survives(self, name, value):
        SWITCHES[name].set(value)
        mixed, legacy = accel.numerics_mode(), legacy_getters()
        assert getattr(mixed, name) == value
        assert None in (mixed.float32_matmul_precision, mixed.cudnn_allow_tf32)
        assert RuntimeError in legacy
        with accel.use_numerics_mode(NumericsMode(**{name: "none"})):
            pass
        assert (accel.numerics_mode(), legacy_getters()) == (mixed, legacy)
        with accel.use_numerics_mode(mixed):
            assert accel.numerics_mode() == mixed

    @pytest.mark.parametrize(("name", "value"), MIXES)
    def test_a_recorded_mix_is_reproduced_and_left(self, name, value):
        before, legacy = accel.numerics_mode(), legacy_getters()
        state = float32.Float32State.capture()
        SWITCHES[name].set(value)
        mixed = accel.numerics_mode()
        state.restore()
        assert legacy_getters() == legacy
        with accel.use_numerics_mode(mixed):
            assert accel.numerics_mode() == mixed
        assert (accel.numerics_mode(), legacy_getters()) == (before, legacy)

    def test_what_inherits_goes_on_inheriting(self):
        B.fp32_precision = "ieee"
        mode = NumericsMode(cuda_matmul_fp32="tf32", mkldnn_conv_fp32="bf16")
        with accel.use_numerics_mode(mode):
            pass
        for value in ("ieee", "tf32"):
            B.fp32_precision = value
            assert B.cuda.matmul.fp32_precision == B.mkldnn.conv.fp32_precision == value

    def test_cudnns_first_state_is_put_back_as_what_it_computes(self):
        with accel.use_numerics_mode(NumericsMode(cudnn_conv_fp32="ieee")):
            assert B.cudnn.conv.fp32_precision == "ieee"
        assert (B.cudnn.conv.fp32_precision, B.cudnn.allow_tf32) == ("tf32", True)

    def test_reading_leaves_cudnns_first_state_alone(self, run_python):
        result = run_python(
            """
            import torch, accel
            for mode in (accel.numerics_mode().as_deterministic(),
                         accel.NumericsMode(mkldnn_conv_fp32="tf32")):
                with accel.use_numerics_mode(mode): pass
            torch.backends.fp32_precision = "ieee"
            print(torch.backends.cudnn.conv.fp32_precision)
            torch.backends.fp32_precision = "none"
            state = accel.devices.float32.Float32State.capture()
            torch.backends.cudnn.conv.fp32_precision = "ieee"
            state.restore()
            print(torch.backends.cudnn.conv.fp32_precision, torch.backends.cudnn.allow_tf32)
            """
        )
        assert result.lines[1] == "tf32 True"
        if torch.__version__ >= "2.13":  # before, that state does not inherit
            assert result.lines[0] == "ieee"

    @given(steps=st.lists(STEPS, max_size=6), inside=st.lists(STEPS, max_size=6))
    @settings(max_examples=200, deadline=None)
    def test_any_state_is_read_without_a_trace_and_restored(self, steps, inside):
        def observed():
            return ({key: float32.read(*key) for key in ENTRIES}, legacy_getters())

        for step in steps:
            step()
        before, state = observed(), float32.Float32State.capture()
        own = float32_state()
        assert observed() == before
        for step in inside:
            step()
        state.restore()
        assert observed() == before
        restored = float32_state()
        assert restored.matmul_precision == own.matmul_precision
        assert restored.cudnn_allow_tf32 == own.cudnn_allow_tf32

    def test_what_was_pinned_stays_pinned(self):
        B.fp32_precision = B.cudnn.conv.fp32_precision = "ieee"
        with accel.use_numerics_mode(NumericsMode(cudnn_conv_fp32="tf32")):
            assert B.cudnn.conv.fp32_precision == "tf32"
        B.fp32_precision = "tf32"
        assert B.cudnn.conv.fp32_precision == "ieee"

    def test_set_float32_matmul_precision_and_back(self):
        torch.set_float32_matmul_precision("high")
        high = accel.numerics_mode()
        torch.set_float32_matmul_precision("highest")
        with accel.use_numerics_mode(high):
            assert legacy_getters() == ["high", True, True]
        assert legacy_getters() == ["highest", False, True]
