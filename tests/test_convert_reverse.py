"""Vendors' programs back to ones for any device, by the same rules as CUDA's."""

import ast

import pytest

from accel.convert.engine import convert_source
from accel.convert.module import Module
from accel.convert.options import Options
from accel.convert.project import index
from accel.convert.source import Source

NAMES = {
    "npu": ("torch_npu", "hccl", "is_npu"),
    "musa": ("torch_musa", "mccl", "is_musa"),
    "mlu": ("torch_mlu", "cncl", "is_mlu"),
}
PROGRAM = """\
import torch
import {package}
import torch.distributed as dist
from torch.{name} import synchronize

device = torch.device("{name}:0" if torch.{name}.is_available() else "cpu")
torch.{name}.set_device(1)
dist.init_process_group("{backend}")
x = torch.ones(2, device="{name}").{name}(non_blocking=True)
if x.{flag} and device.type == "{name}":
    synchronize()
with torch.{name}.amp.autocast():
    y = x.to(f"{name}:{{1}}")
state = torch.load("state.pt", map_location="{name}:0")
"""
CONVERTED = """\
import torch
import accel
import torch.distributed as dist
from accel import synchronize

device = accel.device(0)
accel.set_device(1)
dist.init_process_group(accel.dist_backend())
x = torch.ones(2, device=accel.device()).to(accel.device(), non_blocking=True)
if accel.on_accelerator(x) and accel.is_accelerator(device):
    synchronize()
with accel.autocast():
    y = x.to(accel.device(1))
state = torch.load("state.pt", map_location=accel.map_location(0))
"""


def run(program: str, source: str, **options: str):
    result = convert_source(program.encode(), "a.py", Options(source=source, **options))
    assert result.error == ""
    assert [e for e in result.ledger if e.action == "missing"] == []
    return result


def after(program: str, source: str, **options: str) -> str:
    return run(program, source, **options).after.decode()


@pytest.mark.parametrize("name", NAMES)
def test_a_program_of_each_vendor(name) -> None:
    package, backend, flag = NAMES[name]
    program = PROGRAM.format(name=name, package=package, backend=backend, flag=flag)
    result = run(program, name)
    assert result.after.decode() == CONVERTED
    assert {e.action for e in result.ledger} == {"convert"}
    assert after(CONVERTED, name) == CONVERTED


@pytest.mark.parametrize("name", NAMES)
def test_cuda_s_branch_of_the_same_program_is_not_touched(name) -> None:
    program = (
        "import torch\n\n\ndef move(x):\n    if torch.cuda.is_available():\n"
        "        torch.cuda.set_device(0)\n        return x.cuda()\n"
        "    return x.to('cuda:0') if x.is_cuda else x\n"
    )
    assert after(program, name) == program
    mixed = program.replace("return x.to('cuda:0')", f"return x.to('{name}:0')")
    assert after(mixed, name) == mixed.replace(f"'{name}:0'", "accel.device(0)").replace(
        "import torch\n", "import torch\nimport accel\n", 1
    )


def test_and_the_vendor_s_branch_stays_in_a_conversion_from_cuda() -> None:
    program = (
        "import torch\n\nif torch.npu.is_available():\n    x = x.npu()\n    y = x.to('npu:0')\n"
    )
    assert after(program, "cuda") == program


def test_the_package_s_own_spelling_of_torch_npu() -> None:
    program = (
        "import torch\nimport torch_npu\n\ntorch_npu.npu.empty_cache()\n"
        "torch_npu.npu.mstx.mark('x')\ntorch.npu.matmul.allow_hf32 = True\n"
    )
    assert after(program, "npu") == (
        "import torch\nimport accel\n\naccel.empty_cache()\naccel.mark('x')\n"
        "accel.allow_tf32(True, conv=False)\n"
    )


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ("import torch, torch_npu\n", "import torch\nimport accel\n"),
        ("import torch_npu, torch\n", "import torch\nimport accel\n"),
        ("import torch; import torch_npu\n", "import torch; pass\nimport accel\n"),
        ("import torch\nimport torch_npu  # noqa: F401\n", "import torch\nimport accel\n"),
        (
            "import torch\nif True:\n    import torch_npu\n",
            "import torch\nimport accel\nif True:\n    pass\n",
        ),
        (
            "import torch\ntry:\n    import torch_npu\nexcept ImportError:\n    pass\n",
            "import torch\nimport accel\ntry:\n    import torch_npu\nexcept ImportError:\n"
            "    pass\n",
        ),
    ],
)
def test_an_import_that_nothing_needs_any_more_goes(before, expected) -> None:
    program = before + "torch.npu.synchronize()\n"
    result = after(program, "npu")
    assert result == expected + "accel.synchronize()\n"
    ast.parse(result)
    assert after(result, "npu") == result


def test_an_import_that_is_needed_stays() -> None:
    program = "import torch\nimport torch_npu\n\nx = torch_npu.npu_rms_norm(x, w)\n"
    assert after(program, "npu") == program
    program = "import torch\nimport torch_npu\n\nrun(torch)\n"
    assert after(program, "npu") == program
    program = "import torch\nimport torch_npu\n\ntorch.npu.synchronize()\n"
    assert "import torch_npu\n" in after(program, "npu", target="npu")


@pytest.mark.parametrize(
    ("program", "rule"),
    [
        ("import torch\nfrom torch_npu.contrib import transfer_to_npu\n", "ACC151"),
        ("import torch_npu\ny = torch_npu.npu_fusion_attention(q, k, v, 8)\n", "ACC152"),
        ("from torch_npu import npu_swiglu\ny = npu_swiglu(x)\n", "ACC152"),
        ("import torch_npu\no = torch_npu.optim.NpuFusedSGD(p)\n", "ACC153"),
        ("import torch_npu\np = torch_npu.profiler.profile()\n", "ACC153"),
    ],
)
def test_what_only_the_vendor_has_is_flagged(program, rule) -> None:
    result = run(program, "npu")
    assert result.after.decode() == program
    assert rule in {f.rule for f in result.findings if f.action == "flag"}


def test_messages_speak_of_the_program_s_own_words() -> None:
    result = run("import torch\ntorch.npu.no_such_thing()\n", "npu")
    (finding,) = (f for f in result.findings if f.action == "flag")
    assert "torch.npu.no_such_thing" in finding.message
    assert "cuda" not in finding.message + finding.advice


def test_paths_and_texts_are_never_read_as_names() -> None:
    text = "x = 'npu is here'\ny = '/data/npu/a.pt'\nz = 'tcp://npu-node1:2345'\nprint('npu:0 x')\n"
    module = Module(Source(text.encode()), "a.py", Options(source="npu"))
    values = [node.value for node in module.all(ast.Constant)]
    assert values == ["npu is here", "/data/npu/a.pt", "tcp://npu-node1:2345", "npu:0 x"]
    assert after(text, "npu") == text


def test_constants_and_methods_of_other_files() -> None:
    program = b"from config import DEVICE\n\nif DEVICE == 'npu:0':\n    pass\n"
    module = Module(
        Source(program), "a.py", Options(source="npu"), index({"config.py": b"DEVICE = 'npu:0'\n"})
    )
    (compare,) = module.all(ast.Compare)
    assert module.constant(compare.left) == module.constant(compare.comparators[0]) == "cuda:0"
    own = index({"batch.py": b"class Batch:\n    def npu(self): ...\n"})
    moved = b"def f(batch):\n    return batch.npu()\n"
    result = convert_source(moved, "a.py", Options(source="npu"), own)
    assert result.after == moved
    assert "flag" in {f.action for f in result.findings}


def test_a_class_of_the_program_s_own_with_that_method() -> None:
    program = (
        "import torch\n\n\nclass Batch:\n    def npu(self):\n        return self\n\n\n"
        "batch = Batch()\nbatch.npu()\n"
    )
    assert after(program, "npu") == program
