"""The notation of policies: what is read, what is written, what is refused."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from accel.precision import Policy
from accel.precision.operand import GEMMS, OPERANDS, SLOTS, OperandFormat
from accel.precision.policy import PRESETS, Rule
from accel_kernels.fp8.formats import BLOCKS, E4M3, E5M2, FORMATS, HIF8, Scaling

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def scaled(number, granularity="tensor", history=0, **more):
    return OperandFormat(scaling=Scaling(number, granularity, **more), history=history)


@st.composite
def formats(draw):
    if draw(st.booleans()):
        return OperandFormat(dtype=draw(st.sampled_from(DTYPES)))
    number = draw(st.sampled_from(list(FORMATS.values())))
    granularity = draw(st.sampled_from([b for b in BLOCKS if (number, b) != (HIF8, "1x32")]))
    scales = "power_of_two" if granularity == "1x32" else None
    history = draw(st.integers(0, 2000)) if granularity == "tensor" else 0
    return scaled(
        number,
        granularity,
        history,
        scales=scales or draw(st.sampled_from(["float32", "power_of_two"])),
        target=draw(st.floats(0.0, number.largest)),
        epsilon=draw(st.floats(0.0, 1e6, exclude_min=True) | st.just(Scaling.epsilon)),
    )


@st.composite
def rules(draw):
    gemm = draw(st.sampled_from([None, *GEMMS]))
    roles = OPERANDS[gemm] if gemm else ("input", "weight", "gradient")
    words = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
    names = st.sampled_from(["*", "head", "output", "p", "a.*|b", "x?"]) | words
    return Rule(
        draw(formats()),
        name=draw(names),
        type=draw(
            st.sampled_from(["", "linear", "Conv2d"]) | st.from_regex(r"[^\W\d]\w*", fullmatch=True)
        ),
        role=draw(st.sampled_from([None, *roles])),
        gemm=gemm,
        optional=draw(st.booleans()),
    )


@st.composite
def policies(draw):
    params, compute, output = (draw(st.sampled_from(DTYPES)) for _ in range(3))
    chosen = draw(st.lists(rules(), max_size=4, unique_by=lambda rule: rule.selector))
    return Policy(compute, params, output, chosen, draw(st.booleans()))


class TestRoundTrip:
    @settings(deadline=None)
    @given(policy=policies())
    def test_any_policy(self, policy):
        assert Policy.parse(str(policy)) == policy

    @pytest.mark.parametrize("name", PRESETS)
    def test_presets(self, name):
        assert Policy.parse(name) == Policy.parse(str(PRESETS[name])) == PRESETS[name]

    @settings(deadline=None)
    @given(text=st.text(max_size=30) | st.text('ap=;,{}<>/@?:."\\ *float16', max_size=30))
    def test_any_text_is_a_policy_or_refused_with_a_message_that_quotes_it(self, text):
        refusal = None
        try:
            policy = Policy.parse(text)
        except ValueError as error:
            refusal = str(error)
        if refusal is None:
            assert Policy.parse(str(policy)) == policy
        else:
            assert refusal.startswith(f"the policy {text!r} is not understood: ")


class TestReading:
    def test_the_map_of_types(self):
        policy = Policy.parse("{linear: fp16, conv: bf16, embedding: fp32}")
        assert policy == Policy(
            rules=[
                Rule(torch.float16, type="linear"),
                Rule(torch.bfloat16, type="conv"),
                Rule(torch.float32, type="embedding"),
            ]
        )
        assert str(policy) == "<linear>=float16; <conv>=bfloat16; <embedding>=float32"
        quoted = "{'linear': 'fp16', 'conv': 'bf16', 'embedding': 'fp32'}"
        assert Policy.parse(quoted) == Policy.parse(quoted.replace("'", '"')) == policy

    def test_every_part(self):
        text = (
            "params=f32,compute=bf16,output=f32,emulate; head ?= f32;"
            " *.mlp.* < Linear > / weight @ forward = e4m3 : row : pow2;"
            ' {conv: bf16, norm/input@forward ?: f16}; "a b"=hif8:target=15:epsilon=1e-4\n'
            "/gradient=e5m2:delayed=16 ; @forward=f16"
        )
        assert Policy.parse(text) == Policy(
            torch.bfloat16,
            torch.float32,
            torch.float32,
            [
                Rule("float32", "head", optional=True),
                Rule(
                    scaled(E4M3, "row", scales="power_of_two"),
                    "*.mlp.*",
                    "Linear",
                    "weight",
                    "forward",
                ),
                Rule("bfloat16", type="conv"),
                Rule("float16", type="norm", role="input", gemm="forward", optional=True),
                Rule(scaled(HIF8, target=15.0, epsilon=1e-4), "a b"),
                Rule(scaled(E5M2, history=16), role="gradient"),
                Rule("float16", gemm="forward"),
            ],
            emulate=True,
        )

    def test_lines(self):
        policy = Policy.parse(
            """
            compute=bf16,output=f32

            head=f32;
            {linear: f16,
             conv: f16}
            """
        )
        assert str(policy) == (
            "compute=bfloat16,output=float32; head=float32; <linear>=float16; <conv>=float16"
        )

    def test_a_module_named_like_a_setting_is_quoted(self):
        policy = Policy.parse('"output"=float32')
        assert policy == Policy(rules=[Rule("float32", "output")])
        assert str(policy) == '"output"=float32'

    def test_rules_come_before_those_of_a_preset(self):
        policy = Policy.parse("fp8_block,emulate; <linear>/weight=e4m3:tensor")
        assert policy.rules[0] == Rule(scaled(E4M3), type="linear", role="weight")
        assert policy.rules[1:] == tuple(
            rule for rule in PRESETS["fp8_block"].rules if rule.selector != "<linear>/weight"
        )
        assert (policy.compute, policy.emulate) == (torch.bfloat16, True)

    def test_what_a_preset_keeps_in_its_compute_dtype_follows_another(self):
        changed = Policy.parse("fp8_block,compute=fp16,output=fp32; x=bf16")
        assert (changed.compute, changed.output) == (torch.float16, torch.float32)
        kept, own = Rule(torch.float16, type="head", optional=True), Rule(torch.bfloat16, "x")
        assert changed.rules[:2] == (own, kept)
        assert changed.rules[-2:] == PRESETS["fp8_block"].rules[-2:]
        same = Policy.parse("fp8_block,compute=fp16; <head>?=bf16")
        assert same.rules[0] == PRESETS["fp8_block"].rules[0]

    def test_mx_scales_are_powers_of_two_unasked(self):
        mx = scaled(E4M3, "1x32", scales="power_of_two")
        assert Policy.parse("a=e4m3:1x32").rules == (Rule(mx, "a"),)
        assert Policy.parse("a=e4m3:1x32:pow2").rules == (Rule(mx, "a"),)


class TestPresets:
    """Their recipes, slot by slot."""

    @pytest.mark.parametrize(
        ("name", "activations", "weights", "gradients"),
        [
            ("fp8_tensorwise", scaled(E4M3), scaled(E4M3), scaled(E5M2)),
            ("fp8_rowwise", *[scaled(E4M3, "row", scales="power_of_two")] * 3),
            ("fp8_block", scaled(E4M3, "1x128"), scaled(E4M3, "128x128"), scaled(E4M3, "1x128")),
            ("mxfp8", *[scaled(E4M3, "1x32", scales="power_of_two")] * 3),
            (
                "hif8",
                scaled(HIF8, target=15.0),
                scaled(HIF8, target=15.0),
                scaled(HIF8, target=224.0),
            ),
            (
                "fp8_delayed",
                scaled(E4M3, history=1024),
                scaled(E4M3, history=1024),
                scaled(E5M2, history=1024),
            ),
        ],
    )
    def test_eight_bits(self, name, activations, weights, gradients):
        model = nn.ModuleDict(
            {
                "up": nn.Linear(32, 64),
                "gate": nn.Linear(32, 4),
                "lm_head": nn.Linear(64, 8),
                "norm": nn.LayerNorm(32),
            }
        ).to("meta")
        plans = Policy.parse(name).resolve(model)
        expected = {"input": activations, "weight": weights, "gradient": gradients}
        assert plans["up"].slots == {slot: expected[slot.role] for slot in SLOTS}
        assert {plan.compute for plan in plans.values()} == {torch.bfloat16}
        for kept in ("gate", "lm_head"):
            assert set(plans[kept].slots.values()) == {OperandFormat(dtype=torch.bfloat16)}
        assert plans["norm"].slots == {}

    def test_16_bits(self):
        assert PRESETS["bf16"] == Policy(torch.bfloat16)
        assert PRESETS["fp16"] == Policy(torch.float16)


class TestRefusing:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "write compute=NAME, where NAME is one of float32, bfloat16, float16, a preset"),
            (" ; ;\n", "write compute=NAME"),
            ("bfloat16", "'bfloat16' is no preset: .*did you mean bf16"),
            ("fp8_rowise", r"did you mean fp8_rowwise"),
            ("compute", "'compute' is no preset"),
            ("compute=", "compute is one of float32, bfloat16, float16, not ''"),
            ("compute=float64", "not 'float64'"),
            ("compute=half", "not 'half'"),
            ("compute=b float16", r"not 'b float16' \(did you mean bfloat16"),
            ("compute=float16=float16", "not 'float16=float16'"),
            ("compute=float16,", "'' is no preset"),
            ("compute=float16,compute=float16", "compute is given twice"),
            ("bf16,fp16", "preset is given twice"),
            ("emulate,emulate", "emulate is given twice"),
            ("compute=float8_e4m3fn", "compute is one of .*; eight bits are for the operands"),
            ("compute=fp8", "not 'fp8'; eight bits .*preset such as fp8_rowwise"),
            ("compute=fp8_block", "not 'fp8_block'; eight bits .*<linear>=float8_e4m3fn:row"),
            ("{linear: fp8}", "'fp8' is no format .*did you mean float8_e4m3fn:row or float8_e5m2"),
            ("policy.toml", "'policy.toml' looks like a file, which Policy.load reads"),
            ("Compute=float16", "'Compute=float16' is no setting: .*did you mean compute"),
            ("compue=float16", "did you mean compute"),
            ("compute=bf16,ouput=f32", r"'ouput=f32' is no setting.*did you mean output"),
            ("compute=bf16; output=f32", "comes too late for a setting: .*\"output\""),
            ("emulate=yes", "'emulate=yes' is no setting"),
            ("compute:float16", "'compute:float16' is no preset"),
            ("a.b", "'a.b' is no preset"),
            ("bf16; a.b", "'a.b' is no rule: write NAME=FORMAT"),
            ("=float32", "'=float32' is no rule"),
            ("?=float32", "is no rule"),
            ("a b=float32", "'a b=float32' is no rule: .*double quotes"),
            ("a??=float32", "is no rule: .*double quotes"),
            ("<two words>=float32", "is no rule"),
            ('"a=float32', "a quotation mark is not closed"),
            (r'"\x"=float32', r"is no string of JSON, .*Invalid \\escape.*backslash twice"),
            ("{linear: fp16", "braces do not match"),
            ("{linear: fp16}}", "braces do not match"),
            ("{linear: fp16} conv=bf16", "does not end with a brace"),
            ("{}", "'' is no entry of a map"),
            ("{linear: fp16,}", "'' is no entry of a map"),
            ("{linear=fp16}", "'linear=fp16' is no entry of a map: write {linear: fp16, conv"),
            ("{linear: fp16, linear: bf16}", "the map gives <linear> twice"),
            ("a=f32; a=bf16", "two rules match a: a=float32 and a=bfloat16"),
            ("a=flaot32", r"'flaot32' is no format of a policy: .*did you mean float32"),
            ("a=", "'' is no format"),
            ("a=fp8", "'fp8' is no format of a policy: write one of float32, bfloat16"),
            ("a=bf16:row", "bfloat16 has no scales"),
            ("a=e4m3:rows", r"'rows' is no part of an eight-bit format: .*did you mean row"),
            ("a=e4m3:1x64", r"'1x64' is no part of .*did you mean 1x"),
            ("a=e4m3:row:1x128", "gives granularity twice"),
            ("a=e4m3:pow2:pow2", "gives pow2 twice"),
            ("a=e4m3:pow2=yes", "'pow2=yes' is no part"),
            ("a=e4m3:delayed", "'delayed' is no part"),
            ("a=e4m3:delayed=0", "delayed must be a number of steps from 1 on, not '0'"),
            ("a=e4m3:delayed=1.5", "not '1.5'"),
            ("a=e4m3:target=500", "the target must be from 0 to float8_e4m3fn's largest, 448"),
            ("a=e4m3:target=big", "target must be a positive number, not 'big'"),
            ("a=e4m3:target=nan", "target must be a positive number, not 'nan'"),
            ("a=e4m3:target=0", "target must be a positive number, not '0'"),
            ("a=e4m3:epsilon=-1", "epsilon must be a positive number"),
            ("a=hif8:1x32", "MX blocks hold float8_e4m3fn or float8_e5m2, not hifloat8"),
            ("a=e4m3:row:delayed=16", "delayed scaling has one scale for the tensor, so it does"),
            ("a=e4m3:1x32:delayed=2", "does not go with 1x32: write float8_e4m3fn:delayed=2"),
            ("a/wieght=f32", r"role is one of input, weight, gradient, .*did you mean weight"),
            ("a@backward=f32", "gemm is one of forward, data_gradient, weight_gradient"),
            ("a/gradient@forward=f32", "forward has the operands input and weight, so no gradient"),
        ],
    )  # fmt: skip
    def test_text(self, text, message):
        with pytest.raises(ValueError, match=message) as caught:
            Policy.parse(text)
        assert str(caught.value).startswith(f"the policy {text!r} is not understood: ")

    @pytest.mark.parametrize("text", [None, 16, torch.bfloat16, {"linear": "fp16"}, b"bf16"])
    def test_what_is_no_text(self, text):
        with pytest.raises(TypeError, match=re.escape(f"not {text!r}")):
            Policy.parse(text)

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"format": 16}, TypeError, "a format is text such as"),
            ({"format": torch.float64}, ValueError, "not in torch.float64; eight bits need scales"),
            ({"format": torch.float8_e4m3fn}, ValueError, "eight bits need scales: float8_e4m3fn"),
            ({"format": OperandFormat()}, ValueError, "either a dtype or a scaling"),
            (
                {"format": OperandFormat(torch.float16, Scaling(E4M3))},
                ValueError,
                "either a dtype or a scaling",
            ),
            (
                {"format": OperandFormat(torch.float16, history=3)},
                ValueError,
                "delayed scaling needs eight bits",
            ),
            ({"format": scaled(E4M3, history=-1)}, ValueError, "a whole number of steps, not -1"),
            ({"format": scaled(E4M3, history=1.5)}, ValueError, "a whole number of steps, not 1.5"),
            ({"format": scaled(HIF8, "1x32", scales="power_of_two")}, ValueError, "MX blocks hold"),
            ({"format": Scaling(E4M3, "1x32")}, ValueError, "power-of-two scales"),
            ({"format": "float32", "name": ""}, ValueError, "must not be empty"),
            ({"format": "float32", "name": None}, TypeError, "are text, not None"),
            ({"format": "float32", "type": nn.Linear}, TypeError, "are text"),
            ({"format": "float32", "type": "nn.Linear"}, ValueError, "name of a class"),
            ({"format": "float32", "role": "bias"}, ValueError, "role is one of"),
            ({"format": "float32", "role": 3}, ValueError, "role is one of .*not 3"),
            ({"format": "float32", "optional": "yes"}, TypeError, "True or False, not 'yes'"),
        ],
    )
    def test_arguments_of_a_rule(self, arguments, error, message):
        with pytest.raises(error, match=message):
            Rule(**arguments)
