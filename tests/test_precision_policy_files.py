"""Policies in TOML and JSON files: round trips, and one clear error for what is wrong."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accel.precision import Policy
from accel.precision.policy import PRESETS, Rule

KINDS = [
    pytest.param("toml", marks=pytest.mark.skipif(sys.version_info < (3, 11), reason="no tomllib")),
    "json",
]
TOML = """\
# A policy.
preset = "fp8_block"
compute = "fp16"
output = "f32"
emulate = true

[[rules]]
name = "*.mlp.*"
type = "linear"
role = "weight"
gemm = "forward"
format = "e4m3:row"

[[rules]] # the head
name = "head"
format = "float32"
optional = true

[types]
conv = "bf16"
"""
JSON = """\
{
  "preset": "fp8_block", "compute": "fp16",
  "output": "f32",
  "emulate": true,
  "rules": [
    {"name": "*.mlp.*", "type": "linear", "role": "weight", "gemm": "forward",
     "format": "e4m3:row"},
    {
      "name": "head",
      "format": "float32",
      "optional": true
    }
  ],
  "types": {"conv": "bf16"}
}
"""
TEXTS = {"toml": TOML, "json": JSON}
EXPECTED = (
    "fp8_block,compute=fp16,output=fp32,emulate; *.mlp.*<linear>/weight@forward=e4m3:row; "
    "head?=f32; <conv>=bf16"
)


def written(folder: Path, kind: str, text: str) -> Path:
    path = folder / f"policy.{kind}"
    path.write_text(text)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_says_what_the_notation_says(tmp_path, kind):
    path = written(tmp_path, kind, TEXTS[kind])
    assert Policy.load(path) == Policy.load(str(path)) == Policy.parse(EXPECTED)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("policy", [*PRESETS.values(), Policy(), Policy.parse(EXPECTED)], ids=str)
def test_saved_and_loaded(tmp_path, kind, policy):
    path = tmp_path / f"policy.{kind}"
    policy.save(path)
    assert Policy.load(path) == policy
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.text(st.characters(codec="utf-8"), min_size=1))
def test_any_name_of_a_module(tmp_path, kind, name):
    policy = Policy(torch.bfloat16, rules=[Rule("float32", name)])
    policy.save(tmp_path / f"policy.{kind}")
    assert Policy.load(tmp_path / f"policy.{kind}") == policy


def test_another_ending_is_refused(tmp_path):
    message = r"a policy's file ends in .toml or .json, not as 'policy.yaml' does"
    with pytest.raises(ValueError, match=message):
        Policy().save(tmp_path / "policy.yaml")
    (tmp_path / "policy.yaml").write_text("compute: float32")
    with pytest.raises(ValueError, match=message):
        Policy.load(tmp_path / "policy.yaml")


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(OSError, match="missing"):
        Policy().save(tmp_path / "missing" / "policy.json")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError):
        Policy.load(tmp_path / "policy.json")


def test_toml_where_python_cannot_read_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 0))
    path = written(tmp_path, "toml", TOML)
    with pytest.raises(ValueError, match=r"from 3\.11 on, and this is 3\.10: write .* as JSON"):
        Policy.load(path)


# What is changed in the texts above, and the error: its line in TOML and JSON, and its words.
CHANGES = [
    ('"fp16"', '"fp17"', (3, 2), "compute is one of float32, bfloat16, float16, not 'fp17'"),
    ('"fp8_block"', '"fp8_blocks"', (2, 2), "'fp8_blocks' is no preset: .*did you mean fp8_block"),
    ("output", "ouput", (4, 3), r"unknown key 'ouput' \(did you mean output.*; known: preset"),
    ('"e4m3:row"', '"e4m3:raw"', (12, 7), "'raw' is no part of an eight-bit format"),
    ("gemm", "gem", (11, 6), r"unknown key 'gem' \(did you mean gemm\?\); known: name, type, role"),
    ('"weight"', '"weights"', (10, 6), r"role is one of .*not 'weights' \(did you mean weight"),
    ('"forward"', '"backward"', (11, 6), "gemm is one of forward, data_gradient, weight_gradient"),
    ('"linear"', '"nn.Linear"', (9, 6), "name of a class, such as linear or Conv2d"),
    ('"head"', '""', (15, 9), "a rule's name must not be empty"),
    ('"head"', "3", (15, 9), r"rules\[1\].name must be text, not 3"),
    ('"float32"', "32", (16, 10), r"rules\[1\].format must be text, not 32"),
    ('"bf16"', '"hif8:1x32"', (20, 14), "MX blocks hold"),
    ('"bf16"', "16", (20, 14), "types.conv must be the text of a format, not 16"),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("old", "new", "lines", "words"), CHANGES)
def test_what_is_wrong_and_in_which_line(tmp_path, kind, old, new, lines, words):
    assert TEXTS[kind].count(old) == 1
    path = written(tmp_path, kind, TEXTS[kind].replace(old, new))
    line = lines[kind == "json"]
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}, line {line}: .*{words}"):
        Policy.load(path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("key", ["emulate", "optional"])
def test_flags_are_no_text(tmp_path, kind, key):
    text = re.sub(rf"({key}\W* )true", r'\1"yes"', TEXTS[kind])
    path = written(tmp_path, kind, text)
    with pytest.raises(ValueError, match=f"{key} must be true or false, not 'yes'"):
        Policy.load(path)


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        ("json", '{"compute": "f32",\n "compute": "f16"}', "line 2: 'compute' is given twice, fir"),
        ("json", '{"rules": [{"format": "f32"}, {"format":\n"f32", "format": "f16"}]}',
         "line 2: 'format' is given twice, first in line 1"),
        ("json", '{"types": {"conv": "f32",\n"conv": "f16"}}', "line 2: 'conv' is given twice"),
        ("json", '{"compute": "f32",\n}', "line [12]: "),
        ("json", "", "line 1: Expecting value"),
        ("json", '{"compute": bf16}', "Expecting value in `.*bf16}`; text stands in double quotes"),
        ("json", "[]", "a policy is an object with keys preset, params.*, not a list"),
        ("json", "{}", "says nothing: give one of preset"),
        ("json", '{"rules": {}}', "rules must be a list of rules, not {}"),
        ("json", '{"rules": ["head=float32"]}', r"rules\[0\] must be a rule with keys name"),
        ("json", '{"rules": [\n{"name": "head"}]}', "line 2: the rule gives no format"),
        ("json", '{"types": []}', "types must be a table of types, not"),
        ("json", '{"compute": 16}', "compute must be text, not 16"),
        ("json", '{"rules": [{"format": "f32"}, {"format": "f16"}]}', r"two rules match \*"),
        ("json", "[" * 100_000, "nested too deep|Expecting value"),
        ("toml", 'compute = "f32"\ncompute = "f16"\n', "line 2: Cannot overwrite a value"),
        ("toml", 'compute = "f32\n', "line 1: "),
        ("toml", "compute float32", "line 1: "),
        ("toml", "compute = bf16", "Invalid value in `compute = bf16`; text stands in double quot"),
        ("toml", '[[rule]]\nformat = "f32"\n', "line 1: unknown key 'rule' .*did you mean rules"),
        ("toml", "", "says nothing"),
        ("toml", "# nothing\n[types]\n", "says nothing"),
        ("toml", '[rules]\nname = "a"\n', r"line 1: rules must be tables headed \[\[rules\]\]"),
        ("toml", '[[rules]]\nname = "a"\n\n[[rules]]\nformat = "f32"\n', "line 1: the rule gives"),
        ("toml", 'rules = [{ name = "a", fromat = "f32" }]\n', "line 1: unknown key 'fromat'"),
        ("toml", '[tpyes]\nconv = "f32"\n', "line 1: unknown key 'tpyes'.*did you mean types"),
    ],
)  # fmt: skip
def test_what_is_no_policy(tmp_path, kind, text, words):
    if kind == "toml" and sys.version_info < (3, 11):
        pytest.skip("no tomllib")
    path = written(tmp_path, kind, text)
    with pytest.raises(ValueError, match=words) as caught:
        Policy.load(path)
    assert str(caught.value).startswith(str(path))


def test_a_file_that_is_no_text(tmp_path):
    (tmp_path / "policy.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="is no text in UTF-8"):
        Policy.load(tmp_path / "policy.json")


@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_file_is_refused_or_says_less(tmp_path, kind):
    """Cut anywhere, it is an error or a policy that the remaining keys spell; nothing else."""
    for length in range(len(TEXTS[kind].rstrip())):
        path = written(tmp_path, kind, TEXTS[kind][:length])
        try:
            policy = Policy.load(path)
        except ValueError as error:
            refused = str(error)
            assert refused.startswith(str(path))
        else:
            assert kind == "toml", "a truncated object of JSON is never valid"
            assert policy.rules[-1] == PRESETS["fp8_block"].rules[-1]


def test_json_is_what_other_programs_read(tmp_path):
    Policy.parse(EXPECTED).save(tmp_path / "policy.json")
    values = json.loads((tmp_path / "policy.json").read_text())
    assert values["rules"][0] == {
        "name": "*.mlp.*",
        "type": "linear",
        "role": "weight",
        "gemm": "forward",
        "format": "float8_e4m3fn:row",
    }
