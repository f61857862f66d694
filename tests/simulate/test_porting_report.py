"""The porting report: what is found, on which line, how often; several processes; its pages."""

from __future__ import annotations

import importlib
import json
import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from accel.simulate.machine import Machine
from accel.simulate.porting import page, parts, text
from accel.simulate.porting.findings import (
    KINDS,
    DeviceMemory,
    Finding,
    Operator,
    Process,
    Report,
)
from accel.simulate.porting.locations import Locator, shown
from tests.simulate.conftest import PLACES, Simulate
from tests.test_report_pages import Balanced

PYTHON = sys.executable
# A comment at the end of a line names what the report must say of it, `kind*calls`.
PROGRAM = """
import torch
from torch.nn.utils import clip_grad_norm_ as clip

values = torch.arange(6.0).to("npu")  # copy*1
layer = torch.nn.Linear(6, 3).to("npu")  # copy*2
optimizer = torch.optim.SGD(layer.parameters())
parts = torch.ones(6, device="npu", requires_grad=True)
for _ in range(3):
    loss = layer(values).square().mean()
    loss.backward()
    loss.item()  # synchronization*3
    clip(layer.parameters(), 1.0, error_if_nonfinite=True)  # synchronization*3
    optimizer.step()
gamma = torch.lgamma(parts * 2)  # cpu_fallback*1 cpu_fallback-backward*1
gamma.sum().backward()
values.cpu()  # copy*1 synchronization*1
values.tolist()  # copy*1 synchronization*1
values.to("cpu", non_blocking=True)  # copy*1
values[values > 2]  # synchronization*1
values[values > 9] = torch.ones((), device="npu")  # synchronization*1
values[torch.arange(2, device="npu")] = 0.0
values.nonzero()  # synchronization*1
torch.unique(values)  # synchronization*1
torch.masked_select(values, values > 2)  # synchronization*1
torch.equal(values, values)  # synchronization*1
if values.any():  # synchronization*1
    pass
torch.repeat_interleave(values, torch.ones(6, dtype=torch.int64, device="npu"), output_size=6)
values.double()  # float64*1
values.double()  # float64*1
try:
    values + torch.ones(6)  # wrong_device*1
except RuntimeError:
    pass
torch.bmm(values.long().reshape(1, 2, 3), values.long().reshape(1, 3, 2))  # dtype*1
torch.npu.synchronize()  # explicit_synchronization*1
torch.npu.current_stream().synchronize()  # explicit_synchronization*1
torch.trunc(values)  # cpu_remark*1
values.add_(1).sub_(torch.tensor(1.0))
torch.special.xlog1py(values, 2.0)  # cpu_fallback*1
"""


def marks(program: str) -> dict[tuple[str, int, bool], int]:
    """(kind, line, in the backward pass) to calls, as the comments of a program have them."""
    found = {}
    for number, line in enumerate(program.splitlines(), 1):
        for kind, backward, count in re.findall(
            r"(\w+?)(-backward)?\*(\d+)", line.partition("  # ")[2]
        ):
            found[kind, number, bool(backward)] = int(count)
    return found


@pytest.fixture
def reported(simulate: Simulate, tmp_path: Path) -> Callable[..., tuple[dict[str, Any], Any]]:
    """Runs a program with a report and gives the report and the finished process."""

    def run(
        program: str, *options: str, command: tuple[str, ...] = (PYTHON,)
    ) -> tuple[dict[str, Any], Any]:
        (tmp_path / "train.py").write_text(program)
        result = simulate("--report", "r.json", *options, "--", *command, "train.py")
        document = json.loads((tmp_path / "r.json").read_text())
        assert not list(tmp_path.glob(".*")), "parts are left"
        return document, result

    return run


# --- what is found, and where ---------------------------------------------------------------------


def test_every_finding_has_its_line_and_its_count(reported: Any, tmp_path: Path) -> None:
    document, result = reported(PROGRAM, "--html", "r.html")
    assert result.returncode == 0, result.stderr
    found: dict[tuple[str, int, bool], int] = {}
    for one in document["findings"]:
        assert one["file"] == "train.py"
        assert one["code"] == PROGRAM.splitlines()[one["line"] - 1].strip()
        key = (one["kind"], one["line"], one["backward"])
        found[key] = found.get(key, 0) + one["count"]
    assert found == marks(PROGRAM)

    whats = {one["what"] for one in document["findings"]}
    assert {"aten::lgamma.out", "aten::digamma.out", "aten::special_xlog1py.out"} <= whats
    assert {".item()", "copy to the host", "nonzero", "masked_select", "unique", "equal"} <= whats
    assert {"indexing with a mask", "assignment through a mask"} <= whats
    assert "float32 to float64 gives float32" in whats
    by_kind = {one["kind"]: one for one in document["findings"]}
    assert by_kind["wrong_device"]["detail"] == "npu:0, cpu"
    assert by_kind["dtype"]["what"] == "aten::bmm on int64"
    assert by_kind["dtype"]["detail"].startswith("torch.bmm on A2 (supported) lists float16")
    moved = [one["bytes"] for one in document["findings"] if one["kind"] == "copy"]
    assert sorted(moved) == [24, 24, 24, 24, 4 * (18 + 3)]

    order = [one["kind"] for one in document["findings"]]
    assert sorted(order, key=list(KINDS).index) == order
    check_totals(document)
    # The program's own output stays its own; the text is on the other stream, the page complete.
    assert result.stdout == ""
    assert "Hidden synchronisations: the host waits for the device: 15 calls" in result.stderr
    assert Balanced((tmp_path / "r.html").read_text()).open == []
    # torch_npu's own warning, once for an operator.
    assert result.stderr.count("The operator 'aten::lgamma.out' is not currently supported") == 1


def check_totals(document: dict[str, Any]) -> None:
    """The runtime's own counters hold the copies that were located, reads and fallbacks too."""
    (process,) = document["processes"]
    located = [one for one in document["findings"] if one["kind"] == "copy"]
    to_device = [one for one in located if one["what"] == "host to device"]
    assert process["copies"]["host to device"] >= sum(one["count"] for one in to_device)
    items = sum(one["count"] for one in document["findings"] if one["what"] == ".item()")
    to_host = sum(one["count"] for one in located if one["what"] == "device to host")
    assert process["copies"]["device to host"] >= to_host + items
    operators = {one["name"]: one["count"] for one in document["operators"]}
    assert operators["aten::addmm"] == 3
    assert operators["aten::lgamma.out"] == 1
    assert sum(operators.values()) == process["operators"]
    (device,) = process["devices"]
    assert 0 < device["peak_tensor_bytes"] <= device["peak_bytes"]
    assert process["ended"]
    assert (document["schema"], document["schema_version"]) == ("accel.simulate.porting", 1)
    assert (document["chip"], document["generation"]) == ("Ascend910B2", "A2")
    assert document["command"] == [PYTHON, "train.py"]
    assert set(document["versions"]) == {"accel", "python", "torch", "torch_npu"}


def test_the_excerpt_in_the_documentation_is_real(reported: Any) -> None:
    documented = (Path(PLACES[0]) / "docs/simulate.md").read_text()
    programs = re.findall(r"```python\n(.*?)```", documented, re.DOTALL)
    (excerpt,) = re.findall(r"```text\n(.*?)```", documented, re.DOTALL)
    _, result = reported(next(program for program in programs if "lgamma" in program))
    for line in excerpt.splitlines():
        assert line in result.stderr.splitlines(), f"{line}\n{result.stderr}"
    kinds = re.findall(r"^\| `(\w+)` \|", documented, re.MULTILINE)
    assert kinds == list(KINDS)


def test_backward_lines_are_those_of_the_forward(reported: Any) -> None:
    """Also in a custom function, whose own lines are the user's, and in a checkpoint."""
    program = """
import torch
from torch.utils.checkpoint import checkpoint

class Read(torch.autograd.Function):
    @staticmethod
    def forward(context, value):
        return value.clone()

    @staticmethod
    def backward(context, gradient):
        gradient.sum().item()  # synchronization*1
        return gradient

def block(value):
    return torch.lgamma(torch.lgamma(value))  # cpu_fallback*3 cpu_fallback-backward*2

value = torch.full((4,), 2.0, device="npu", requires_grad=True)
checkpoint(block, Read.apply(value), use_reentrant=False).sum().backward()
"""
    document, result = reported(program)
    assert result.returncode == 0, result.stderr
    found = {
        (one["kind"], one["line"], one["backward"]): one["count"] for one in document["findings"]
    }
    assert found == marks(program)


def test_a_program_that_fails_has_its_report(reported: Any) -> None:
    program = "import torch\ntorch.ones(1, device='npu').item()\nraise SystemExit(5)\n"
    document, result = reported(program)
    assert (result.returncode, document["exit_status"]) == (5, 5)
    assert [(one["kind"], one["line"]) for one in document["findings"]] == [("synchronization", 2)]
    assert document["notes"] == []


def test_what_the_chip_refuses_is_a_finding(reported: Any) -> None:
    program = "import torch\ntorch.ones(2, device='npu').bfloat16()\n"
    document, result = reported(program, "--chip", "910A")
    assert result.returncode == 1
    (one,) = document["findings"]
    assert (one["kind"], one["line"]) == ("refused", 2)
    assert "torch.bfloat16" in one["detail"]
    assert "Calls failed: calls that this chip refuses (1)" in result.stderr


def test_a_fallback_that_the_user_forbids_stays_forbidden(
    reported: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_NPU_FALLBACK_CPU_DISABLE", "1")
    document, result = reported("import torch\ntorch.lgamma(torch.ones(2, device='npu'))\n")
    assert result.returncode == 1
    assert "CPU fallback is disabled by TORCH_NPU_FALLBACK_CPU_DISABLE=1" in result.stderr
    assert [one["kind"] for one in document["findings"]] == ["cpu_fallback"]


# --- several processes ----------------------------------------------------------------------------

TWO = """
import torch
import torch.distributed as dist

dist.init_process_group("hccl")
rank = dist.get_rank()
value = torch.full((4,), float(rank), device="npu")
for _ in range(rank + 1):
    value.sum().item()  # synchronization*3
dist.destroy_process_group()
"""


def test_ranks_are_merged(reported: Any) -> None:
    launch = (PYTHON, "-m", "torch.distributed.run", "--nproc-per-node", "2")
    document, result = reported(TWO, "--devices", "2", command=launch)
    assert result.returncode == 0, result.stderr
    assert sorted(one["rank"] for one in document["processes"]) == ["0", "1"]
    assert all(one["ended"] for one in document["processes"])
    line = next(line for _, line, _ in marks(TWO))
    reads = [one for one in document["findings"] if one["line"] == line]
    assert [(one["what"], one["count"]) for one in reads] == [(".item()", 3)]


def test_a_killed_child_is_reported_as_far_as_it_got(reported: Any) -> None:
    program = """
    import os, signal, subprocess, sys
    child = "import torch, os; torch.ones(1, device='npu').item(); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", child]).returncode == -9
    import torch
    torch.ones(2, device="npu").tolist()
    """
    document, result = reported(textwrap.dedent(program))
    assert result.returncode == 0, result.stderr
    assert sorted(one["ended"] for one in document["processes"]) == [False, True]
    (note,) = document["notes"]
    (killed,) = (one for one in document["processes"] if not one["ended"])
    assert note.startswith(f"process {killed['pid']} was killed or left Python at once")


def test_a_program_that_activates_by_itself_writes_its_report(
    run_python: Any, tmp_path: Path
) -> None:
    """It merges what its children did, wherever they run."""
    (tmp_path / "below").mkdir()
    run_python(
        """
        import subprocess, sys
        from accel.simulate import Machine, activate
        activate(Machine(report="own.json"))
        import torch
        torch.ones(2, device="npu").tolist()
        child = "import torch; torch.ones(2, device='npu').tolist()"
        subprocess.run([sys.executable, "-c", child], check=True, cwd="below")
        """
    )
    document = json.loads((tmp_path / "own.json").read_text())
    assert len(document["processes"]) == 2
    assert {one["file"] for one in document["findings"]} == {"<string>"}
    assert {entry.name for entry in tmp_path.iterdir()} == {"below", "own.json"}
    assert list((tmp_path / "below").iterdir()) == []


def test_a_program_without_an_npu_is_told_so(reported: Any) -> None:
    document, result = reported("print('nothing')\n")
    assert (result.returncode, document["processes"]) == (0, [])
    assert "Nothing ran on the simulated NPU." in result.stderr
    assert document["notes"][0].startswith("no process used a simulated NPU")


def test_without_a_report_nothing_is_installed(run_python: Any) -> None:
    run_python(
        """
        from accel.simulate import activate
        activate()
        import sys, torch
        torch.ones(2, device="npu").sum().item()
        assert not [name for name in sys.modules if name.startswith("accel.simulate.porting")]
        """
    )


# --- the values and their pages -------------------------------------------------------------------


def finding(**changed: Any) -> Finding:
    given = {
        "kind": "copy", "what": "host to device", "file": "a.py", "line": 3, "backward": False,
        "code": "x.to(device)", "detail": "", "count": 1, "bytes": 8,
    }  # fmt: skip
    return Finding(**{**given, **changed})


def part(pid: int, findings: tuple[Finding, ...], ended: bool = True) -> parts.Part:
    process = Process(
        pid=pid, rank="", program="a.py", ended=ended, seconds=1.0, operators=2,
        copies={"host to device": 1, "device to host": 0},
        copied_bytes={"host to device": 8, "device to host": 0}, synchronizations=0,
        devices=(DeviceMemory(0, 2_000_000, 1_500),),
    )  # fmt: skip
    return parts.Part(process, findings, (Operator("aten::add", 2, 0.5),), {"torch": "2.13.0"})


def test_parts_are_added_up_in_order_of_cost(tmp_path: Path) -> None:
    stem = parts.new_stem(str(tmp_path / "r.json"))
    cheap = finding(line=9, bytes=1)
    stop = finding(kind="wrong_device", what="aten::add", bytes=0)
    parts.write_part(parts.part_name(stem), part(12, (cheap, finding(count=2))))
    parts.write_part(parts.part_name(stem), part(7, (finding(bytes=5), stop), ended=False))
    (tmp_path / (Path(stem).name + ".1-0.part.json")).write_text('{"schema": "accel.simulate')
    (tmp_path / ".r.json.other.1-0.part.json").write_text("of another run")
    read, notes = parts.take_parts(stem)
    report = parts.merge(Machine(), read, notes, command=["a"], exit_status=0)
    assert [one.pid for one in report.processes] == [7, 12]
    assert report.findings == (stop, finding(count=3, bytes=13), cheap)
    assert report.operators == (Operator("aten::add", 4, 1.0),)
    assert len(report.notes) == 2
    assert "could not be read" in report.notes[0]
    assert report.notes[1].startswith("process 7 was killed")
    assert [entry.name for entry in tmp_path.iterdir()] == [".r.json.other.1-0.part.json"]


def whole(*findings: Finding, exit_status: int | None = 0) -> Report:
    return parts.merge(Machine(), [part(1, findings)], exit_status=exit_status)


def test_the_text_names_kinds_in_order_and_shortens() -> None:
    many = tuple(finding(line=line, count=1, bytes=100 - line) for line in range(1, 15))
    said = text.to_text(whole(*many, finding(kind="synchronization", what=".item()", bytes=0)))
    assert said.startswith(
        "Porting report: Ascend910B2 (A2), 1 process, 2 calls of operators, exit status 0"
    )
    assert "No call was refused; 15 places to look at for speed, dtype or accuracy." in said
    assert said.index("Hidden synchronisations") < said.index("Copies between")
    assert "and 4 more places" in said
    assert "a.py:10 " in said
    assert "a.py:11 " not in said
    assert re.search(r"npu:0 +1.5 kB +2 MB", said)


def test_a_failed_program_is_not_called_good() -> None:
    for report in (
        whole(exit_status=1),
        whole(finding(kind="missing")),
        parts.merge(Machine(), []),
    ):
        assert 'class="verdict bad"' in page.to_html(report)
    assert 'class="verdict good"' in page.to_html(whole(finding()))


def test_the_page_escapes_the_program(tmp_path: Path) -> None:
    hostile = "</td><script>alert(1)</script>"
    made = page.to_html(whole(finding(code=hostile, file=hostile, what=hostile, detail=hostile)))
    parsed = Balanced(made)
    assert parsed.open == []
    assert parsed.loads == []
    assert parsed.tags.count("script") == 1  # the page's own
    assert made.count("&lt;script&gt;alert(1)") == 4


def test_every_kind_has_a_title_and_advice_for_a_reader() -> None:
    for kind in KINDS.values():
        assert kind.title[0].isupper()
        assert kind.advice.endswith(".")


def test_the_users_line_is_outside_the_libraries(tmp_path: Path) -> None:
    for name in ("torch", "accel_kernels"):
        importlib.import_module(name)
    site = Path(pytest.__file__).parents[1]
    locator = Locator()
    assert locator._decide(__file__)
    assert locator._decide(str(site / "someone/model.py"))
    assert locator._decide("<string>")
    for name in ("torch/nn/modules/linear.py", "torch/_ops.py"):
        assert not locator._decide(str(site / name))
    assert not locator._decide(json.__file__)
    assert not locator._decide(f"{PLACES[0]}/accel/attention/api.py")
    assert not locator._decide(f"{PLACES[1]}/accel_kernels/masks.py")
    assert not locator._decide("<frozen importlib._bootstrap>")
    assert not locator._decide("<eval_with_key>.3")
    found, passed = locator.find()
    assert found is not None
    assert (found.file, passed) == (__file__, False)
    assert shown(str(tmp_path / "a/b.py"), str(tmp_path)) == "a/b.py"
    assert shown(str(tmp_path / "b.py"), str(tmp_path / "a")) == str(tmp_path / "b.py")
