"""Policies and loss scales: values, limits, and what a checkpoint holds of them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from accel.precision import DynamicLossScale, NoLossScale, Policy

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class TestPolicy:
    @given(name=st.sampled_from(sorted(DTYPES)), gap=st.text(" \t", max_size=3))
    def test_round_trip(self, name, gap):
        policy = Policy.parse(f"{gap}compute{gap}={gap}{name}{gap}")
        assert policy == Policy(DTYPES[name])
        assert str(policy) == f"compute={name}"
        assert Policy.parse(str(policy)) == policy
        assert hash(policy) == hash(Policy(DTYPES[name]))

    @given(text=st.text(max_size=30))
    def test_everything_else_is_refused_with_what_is_allowed(self, text):
        with pytest.raises(ValueError, match="float32, bfloat16, float16") as caught:
            Policy.parse(text)
        assert repr(text) in str(caught.value)

    @pytest.mark.parametrize(
        "text",
        ["bfloat16", "compute", "compute=", "compute=float64", "compute=half", "Compute=float16",
         "com pute=float16", "compute=b float16", "params=float32,compute=float16",
         "compute=float16,", "compute=float16=float16", "compute:float16"],
    )  # fmt: skip
    def test_near_misses(self, text):
        with pytest.raises(ValueError, match="write compute=NAME"):
            Policy.parse(text)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.int8, torch.float8_e4m3fn, "float16"])
    def test_dtypes_that_no_policy_computes_in(self, dtype):
        with pytest.raises(ValueError, match="computes in one of"):
            Policy(dtype)


class TestDynamicLossScale:
    def test_grows_backs_off_and_starts_counting_anew(self):
        scale = DynamicLossScale(8.0, growth_interval=3)
        seen = []
        for finite in [True, True, False, True, True, True, True, True, True, False]:
            scale.adjust(finite=finite)
            seen.append(scale.value)
        assert seen == [8, 8, 4, 4, 4, 8, 8, 8, 16, 8]

    def test_has_a_floor(self):
        scale = DynamicLossScale(4.0, minimum=2.0)
        for _ in range(5):
            scale.adjust(finite=False)
        assert scale.value == 2.0

    def test_stays_finite(self):
        scale = DynamicLossScale(2.0**1023, growth_interval=1)
        scale.adjust(finite=True)
        assert scale.value == 2.0**1023

    @pytest.mark.parametrize(
        "arguments",
        [
            {"initial": 0.5},
            {"initial": math.inf},
            {"initial": math.nan},
            {"minimum": 0.0},
            {"minimum": -1.0},
            {"minimum": math.nan},
            {"growth_factor": 1.0},
            {"growth_factor": math.nan},
            {"backoff_factor": 1.0},
            {"backoff_factor": 0.0},
            {"growth_interval": 0},
            {"growth_interval": math.nan},
        ],
    )
    def test_refuses_what_makes_no_sense(self, arguments):
        with pytest.raises(ValueError, match="need "):
            DynamicLossScale(**arguments)

    def test_state(self):
        scale = DynamicLossScale(8.0, growth_interval=2)
        scale.adjust(finite=True)
        other = DynamicLossScale(growth_interval=2)
        other.load_state_dict(scale.state_dict())
        for finite in [True, False, True, True]:
            scale.adjust(finite=finite)
            other.adjust(finite=finite)
            assert other.value == scale.value

    @pytest.mark.parametrize(
        "state",
        [
            {},
            {"value": 8.0},
            {"value": 8.0, "steps_since_overflow": 0, "more": 1},
            {"value": 0.0, "steps_since_overflow": 0},
            {"value": math.nan, "steps_since_overflow": 0},
            {"value": math.inf, "steps_since_overflow": 0},
            {"value": "8", "steps_since_overflow": 0},
            {"value": None, "steps_since_overflow": 0},
            {"value": 8.0, "steps_since_overflow": -1},
            {"value": 8.0, "steps_since_overflow": 2.5},
        ],
    )
    def test_a_wrong_state_changes_nothing(self, state):
        scale = DynamicLossScale(16.0)
        with pytest.raises(ValueError, match="checkpoint"):
            scale.load_state_dict(state)
        assert scale.state_dict() == {"value": 16.0, "steps_since_overflow": 0}


def test_no_loss_scale():
    scale = NoLossScale()
    scale.adjust(finite=False)
    assert (scale.value, scale.state_dict()) == (1.0, {})
    scale.load_state_dict({})
    with pytest.raises(ValueError, match="no loss scale"):
        scale.load_state_dict({"value": 8.0})
