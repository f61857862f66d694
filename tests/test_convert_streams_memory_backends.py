"""Streams, profiles, random states, page-locked memory and flags, beyond the rules' examples."""

import pytest
import torch

from accel.convert.engine import convert_source
from accel.convert.options import Options
from accel.convert.project import Project, index


def convert(program: str, project: Project | None = None, **options):
    result = convert_source(program.encode(), "program.py", Options(**options), project)
    assert result.error == ""
    assert [entry for entry in result.ledger if entry.action == "missing"] == []
    again = convert_source(result.after, "program.py", Options(**options), project)
    assert again.after == result.after
    return result


def line(expression: str) -> str:
    """One converted statement."""
    return convert(f"import torch\n\n{expression}\n").after.decode().splitlines()[-1]


ACTIVITY = "torch.profiler.ProfilerActivity"
LINES = {
    "(a + b).record_stream(torch.cuda.current_stream())": (
        "accel.record_stream(a + b, accel.current_stream())"
    ),
    "x = f'{y.pin_memory()}'": "x = f'{accel.pin_memory(y)}'",
    "x = [y.pin_memory() for y in ys]": "x = [accel.pin_memory(y) for y in ys]",
    "x = y.pin_memory(device='cuda')": "x = accel.pin_memory(y)",
    "x = y.pin_memory('cpu')": "x = y.pin_memory('cpu')",
    "x = y.new_zeros(3, pin_memory=True)": "x = y.new_zeros(3, pin_memory=accel.is_available())",
    f"x = [{ACTIVITY}.CUDA]": "x = accel.profiler_activities(cpu=False)",
    f"x = run(activities={{{ACTIVITY}.CPU, {ACTIVITY}.CUDA}})": (
        "x = run(activities=accel.profiler_activities())"
    ),
    f"x.add({ACTIVITY}.CUDA)": "x.update(accel.profiler_activities(cpu=False))",
    f"x = [{ACTIVITY}.CUDA, {ACTIVITY}.XPU]": f"x = [{ACTIVITY}.CUDA, {ACTIVITY}.XPU]",
    f"x = {ACTIVITY}.CUDA in kinds": f"x = {ACTIVITY}.CUDA in kinds",
    "x = torch.cuda.current_stream().cuda_stream": "x = accel.current_stream().native_handle",
    "x = s.cuda_stream": "x = s.cuda_stream",
    "x = torch.distributed.is_backend_available('nccl')": (
        "x = accel.is_accelerator_backend_available()"
    ),
    "x = torch.distributed.is_backend_available(backend='NCCL')": (
        "x = accel.is_accelerator_backend_available()"
    ),
    "x = torch.distributed.is_backend_available(name)": (
        "x = torch.distributed.is_backend_available(name)"
    ),
    "x = torch.distributed.is_backend_available('gloo')": (
        "x = torch.distributed.is_backend_available('gloo')"
    ),
    "x = torch.cuda.Event.from_ipc_handle(d, h)": "x = torch.cuda.Event.from_ipc_handle(d, h)",
    "x = torch.Generator('cuda')": "x = accel.generator()",
    "x = torch.Generator(device='cuda:2')": "x = accel.generator(2)",
    "x = torch.random.fork_rng(ids, False)": "x = accel.fork_rng(ids, False)",
    "x = torch.random.fork_rng(ids, device_type=kind)": (
        "x = torch.random.fork_rng(ids, device_type=kind)"
    ),
    "torch.backends.cuda.matmul.allow_tf32 = not exact": (
        "accel.allow_tf32(not exact, conv=False)"
    ),
    "torch.backends.cudnn.allow_tf32 |= fast": "torch.backends.cudnn.allow_tf32 |= fast",
}


@pytest.mark.parametrize("before", LINES)
def test_lines(before) -> None:
    assert line(before) == LINES[before]


def test_an_attribute_of_the_programs_own_is_no_handle() -> None:
    program = "import torch\n\nx = holder.cuda_stream\n"
    assert "ACC052" in {f.rule for f in convert(program).findings}
    project = Project(names=frozenset({"cuda_stream"}))
    assert "ACC052" not in {f.rule for f in convert(program, project).findings}


OWN = """import torch


class Batch:
    def __init__(self, x):
        self.x = x

    def record_stream(self, s):
        self.x.record_stream(s)  # convert

    def pin_memory(self):
        self.x = self.x.pin_memory()  # convert
        return self


def put(batch, s):
    batch.record_stream(s)  # flag
    return batch.pin_memory()  # flag


b = Batch(torch.zeros(1))
b.record_stream(None)
b.pin_memory()
t = torch.zeros(1).pin_memory()  # convert
t.record_stream(None)  # convert
"""


def test_methods_of_the_programs_own_are_called_as_before() -> None:
    result = convert(OWN)
    found = {f.line: f.action for f in result.findings}
    lines = OWN.splitlines()
    wanted = {n: line.split("# ")[1] for n, line in enumerate(lines, 1) if "# " in line}
    assert found == wanted
    scope: dict[str, object] = {}
    exec(compile(result.after.decode(), "program.py", "exec"), scope)


def test_a_question_about_an_imported_class_keeps_its_import() -> None:
    program = "from torch.cuda import Stream\n\nx = type(s) is Stream\n"
    result = convert(program)
    assert result.after == result.before
    assert "flag" in {f.action for f in result.findings}


def test_a_method_of_another_file_is_for_a_human() -> None:
    program = "import torch\n\ndef f(batch):\n    return batch.pin_memory()\n"
    project = index({"batch.py": b"class B:\n    def pin_memory(self):\n        return self\n"})
    assert b"accel.pin_memory(batch)" in convert(program).after
    assert {f.action for f in convert(program, project).findings} == {"flag"}


STREAMS = {
    "s = torch.cuda.Stream(priority=-1)\nx = s.priority": "flag",
    "x = torch.cuda.current_stream().priority_range()": "flag",
    "def f(s: torch.cuda.Stream | None):\n    return s.priority": "flag",
    "x = task.priority": "",
    "x = type(s) is torch.cuda.Stream": "flag",
    "x = torch.cuda.Event != type(s)": "flag",
    "x = type(s) in (int, torch.cuda.Stream)": "flag",
    "x = issubclass(kind, (int, torch.cuda.Stream))": "flag",
    "x = isinstance(s, torch.cuda.Stream)": "convert",
    "x = torch.cuda.Stream() == s": "convert",
}


@pytest.mark.parametrize(("program", "action"), STREAMS.items())
def test_what_only_cudas_streams_have_is_for_a_human(program, action) -> None:
    found = convert(f"import torch\n\n{program}\n").findings
    actions = {f.action for f in found if f.rule == "ACC050"}
    assert actions - {"convert"} == {action} - {"convert", ""}
    assert not action or action in actions
    if "type(s) i" in program or "issubclass" in program:
        assert "accel" not in line(program)


def test_streams_kept_in_attributes() -> None:
    program = (
        "import torch\n\nclass A:\n    def __init__(self):\n"
        "        self.s = torch.cuda.Stream()\n\n"
        "    def f(self):\n        return self.s.cuda_stream\n"
    )
    assert "self.s.native_handle" in convert(program).after.decode()


@pytest.mark.parametrize("target", ["torch", "npu"])
def test_other_targets_name_no_library_of_ours(target) -> None:
    program = (
        "import torch\n\nx = y.pin_memory()\nx.record_stream(torch.cuda.current_stream())\n"
        "g = torch.Generator('cuda')\ntorch.cuda.manual_seed(1)\n"
    )
    after = convert(program, target=target).after.decode()
    assert "accel." not in after.replace("torch.accelerator", "")
    assert "torch.cuda" not in after


def _set(matmul: bool, conv: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = matmul
    torch.backends.cudnn.allow_tf32 = conv


PROGRAM = """
import torch

torch.manual_seed(0)
torch.cuda.manual_seed_all(0)
torch.backends.cuda.matmul.allow_tf32 = True
torch.backends.cudnn.allow_tf32 = False
states = torch.cuda.get_rng_state_all()
with torch.random.fork_rng():
    torch.rand(3)
x = torch.rand(3)
flags = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
"""


@pytest.mark.skipif(torch.accelerator.is_available(), reason="the CPU's numbers")
def test_a_cpu_has_the_flags_and_numbers_that_it_had(request) -> None:
    # The program sets them; they are put back afterwards.
    was = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    request.addfinalizer(lambda: _set(*was))
    scopes = []
    for program in (PROGRAM, convert(PROGRAM).after.decode()):
        scopes.append({})
        exec(compile(program, "program.py", "exec"), scopes[-1])
    before, after = scopes
    assert torch.equal(before["x"], after["x"])
    assert before["states"] == after["states"] == []
    assert before["flags"] == after["flags"] == (True, False)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="what raised on a CPU")
def test_what_raised_on_a_cpu_runs_there() -> None:
    program = (
        "import torch\n\ns = torch.cuda.Stream()\nwith torch.cuda.stream(s):\n"
        "    x = torch.ones(2).pin_memory()\nx.record_stream(s)\n"
        "torch.cuda.nvtx.range_push('x')\ntorch.cuda.nvtx.range_pop()\n"
        "e = torch.cuda.Event(enable_timing=True)\ne.record()\n"
        "h = torch.empty(2, pin_memory=True)\ntorch.cuda.synchronize()\n"
    )
    with pytest.raises((RuntimeError, AssertionError)):
        exec(compile(program, "program.py", "exec"), {})
    scope: dict[str, torch.Tensor] = {}
    exec(compile(convert(program).after.decode(), "program.py", "exec"), scope)
    assert scope["x"].tolist() == [1.0, 1.0]
