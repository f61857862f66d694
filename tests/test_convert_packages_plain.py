"""Extensions that a file can do without: which guards count, and which do not."""

import pytest

from accel.convert import project
from accel.convert.module import Module
from accel.convert.options import Options
from accel.convert.rules import packages
from accel.convert.source import Source


def findings(program: str, others: dict[str, str] | None = None):
    files = {"a.py": program, **(others or {})}
    index = project.index({name: text.encode() for name, text in files.items()})
    return list(packages.find(Module(Source(program.encode()), "a.py", Options(), index)))


PLAIN = """
import torch
from torch.utils.cpp_extension import load


def _fast(x):
    ext = load('ext', ['a.cu'])
    return ext.run(x)


def _ref(x):
    return x
"""


@pytest.mark.parametrize(
    ("body", "is_blocker"),
    [
        ("    if x.is_cuda:\n        return _fast(x)\n    return _ref(x)", False),
        ("    if x.is_cuda and fused:\n        return _fast(x)\n    else:\n        y = x", False),
        ("    return _fast(x) if x.device.type == 'cuda' else _ref(x)", False),
        ("    if not x.is_cuda:\n        return _ref(x)\n    return _fast(x)", False),
        ("    if x.device.type != 'cuda' or plain:\n        return x\n    return _fast(x)", False),
        ("    return _fast(x)", True),
        ("    if fused:\n        return _fast(x)\n    return _ref(x)", True),
        ("    if x.is_cuda or fused:\n        return _fast(x)\n    return _ref(x)", True),
        ("    if not x.is_cuda:\n        return _fast(x)\n    return _ref(x)", True),
        ("    if x.is_cuda:\n        return _fast(x)\n    raise ValueError", True),
        ("    if x.is_cuda:\n        return _fast(x)", True),
        ("    if x.device.type == 'cpu':\n        return _ref(x)\n    return _fast(x)", True),
        ("    if not x.is_cuda and plain:\n        return x\n    return _fast(x)", True),
        ("    if torch.cuda.is_available():\n        return _fast(x)\n    return _ref(x)", True),
        ("    if x.is_cuda:\n        return _fast(x)\n    return x\n\n\ny = _fast(2)", True),
        ("    if x.is_cuda:\n        return _fast(x)\n    return x\n\n\ndef g(x):\n"
         "    return _fast(x)", True),
        ("    if x.is_cuda:\n        return g(x)\n    return x\n\n\ndef g(x):\n"
         "    return _fast(x)", False),
    ],
)  # fmt: skip
def test_a_guarded_plain_path_is_no_blocker(body, is_blocker) -> None:
    program = f"{PLAIN}\n\ndef run(x, fused=False, plain=False):\n{body}\n"
    (found,) = [f for f in findings(program) if f.rule == "ACC102" and f.action == "flag"]
    assert (found.blocker, found.effort) == (is_blocker, "rewrite")
    assert ("the program runs without it, slower: line " in found.message) is not is_blocker


def test_a_guard_in_one_file_does_not_speak_for_others() -> None:
    program = (
        f"{PLAIN}\n\ndef run(x):\n    if x.is_cuda:\n        return _fast(x)\n    return _ref(x)\n"
    )
    (alone,) = [f for f in findings(program, {"b.py": ""}) if f.action == "flag"]
    (shared,) = [
        f for f in findings(program, {"b.py": "from a import _fast\n"}) if f.action == "flag"
    ]
    assert (alone.blocker, shared.blocker) == (False, True)


@pytest.mark.parametrize(
    ("program", "is_blocker"),
    [
        ("try:\n    ext = load('ext', ['a.cu'])\nexcept Exception:\n    ext = None", False),
        ("try:\n    ext = load('ext', ['a.cu'])\nexcept Exception:\n    raise", True),
        ("try:\n    ext = load('ext', ['a.cu'])\nexcept KeyError:\n    ext = None", True),
        ("ext = load('ext', ['a.cu'])", True),
        ("def f(x):\n    global e\n    e = load('ext', ['a.cu'])\n    return e.run(x)", True),
        ("def get():\n    try:\n        return load('ext', ['a.cu'])\n    except Exception:\n"
         "        return None\n\n\ndef f(x):\n    return get().run(x)", True),
    ],
)  # fmt: skip
def test_builds_that_may_fail(program, is_blocker) -> None:
    program = f"from torch.utils.cpp_extension import load\n\n{program}\n"
    (found,) = [f for f in findings(program) if f.rule == "ACC102" and f.action == "flag"]
    assert found.blocker is is_blocker


def test_a_compiled_module_that_a_guard_imports() -> None:
    program = (
        "def run(x):\n    if x.is_cuda:\n        import nms_cuda\n\n"
        "        return nms_cuda.run(x)\n    return x\n"
    )
    found = findings(program, {"b.py": ""})
    assert [(f.rule, f.action, f.blocker) for f in found] == [
        ("ACC103", "flag", False),
        ("ACC103", "keep", False),
    ]
    assert found[0].message.endswith("the program runs without it, slower: line 6 goes on")


def test_a_source_in_a_string_is_of_the_build_that_takes_it() -> None:
    program = (
        "from torch.utils.cpp_extension import load_inline\n\n"
        'S = """\n__global__ void add(float* x) {}\n"""\n'
        "ext = load_inline('ext', cpp_sources='', cuda_sources=S)\n"
    )
    flags = [f for f in findings(program) if f.action == "flag"]
    assert {f.rule for f in flags} == {"ACC102", "ACC105"}
    assert {f.subject for f in flags} == {"ext"}
