"""Tensor classes and their names: where they convert, and that a CPU tensor is never on CUDA."""

import pytest
import torch

from accel.convert.engine import convert_source
from accel.convert.options import Options


def convert(program: str, **options):
    result = convert_source(program.encode(), "program.py", Options(**options))
    assert result.error == ""
    assert [entry for entry in result.ledger if entry.action == "missing"] == []
    assert convert_source(result.after, "program.py", Options(**options)).after == result.after
    return result


def line(expression: str) -> str:
    """One converted statement."""
    return convert(f"import torch\n\n{expression}\n").after.decode().splitlines()[-1]


F32 = "accel.tensor_type(torch.float32)"
NAME = "accel.tensor_type_name(torch.float32)"
LINES = {
    "x = torch.cuda.FloatTensor(2)": f"x = {F32}(2)",
    "x = y.type(torch.cuda.FloatTensor)": f"x = y.type({F32})",
    "x = y.type('torch.cuda.FloatTensor')": f"x = y.type({NAME})",
    "x = y.type('torch.cuda.FloatTensor', non_blocking=True)": (
        f"x = y.type({NAME}, non_blocking=True)"
    ),
    "x = isinstance(y, torch.cuda.FloatTensor)": (
        f"x = isinstance(y, {F32}) and accel.on_accelerator(y)"
    ),
    "x = not isinstance(y.data, torch.cuda.FloatTensor)": (
        f"x = not (isinstance(y.data, {F32}) and accel.on_accelerator(y.data))"
    ),
    "x = isinstance(y, (torch.FloatTensor, torch.cuda.FloatTensor))": (
        f"x = isinstance(y, (torch.FloatTensor, {F32}))"
    ),
    "x = y.type() == 'torch.cuda.FloatTensor'": (
        f"x = y.type() == {NAME} and accel.on_accelerator(y)"
    ),
    "x = 'torch.cuda.FloatTensor' == y.type() or z": (
        f"x = ({NAME} == y.type() and accel.on_accelerator(y)) or z"
    ),
    "x = y.type() != 'torch.cuda.FloatTensor'": (
        f"x = y.type() != {NAME} or not accel.on_accelerator(y)"
    ),
    "x = y.type() in ('torch.cuda.FloatTensor', 'torch.cuda.HalfTensor')": (
        f"x = y.type() in ({NAME}, accel.tensor_type_name(torch.float16)) "
        "and accel.on_accelerator(y)"
    ),
    "x = not y.type() not in ['torch.cuda.FloatTensor']": (
        f"x = not (y.type() not in [{NAME}] or not accel.on_accelerator(y))"
    ),
    "x = kind == torch.cuda.FloatTensor": f"x = kind == {F32} and accel.is_available()",
    "x = kind is not torch.cuda.FloatTensor": f"x = kind is not {F32} or not accel.is_available()",
    "x = kind in (torch.cuda.FloatTensor,) or z": (
        f"x = (kind in ({F32},) and accel.is_available()) or z"
    ),
    "x = kind in (torch.FloatTensor, torch.cuda.FloatTensor)": (
        f"x = kind in (torch.FloatTensor, {F32})"
    ),
}


@pytest.mark.parametrize("before", LINES)
def test_lines(before) -> None:
    assert line(before) == LINES[before]


FLAGGED = [
    "x = isinstance(f(), torch.cuda.FloatTensor)",
    "x = f().type() == 'torch.cuda.FloatTensor'",
    "x = f().type() in ('torch.cuda.FloatTensor',)",
    "x = y.type() in ('torch.cuda.FloatTensor', 'torch.HalfTensor')",
    "x = load('torch.cuda.FloatTensor')",
    "x = {'kind': 'torch.cuda.FloatTensor'}",
    "x = kind == 'torch.cuda.FloatTensor'",
    "x = y.dtype_name() == 'torch.cuda.FloatTensor'",
    "torch.set_default_tensor_type('torch.cuda.FloatTensor')",
]


@pytest.mark.parametrize("program", FLAGGED)
def test_what_cannot_be_told_is_flagged(program) -> None:
    result = convert(f"import torch\n\n{program}\n")
    assert "flag" in {f.action for f in result.findings}
    assert "torch.cuda.FloatTensor'" in line(program) or "isinstance(f()" in line(program)


def test_a_name_beside_the_cpus_own_is_for_a_human() -> None:
    program = (
        "import torch\n\nsizes = {'torch.FloatTensor': 1, 'torch.cuda.FloatTensor': 2}\n"
        "print(sizes[x.type()])\n"
    )
    result = convert(program)
    assert result.after.decode() == program
    assert {f.action for f in result.findings} == {"flag"}


TESTS = """
import torch


def answers(x):
    found = [isinstance(x, torch.cuda.FloatTensor), x.type() == "torch.cuda.FloatTensor"]
    found.append(x.type() in ("torch.cuda.FloatTensor", "torch.cuda.HalfTensor"))
    kind = getattr(torch, x.type().removeprefix("torch."))
    found += [kind == torch.cuda.FloatTensor, kind in [torch.cuda.HalfTensor]]
    if x.type() != "torch.cuda.FloatTensor" and not isinstance(x, torch.cuda.HalfTensor):
        found.append("elsewhere")
    return found
"""


@pytest.mark.skipif(torch.accelerator.is_available(), reason="the CPU's answers")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64])
def test_a_cpu_tensor_answers_as_before(dtype) -> None:
    scopes = []
    for program in (TESTS, convert(TESTS).after.decode()):
        scopes.append({})
        exec(compile(program, "program.py", "exec"), scopes[-1])
    before, after = (scope["answers"](torch.zeros(2, dtype=dtype)) for scope in scopes)
    assert before == after == [False] * 5 + ["elsewhere"]


@pytest.mark.skipif(torch.accelerator.is_available(), reason="the CPU's classes")
def test_aliases_make_the_same_tensors_on_a_cpu() -> None:
    program = (
        "import torch\n\ncuda = torch.cuda.is_available()\n"
        "Tensor = torch.cuda.FloatTensor if cuda else torch.FloatTensor\n"
        "x = Tensor([[1.0, 2.0]]).type(Tensor)\n"
    )
    scopes = []
    for text in (program, convert(program).after.decode()):
        scopes.append({})
        exec(compile(text, "program.py", "exec"), scopes[-1])
    assert torch.equal(scopes[0]["x"], scopes[1]["x"])
    assert scopes[0]["Tensor"] is scopes[1]["Tensor"]


@pytest.mark.parametrize(
    "statement",
    [
        "x = {torch.FloatTensor: 'host', torch.cuda.FloatTensor: 'card'}",
        "x = torch.get_device_module('cuda')",
    ],
)
def test_what_would_have_another_meaning_on_a_cpu_is_flagged(statement) -> None:
    result = convert(f"import torch\n\n{statement}\n")
    assert not result.is_changed
    assert {finding.action for finding in result.findings} == {"flag"}
