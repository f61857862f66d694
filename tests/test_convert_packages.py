"""Packages, CUDA code in a program, and names known at run time: what is said of each."""

import pytest

from accel.convert import project
from accel.convert.edits import apply
from accel.convert.module import Module
from accel.convert.options import Options
from accel.convert.rules import packages
from accel.convert.source import Source


def findings(program: str, others: dict[str, str] | None = None, path: str = "a.py", **options):
    files = {path: program, **(others or {})}
    index = project.index({name: text.encode() for name, text in files.items()})
    module = Module(Source(program.encode()), path, Options(**options), index)
    return list(packages.find(module))


def said(program: str, **more) -> list[tuple[str, str]]:
    return sorted((f.rule, f.action) for f in findings(program, **more))


@pytest.mark.parametrize(
    ("rule", "action", "program"),
    [
        (r.id, "flag" if r.action == "flag" else r.action, e.before)
        for r in packages.RULES
        for e in r.examples
    ],
)
def test_examples(rule, action, program) -> None:
    assert (rule, action) in said(program)


@pytest.mark.parametrize(
    ("rule", "program"), [(r.id, text) for r in packages.RULES for text in r.kept]
)
def test_kept(rule, program) -> None:
    assert [f for f in findings(program) if f.action == "convert"] == []
    if rule != "ACC108":
        assert [f for f in findings(program) if f.action == "flag"] == []


# --- imports -----------------------------------------------------------------------------------

FLAG, KEEP = ("ACC100", "flag"), ("ACC100", "keep")


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("import apex", [FLAG]),
        ("import os, apex, pynvml", [FLAG, FLAG]),
        ("import apex.amp as amp", [FLAG]),
        ("from apex.parallel import DistributedDataParallel", [FLAG]),
        ("from numba import cuda", [FLAG]),
        ("from numba import jit", []),
        ("import nvidia.dali.fn as fn", [FLAG]),
        ("from kernels import get_kernel", [FLAG]),
        ("from kernels import gauss", []),
        ("import deepspeed", [KEEP]),
        ("import vllm", [KEEP]),
        ("import numpy", []),
        ("from .apex import amp", []),
        ("def f():\n    import apex", [FLAG]),
        ("import importlib\nimportlib.import_module('apex.amp')", [FLAG]),
        ("import onnxruntime\nuse(['CUDAExecutionProvider'])", [FLAG]),
        # optional
        ("try:\n    import apex\nexcept ImportError:\n    apex = None", [KEEP]),
        ("try:\n    import apex\nexcept:\n    pass", [KEEP]),
        ("try:\n    import os, apex\nexcept (OSError, ImportError):\n    x = 0", [KEEP]),
        ("try:\n    import apex\nexcept ImportError:\n    raise", [FLAG]),
        ("try:\n    import apex\nexcept ImportError:\n    import sys; sys.exit(1)", [FLAG]),
        ("try:\n    import apex\nexcept OSError:\n    pass", [FLAG]),
        ("try:\n    pass\nexcept ImportError:\n    import apex", [FLAG]),
        ("if is_apex_available():\n    import apex", [KEEP]),
        ("if torch.cuda.is_available():\n    import apex", [FLAG]),
    ],
)
def test_imports(program, expected) -> None:
    assert [one for one in said(program + "\n") if one[0] == "ACC100"] == expected


def test_a_module_of_the_tree_hides_the_package() -> None:
    program = "import apex\nfrom apex.amp import x\n"
    assert findings(program, {"apex/__init__.py": "", "apex/amp.py": ""}) == []
    assert findings(program, {"tools/apex.py": ""}, path="tools/a.py") == []
    assert len(findings(program, {"other/apex.py": ""})) == 2


def test_advice_names_replacement_version_and_place() -> None:
    (found,) = findings("import flash_attn\n")
    assert "flash-attn-npu 0.4.2.post1 (pypi.org/project/flash-attn-npu)" in found.advice
    assert "accel.segmented_attention" in found.advice
    assert not found.blocker
    (found,) = findings("import pycuda.driver\n")
    assert (found.effort, found.blocker) == ("rewrite", True)


def test_names_of_a_package_are_accounted_for() -> None:
    program = "import apex\nfrom apex import amp\n\napex.amp.initialize()\namp.scale()\n"
    uses = [f for f in findings(program) if f.rule == "ACC101"]
    assert [(f.line, f.action) for f in uses] == [(4, "keep")]
    assert "line 1" in uses[0].message


# --- extensions --------------------------------------------------------------------------------

WRAPPED = """
import custom

_plugin = None


def _init():
    global _plugin
    _plugin = custom.get_plugin('bias', sources=['b.cpp', 'b.cu'], extra_cuda_cflags=['-O3'])


def bias(x, impl='cuda'):
    return _fast(x) if impl == 'cuda' and _init() else _bias_ref(x)


def _bias_ref(x):
    return x


class Fast:
    def forward(x):
        return _plugin.bias(x)
"""


def test_an_extension_names_its_users_and_a_plain_version() -> None:
    (found,) = findings(WRAPPED)
    assert (found.rule, found.action, found.blocker) == ("ACC102", "flag", True)
    assert found.message == "CUDA code is built here as bias; used by Fast.forward"
    assert found.advice.startswith("A plain version seems to be _bias_ref (line 16).")


@pytest.mark.parametrize(
    ("program", "blocker"),
    [
        ("from torch.utils.cpp_extension import load\nload('a', ['a.cu'])", True),
        ("from torch.utils import cpp_extension\ncpp_extension.load(name='a', sources=s)", True),
        (
            "from torch.utils.cpp_extension import load_inline\n"
            "load_inline('a', cpp_sources=c, cuda_sources=k)",
            True,
        ),
        (
            "from torch.utils.cpp_extension import CUDAExtension\nCUDAExtension('a', ['a.cpp'])",
            True,
        ),
        ("from torch.utils.cpp_extension import load\nload('a', ['a.cpp'])", False),
        (
            "from torch.utils.cpp_extension import load_inline\nload_inline('a', cpp_sources=c)",
            False,
        ),
    ],
)
def test_builds(program, blocker) -> None:
    flags = [f for f in findings(program + "\n") if f.action == "flag"]
    assert [(f.rule, f.blocker) for f in flags] == [("ACC102", blocker)]


@pytest.mark.parametrize(
    ("call", "subject"),
    [
        ("make(module_name='bias', sources=s, extra_cuda_cflags=c)", "bias"),
        ("make('bias', sources=s, with_cuda=True)", "bias"),
        ("make(s, cuda_sources=s)", "build"),
    ],
)
def test_the_name_of_what_a_wrapper_builds(call, subject) -> None:
    (found,) = findings(f"import torch\n\n\ndef build(s, c):\n    return {call}\n")
    assert (found.rule, found.subject) == ("ACC102", subject)


@pytest.mark.parametrize(
    "call",
    ["Trainer(model, with_cuda=True)", "dict(cuda_sources=s)", "make(extra_cuda_cflags=None)"],
)
def test_other_calls_build_nothing(call) -> None:
    assert said(f"import torch\n\n\ndef build(s, model):\n    return {call}\n") == []


def test_other_parts_of_cpp_extension() -> None:
    program = "from torch.utils.cpp_extension import BuildExtension, CUDA_HOME\nx = CUDA_HOME\n"
    assert said(program) == [("ACC102", "flag"), ("ACC102", "keep")]
    assert said("from torch.utils.cpp_extension import CppExtension\nCppExtension('a', [])\n") == []


def test_sources_in_strings() -> None:
    program = (
        'S = """\n__global__ void add(float* x) {}\n"""\n\n\ndef build():\n    return make(S)\n'
    )
    (found,) = findings(program)
    assert found.message == "CUDA C++ in a string: add; used by build"
    assert (found.rule, found.blocker) == ("ACC105", True)
    assert findings("x = 'cuda kernels have __global__ before them'\n") == []


@pytest.mark.parametrize(
    ("program", "others", "expected"),
    [
        ("import nms_cuda", {}, ["flag"]),
        ("import nms_cuda", {"nms_cuda.py": ""}, []),
        ("import nms_cuda", {"lib/nms_cuda/__init__.py": ""}, []),
        ("import nms_cuda", {"nms_cuda/setup.py": ""}, ["flag"]),
        ("from nms_cuda import f", {}, ["flag"]),
        ("from .ops import nms_cuda", {"ops/__init__.py": ""}, ["flag"]),
        ("from .ops import nms_cuda", {"ops/nms_cuda.py": ""}, []),
        ("from .ops import nms_cuda", {"ops/__init__.py": "def nms_cuda(): ..."}, []),
        ("from .ops import nms_cuda", {"ops.py": ""}, []),
        ("from .._ext import nms", {}, ["flag"]),
        ("from . import _C", {}, ["flag"]),
        ("from pkg import _C", {"__init__.py": ""}, ["flag"]),
        ("from pkg import _C", {"__init__.py": "", "_C.py": ""}, []),
        ("from pkg import _C", {"__init__.py": "_C = 1"}, []),
        ("from other import _C", {}, []),
        ("from torch import _C", {}, []),
        ("try:\n    import nms_cuda\nexcept ImportError:\n    nms_cuda = None", {}, ["keep"]),
        ("import cuda.bindings.driver as cuda", {}, []),
        ("import torch.cuda", {}, []),
        ("from torch.cuda import amp", {}, []),
        ("import math", {}, []),
    ],
)
def test_compiled_modules_of_the_project(program, others, expected) -> None:
    more = {"b/c.py": "", **{f"pkg/{name}": text for name, text in others.items()}}
    found = findings(program + "\n", more, path="pkg/a.py")
    assert [f.action for f in found if f.rule == "ACC103"] == expected


def test_a_compiled_module_names_its_users() -> None:
    program = (
        "import nms_cuda\n\n\ndef nms(x):\n    return nms_cuda.run(x)\n\n\ndef nms_ref(x): ...\n"
    )
    found = findings(program, {"b.py": ""})
    assert [(f.rule, f.action, f.blocker) for f in found] == [
        ("ACC103", "flag", True),
        ("ACC103", "keep", False),
    ]
    assert found[0].message.endswith("compiled code, by its name; used by nms")
    assert found[0].advice.startswith("A plain version seems to be nms_ref (line 8).")


# --- run time ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "after"),
    [
        ("getattr(torch.cuda, 'is_available')()", "accel.is_available()"),
        ("getattr(torch, 'cuda').synchronize()", "accel.synchronize()"),
        (
            "N = 'empty_cache'\nf = getattr(torch.cuda, N)",
            "N = 'empty_cache'\nf = accel.empty_cache",
        ),
    ],
)
def test_constant_names_convert(program, after) -> None:
    text = f"import torch\n{program}\n"
    edits = [edit for finding in findings(text) for edit in finding.edits]
    assert apply(text.encode(), edits)[0].decode() == f"import torch\n{after}\n"


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("getattr(torch.cuda, name)()", [("ACC108", "flag")]),
        ("getattr(torch, 'cuda')", [("ACC108", "flag")]),
        ("getattr(torch.cuda, 'empty_cache', None)", [("ACC108", "flag")]),
        ("getattr(torch.cuda, 'no_such')", [("ACC108", "flag")]),
        ("setattr(torch.cuda, 'synchronize', f)", [("ACC108", "flag")]),
        ("hasattr(torch.cuda, 'amp')", [("ACC108", "keep")]),
        ("hasattr(torch, 'cuda')", [("ACC108", "keep")]),
        ("hasattr(torch, 'compile')", []),
        ("getattr(torch, name)", []),
        ("getattr(args, 'cuda')", []),
        ("import importlib\nimportlib.import_module('torch.cuda')", [("ACC108", "flag")]),
        ("import importlib\nimportlib.import_module('my.cuda')", []),
        ("__import__('torch.cuda')", [("ACC108", "flag")]),
        ("mock.patch('torch.cuda.is_available')", [("ACC108", "flag")]),
        ("mock.patch('mine.cuda')", []),
        ("exec('torch.cuda.synchronize()')", [("ACC109", "flag")]),
        ("exec(open('configurator.py').read())", []),
        ("eval('1')", []),
        ("import os\nos.system('nvidia-smi > log')", [("ACC106", "flag")]),
        ("import os\nos.system('python cuda.py')", []),
        ("import subprocess as s\ns.check_output(['nvcc', '--version'])", [("ACC106", "flag")]),
        ("import subprocess as s\nC = ['nvidia-smi']\ns.run(C)", [("ACC106", "flag")]),
        ("import shutil\nshutil.which('nvidia-smi')", [("ACC106", "flag")]),
        ("import ctypes\nctypes.CDLL('libcudart.so.12')", [("ACC104", "flag")]),
        ("import ctypes\nctypes.CDLL(path)", []),
        ("if torch.version.cuda: f()", [("ACC107", "flag")]),
        ("print(f'CUDA {torch.version.cuda}')", [("ACC107", "keep")]),
        ("def f(getattr):\n    getattr(torch.cuda, 'x')", []),
    ],
)
def test_names_known_at_run_time(program, expected) -> None:
    assert said(f"import torch\n{program}\n") == expected


def test_other_platforms_say_nothing() -> None:
    assert findings("import apex\n", source="npu") == []
