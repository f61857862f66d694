"""Vendors' programs back to ones for any device, by the same rules as CUDA's."""

import ast
import re
from pathlib import Path

import pytest

from accel.convert.engine import convert_source
from accel.convert.module import Module
from accel.convert.options import Options
from accel.convert.project import index
from accel.convert.rules import RULES
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
    "line",
    [
        "g = torch.npu.NPUGraph()",
        "run(torch.npu)",
        "torch.npu.set_compile_mode(jit_compile=False)",
        "torch.npu.synchronize()  # accel: keep",
        "y = dispatch('npu:0')",
        "from torch.npu import NPUGraph",
        "import torch.npu.no_such",
        "from torch_npu.contrib import transfer_to_npu",
        "y = torch.ones(2).npu()  # accel: keep",
        "@torch.jit.script\ndef f(x: torch.Tensor): return x.npu()",
    ],
)
def test_what_stays_of_the_vendor_s_module_needs_the_import(line) -> None:
    program = f"import torch, torch_npu\n{line}\nx = torch.ones(2).npu()\n"
    result = run(program, "npu")
    assert "import torch, torch_npu\n" in result.after.decode()
    (said,) = (f for f in result.findings if f.rule == "ACC150")
    assert said.action == "keep"
    assert re.fullmatch("line [23] still needs torch_npu", said.message)


@pytest.mark.parametrize(
    "program",
    [
        "from torch.npu.amp import GradScaler\nGradScaler()\n",
        "from torch_npu.npu import synchronize\nsynchronize()\n",
        "from torch import npu\nnpu.synchronize()\n",
        "import torch.npu\ntorch.npu.synchronize()\n",
        "class Batch:\n    def npu(self): ...\n\nx.to('npu')\nprint('npu:0 is here')\n",
    ],
)
def test_what_is_converted_by_its_import_needs_the_vendor_s_no_more(program) -> None:
    result = after(f"import torch\nimport torch_npu\n{program}", "npu")
    assert "torch_npu" not in result
    assert "torch.npu" not in result
    assert "accel" in result


def test_who_loads_the_package_is_said_for_each_target() -> None:
    program = "import torch\nimport torch_npu\n\ntorch.npu.synchronize()\n"
    result = run(program, "npu", target="torch")
    assert result.after.decode() == "import torch\n\ntorch.accelerator.synchronize()\n"
    (said,) = (f for f in result.findings if f.rule == "ACC150")
    assert "torch 2.5 and later loads it" in said.message
    assert "accel" not in said.message


def test_an_import_of_the_vendor_s_module_that_stays_is_flagged() -> None:
    program = "import torch\nimport torch.npu\n\nrun(torch)\n"
    (said,) = (f for f in run(program, "npu").findings if f.line == 2)
    assert (said.action, said.rule) == ("flag", "ACC022")
    assert said.message == "Importing torch.npu raises where torch_npu is missing."
    tried = "import torch\ntry:\n    import torch.npu\nexcept ImportError:\n    pass\nrun(torch)\n"
    assert {f.action for f in run(tried, "npu").findings} == {"keep"}
    of_cuda = run(program.replace("npu", "cuda"), "cuda").findings
    assert [f.action for f in of_cuda if f.line == 2] == ["keep"]


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


TRUE_WORDS = """\
import os
import subprocess
import torch
import torch_npu

torch.npu.matmul.allow_hf32 = True
torch.npu.matmul.allow_hf32 = bool(torch.npu.matmul.allow_hf32)
x = torch.ones(2).npu()
g = torch.npu.NPUGraph()
subprocess.run(["a"], env={"ASCEND_RT_VISIBLE_DEVICES": "0"})
torch.npu.set_compile_mode(jit_compile=False)
dispatch(x, "npu:1")
ok = cfg.NPU
handle = torch.npu.current_stream().npu_stream
"""


def test_messages_are_true_of_the_vendor() -> None:
    findings = run(TRUE_WORDS, "npu").findings
    said = {f.line: f"{f.message} {f.advice}" for f in findings if f.rule != "ACC020"}
    assert "TF32 on CUDA is HF32 on an Ascend" in said[6]
    assert "It records NPU graphs" in said[9]
    assert "a test for NPU" in said[9]
    assert "CUDA_VISIBLE_DEVICES and ASCEND_RT_VISIBLE_DEVICES" in said[10]
    assert "torch.npu.set_compile_mode is none of the names that other devices have" in said[11]
    assert '"npu:1" goes to code' in said[12]
    assert "NPU is read from an object" in said[13]
    assert "its raw handle, for NPU code" in said[14]
    shim = "import torch\nfrom torch_npu.contrib import transfer_to_npu\n"
    (flag,) = (f for f in run(shim, "npu").findings if f.action == "flag")
    assert flag.message.startswith("transfer_to_npu makes CUDA's calls work")
    assert flag.advice.startswith("Convert the program from CUDA as well")


PAIRS = (
    ("is_cuda", "is_npu"), ("cuda_stream", "npu_stream"), ("CUDAGraph", "NPUGraph"),
    ("ProcessGroupNCCL", "ProcessGroupHCCL"), ("NCCL", "HCCL"), ("nccl", "hccl"), ("cuda", "npu"),
)  # fmt: skip
ZOO = sorted((Path(__file__).parent / "convert" / "zoo").glob("*.py"))
PROGRAMS = [
    *(path.read_text(encoding="utf-8") for path in ZOO),
    *(
        program
        for rule in RULES
        if not "ACC119" <= rule.id <= "ACC139" and rule.id < "ACC150"
        for program in (*(example.before for example in rule.examples), *rule.kept)
    ),
]


def exchanged(program: str) -> str:
    for theirs, own in PAIRS:
        program = re.sub(rf"(?<![A-Za-z_]){theirs}(?![A-Za-z_])", own, program)
    return program


@pytest.mark.parametrize("source", ["cuda", "npu"])
def test_no_message_has_a_word_that_the_program_has_not(source) -> None:
    names = re.compile(r"<[A-Z]+>|\btorch\.cuda\b|\bis_cuda\b|\.cuda\(|(?<!\w)'cuda|\bnccl\b")
    seen = 0
    for program in PROGRAMS:
        text = exchanged(program) if source == "npu" else program
        for finding in run(text, source).findings:
            seen += 1
            told = (finding.message, finding.advice, finding.subject)
            found = {word for part in told for word in names.findall(part)}
            if source == "cuda":
                found = {word for word in found if word.startswith("<")}
            assert not found, (finding.rule, told, finding.snippet)
    assert seen > 1000


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
