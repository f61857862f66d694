"""Policies as values, and loss scales: limits, and what a checkpoint holds of them."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from accel.precision import DynamicLossScale, NoLossScale, Policy
from accel.precision.policy import Rule

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class TestPolicy:
    @settings(deadline=None)
    @given(name=st.sampled_from(sorted(DTYPES)), gap=st.text(" \t", max_size=3))
    def test_one_dtype(self, name, gap):
        policy = Policy.parse(f"{gap}compute{gap}={gap}{name}{gap}")
        assert policy == Policy(DTYPES[name])
        assert str(policy) == f"compute={name}"
        assert Policy.parse(str(policy)) == policy
        assert hash(policy) == hash(Policy(DTYPES[name]))

    @pytest.mark.parametrize("params", DTYPES)
    @pytest.mark.parametrize("compute", [None, *DTYPES])
    @pytest.mark.parametrize("output", [None, *DTYPES])
    def test_the_defaults_are_jmps(self, params, compute, output):
        given = {"params": params, "compute": compute, "output": output}
        text = ",".join(f"{key}={name}" for key, name in given.items() if name is not None)
        policy = Policy.parse(text)
        compute = compute or params
        assert policy.params == DTYPES[params]
        assert policy.compute == DTYPES[compute]
        assert policy.output == DTYPES[output or compute]
        assert (policy.rules, policy.emulate) == ((), False)
        assert Policy.parse(str(policy)) == policy

    @pytest.mark.parametrize(
        "text", ["p=f32,c=bf16,o=f16", "params=fp32, compute=bf16, output=fp16", "c=bf16,o=f16"]
    )
    def test_short_names(self, text):
        assert Policy.parse(text) == Policy(torch.bfloat16, torch.float32, torch.float16)

    @pytest.mark.parametrize(
        ("argument", "does"),
        [("compute", "computes"), ("params", "keeps parameters"), ("output", "returns")],
    )
    @pytest.mark.parametrize("dtype", [torch.float64, torch.int8, torch.float8_e4m3fn, "float16"])
    def test_dtypes_that_no_policy_has(self, argument, does, dtype):
        message = f"a policy {does} in one of float32, bfloat16, float16, not in"
        with pytest.raises(ValueError, match=message):
            Policy(**{argument: dtype})

    def test_cannot_be_changed(self):
        with pytest.raises(dataclasses.FrozenInstanceError):
            Policy(torch.float16).compute = torch.float32

    def test_copies(self):
        policy = Policy.parse("fp8_block,emulate; head=float32")
        assert pickle.loads(pickle.dumps(policy)) == copy.deepcopy(policy) == policy
        changed = dataclasses.replace(policy, emulate=False)
        assert (changed.emulate, changed.rules) == (False, policy.rules)

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"rules": "head=float32"}, TypeError, "a sequence of Rule, not 'head=float32'"),
            ({"rules": ["head=float32"]}, TypeError, "a sequence of Rule"),
            ({"emulate": 1}, TypeError, "True or False, not 1"),
            (
                {"rules": [Rule("float32", "head"), Rule("float16", "head")]},
                ValueError,
                "two rules match head: head=float32 and head=float16; .*remove one",
            ),
        ],
    )
    def test_arguments_that_make_no_sense(self, arguments, error, message):
        with pytest.raises(error, match=message):
            Policy(torch.bfloat16, **arguments)


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
        scale = DynamicLossScale(2.0**127, growth_interval=1)
        scale.adjust(finite=True)
        assert scale.value == 2.0**127

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
