"""Rules of the user's own: what they match, and what a wrong file says."""

import json

import pytest

from accel.convert.engine import convert_source
from accel.convert.options import Options
from accel.convert.rules.user_rules import read

SYNC = {
    "id": "USR001",
    "match": "mylib.sync_gpu",
    "replace": "accel.synchronize",
    "imports": ["accel"],
}


def run(program: str, *rules: dict, **options):
    asked = Options(user_rules=json.dumps(rules), **options)
    result = convert_source(program.encode(), "a.py", asked)
    assert result.error == ""
    return result


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("import mylib\nmylib.sync_gpu()\n", "import mylib\nimport accel\naccel.synchronize()\n"),
        (
            "import mylib as m\nf = m.sync_gpu\n",
            "import mylib as m\nimport accel\nf = accel.synchronize\n",
        ),
        (
            "from mylib import sync_gpu as s\ns(1)\n",
            "from mylib import sync_gpu as s\nimport accel\naccel.synchronize(1)\n",
        ),
    ],
)
def test_a_name_is_matched_by_any_alias(before, after) -> None:
    result = run(before, SYNC)
    assert result.after.decode() == after
    assert {f.rule for f in result.findings if f.action == "convert"} == {"USR001"}
    assert run(after, SYNC).after.decode() == after


@pytest.mark.parametrize(
    ("match", "line"),
    [
        ("torch.npu.set_compile_mode", "torch.npu.set_compile_mode(jit_compile=False)"),
        ("torch_npu.npu.set_compile_mode", "torch.npu.set_compile_mode(jit_compile=False)"),
        ("torch_npu.npu_swiglu", "torch_npu.npu_swiglu(x)"),
    ],
)
def test_a_match_is_read_in_the_words_of_another_vendor_s_program(match, line) -> None:
    rule = {"id": "USR003", "match": match, "replace": "mylib.own", "imports": ["mylib"]}
    program = f"import torch, torch_npu\n\n{line}\n"
    result = run(program, rule, source="npu").after.decode()
    assert f"mylib.own({line.partition('(')[2]}" in result
    assert line not in result


def test_a_rule_that_changes_nothing_converts_nothing() -> None:
    rule = {"id": "USR001", "match": "mylib.sync", "replace": "mylib.sync"}
    program = "import mylib\n\nmylib.sync()\n"
    result = run(program, rule)
    assert result.after.decode() == program
    assert {(f.rule, f.action) for f in result.findings} == {("USR001", "keep")}


@pytest.mark.parametrize(
    "program",
    [
        "import other\nother.sync_gpu()\n",
        "def sync_gpu(): ...\nsync_gpu()\n",
        "def f(mylib):\n    mylib.sync_gpu()\n",
        "import mylib\nmylib.sync_gpu_all()\n",
        "import mylib\nmylib.sync_gpu = None\n",
        "print('mylib.sync_gpu')\n",
    ],
)
def test_what_looks_alike_is_left(program) -> None:
    assert run(program, SYNC).after.decode() == program


def test_keep_and_flag() -> None:
    keep = {"id": "USR002", "match": "mylib.cuda_tool", "action": "keep", "message": "it is fine"}
    flag = {"id": "USR003", "match": "mylib.norm", "message": "a kernel", "advice": "Use torch."}
    program = "import mylib\nmylib.cuda_tool()\nmylib.norm()\n"
    result = run(program, keep, flag)
    assert result.after.decode() == program
    said = {(f.rule, f.action, f.message, f.advice) for f in result.findings}
    assert ("USR002", "keep", "it is fine", "") in said
    assert ("USR003", "flag", "a kernel", "Use torch.") in said
    assert [(e.action, e.rule) for e in result.ledger] == [("keep", "USR002")]


def test_a_user_s_rule_comes_before_the_converter_s() -> None:
    own = {
        "id": "USR009",
        "match": "torch.cuda.synchronize",
        "replace": "tools.wait",
        "imports": ["tools"],
    }
    result = run("import torch\ntorch.cuda.synchronize()\n", own)
    assert result.after == b"import torch\nimport tools\ntools.wait()\n"


@pytest.mark.parametrize("program", ["x = torch.cuda.synchronize\n", "torch.cuda.synchronize(0)\n"])
def test_a_user_s_word_to_keep_or_look_at_a_place_holds(program) -> None:
    own = {"id": "USR004", "match": "torch.cuda.synchronize", "message": "m", "advice": "a"}
    for action in ("keep", "flag"):
        result = run("import torch\n" + program, {**own, "action": action})
        assert result.after.decode() == "import torch\n" + program
        assert {(f.rule, f.action) for f in result.findings} == {("USR004", action)}


def test_rules_can_be_switched_off() -> None:
    program = "import mylib\nmylib.sync_gpu()\n"
    assert run(program, SYNC, ignore=("USR",)).after.decode() == program
    assert run(program, SYNC, select=("ACC",)).after.decode() == program


def test_an_empty_text_has_no_rules() -> None:
    assert read("") == read(" \n") == read("[]") == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "no JSON"),
        ('{"id": "USR001"}', "a list of objects"),
        ("[1]", "rule 1 of the user's rules is 1"),
        ('[{"id": "USR001", "match": "a", "replace": "b", "colour": 1}]', "'colour': allowed are"),
        ('[{"id": "ACC001", "match": "a", "replace": "b"}]', "USR and three digits"),
        ('[{"match": "a", "replace": "b"}]', "USR and three digits"),
        ('[{"id": "USR001", "match": "a b", "replace": "b"}]', "a dotted name is wanted"),
        ('[{"id": "USR001", "match": "a", "replace": "b("}]', "no expression"),
        ('[{"id": "USR001", "match": "a", "replace": ""}]', "no expression"),
        ('[{"id": "USR001", "match": "a", "replace": "b + 1"}]', "parentheses"),
        ('[{"id": "USR001", "match": "a", "action": "convert"}]', "no expression"),
        ('[{"id": "USR001", "match": "a", "action": "drop"}]', "allowed are convert, keep, flag"),
        ('[{"id": "USR001", "match": "a", "action": "keep", "replace": "b"}]', "leave one"),
        ('[{"id": "USR001", "match": "a", "action": "flag"}]', "say what to do"),
        ('[{"id": "USR001", "match": "a", "replace": "b", "imports": "accel"}]', "list of modules"),
        ('[{"id": "USR001", "match": "a", "replace": "b", "imports": ["1x"]}]', "dotted name"),
        ('[{"id": "USR001", "match": "a", "replace": 1}]', "a string is wanted"),
        (
            '[{"id": "USR001", "match": "a", "replace": "b"},'
            ' {"id": "USR001", "match": "c", "replace": "b"}]',
            "id 'USR001' twice",
        ),
        (
            '[{"id": "USR001", "match": "a", "replace": "b"},'
            ' {"id": "USR002", "match": "a", "replace": "b"}]',
            "match 'a' twice",
        ),
    ],
)
def test_a_wrong_file_is_refused_with_what_is_allowed(text, said) -> None:
    with pytest.raises(ValueError, match="rule") as caught:
        read(text)
    assert said in str(caught.value)
