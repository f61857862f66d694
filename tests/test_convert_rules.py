"""Every rule of the table: its examples convert as written, its look-alikes stay as they are."""

import ast
import re

import pytest

from accel.convert.engine import convert_source
from accel.convert.options import Options
from accel.convert.rules import RULES

# Files that are not Python: test_convert_sweep has their rules' examples.
PYTHON = [rule for rule in RULES if not "ACC120" <= rule.id <= "ACC139"]
EXAMPLES = [
    pytest.param(rule, example, id=f"{rule.id}-{number}")
    for rule in PYTHON
    for number, example in enumerate(rule.examples)
]
KEPT = [
    pytest.param(program, id=f"{rule.id}-kept-{number}")
    for rule in PYTHON
    for number, program in enumerate(rule.kept)
]
# Rules whose examples are of another platform than CUDA, or of files that are not Python.
OTHER_SOURCES = {"npu": "npu", "musa": "musa", "mlu": "mlu"}


def converted(program: str, **options):
    result = convert_source(program.encode(), "program.py", Options(**options))
    assert result.error == ""
    assert [entry for entry in result.ledger if entry.action == "missing"] == []
    return result


def source_of(program: str) -> str:
    """The platform that an example of a reverse rule is bound to, by the words in it."""
    return next((name for word, name in OTHER_SOURCES.items() if word in program), "npu")


def options_of(rule, program: str) -> dict[str, str]:
    if "ACC150" <= rule.id <= "ACC169":
        return {"source": source_of(program)}
    return {}


@pytest.mark.parametrize(("rule", "example"), EXAMPLES)
def test_example(rule, example) -> None:
    result = converted(example.before, **options_of(rule, example.before))
    assert result.after.decode() == example.after
    assert rule.id in {item.rule for item in (*result.findings, *result.ledger)}
    if rule.action != "convert":
        said = (*result.findings, *result.ledger)
        assert rule.action in {item.action for item in said if item.rule == rule.id}
    again = converted(example.after, **options_of(rule, example.before))
    assert again.after.decode() == example.after
    for target, after in example.others.items():
        assert converted(example.before, target=target).after.decode() == after


@pytest.mark.parametrize("program", KEPT)
def test_what_looks_alike_is_not_touched(program) -> None:
    result = converted(program)
    assert result.after.decode() == program
    assert {f.action for f in result.findings} <= {"keep", "flag"}


def test_there_are_enough_look_alikes() -> None:
    assert len({param.values[0] for param in KEPT}) >= 150


def test_the_table_is_in_order() -> None:
    assert len({rule.id for rule in RULES}) == len(RULES)
    assert len({rule.name for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert rule.examples, rule.id
        assert rule.title[0].isupper(), rule.id
        assert not rule.title.endswith("."), rule.id
        assert rule.why.endswith("."), rule.id
        assert rule.ascend.endswith("."), rule.id
        for text in (rule.title, rule.why, rule.ascend):
            assert not re.search(r"\s\s|\n", text), rule.id


def test_examples_are_programs() -> None:
    for rule in PYTHON:
        for example in rule.examples:
            ast.parse(example.before), ast.parse(example.after)
