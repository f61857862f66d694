"""How the targets spell what the rules say, and whether what they spell is there."""

import ast
import inspect
import re
import sys
import warnings
from pathlib import Path

import pytest
import torch

import accel
from accel.convert import targets_npu, targets_torch
from accel.convert.engine import convert_source
from accel.convert.finding import Span
from accel.convert.options import Options
from accel.convert.rules import RULES
from accel.convert.rules.functions_table import DTYPES
from accel.convert.targets import target_of

TORCH = target_of("torch", "accel")
NPU = target_of("npu", "accel")
ACCEL = target_of("accel", "accel")
NAMES = sorted({*targets_torch.SPELLINGS, *targets_torch.CALLS, *targets_npu.SPELLINGS})


def text(parts) -> str:
    return "".join(part if isinstance(part, str) else ast.unparse(part) for part in parts)


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_one_of_accel_s_functions(name) -> None:
    spelled = ACCEL.function(name)
    assert spelled is not None
    assert hasattr(accel, spelled.removeprefix("accel."))


@pytest.mark.parametrize("name", sorted(targets_torch.SPELLINGS))
def test_what_the_target_torch_refers_to_is_there(name) -> None:
    spelled = TORCH.function(name)
    if spelled.startswith("torch.get_device_module()"):
        return assert_cuda_has(name)
    value = torch
    for part in spelled.split(".")[1:]:
        value = getattr(value, part)
    assert callable(value)
    return None


def assert_cuda_has(name: str) -> None:
    assert callable(getattr(torch.cuda, name))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [(name, count) for name, by in targets_torch.CALLS.items() for count in by],
)
def test_what_the_target_torch_calls_runs_on_a_cpu_or_warns(name, arguments) -> None:
    """Templates parse; those without an argument do not raise here, unless a warning says so."""
    nodes = [ast.parse("x", mode="eval").body for _ in range(max(arguments, 0))]
    spelled = text(TORCH.call(name, *nodes))
    ast.parse(spelled, mode="eval")
    if arguments > 0 or name in TORCH.warnings:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that amp is disabled without CUDA
        eval(spelled, {"torch": torch})


@pytest.mark.skipif(torch.accelerator.is_available(), reason="an accelerator is here")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_mixed_precision_stays_off_on_a_cpu() -> None:
    assert not eval(text(TORCH.call("GradScaler")), {"torch": torch}).is_enabled()
    with eval(text(TORCH.call("autocast", ("dtype=torch.float16",))), {"torch": torch}):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


@pytest.mark.skipif(torch.accelerator.is_available(), reason="an accelerator is here")
def test_warnings_are_true_on_this_cpu() -> None:
    silent, raising = [], []
    for name, spelled in targets_torch.SPELLINGS.items():
        parameters = ()
        if name in ("set_device", "device_index"):
            parameters = (0,)
        if not spelled.startswith("torch.accelerator.") or name == "set_stream":
            continue
        try:
            eval(spelled, {"torch": torch})(*parameters)
        except RuntimeError:
            raising.append(name)
        else:
            silent.append(name)
    assert set(raising) == set(raising) & set(TORCH.warnings)
    assert not set(silent) & set(TORCH.warnings)


def test_a_call_keeps_the_nodes_it_is_given() -> None:
    node = ast.parse("a + b", mode="eval").body
    span = Span(3, 5)
    assert ACCEL.call("device", node) == ("accel.device(", node, ")")
    assert ACCEL.call("autocast", ("dtype=", node), span) == (
        "accel.autocast(", "dtype=", node, ", ", span, ")",
    )  # fmt: skip
    assert TORCH.call("on_accelerator", node) == (
        "(", "(", node, ")", '.device.type not in ("cpu", "meta"))',
    )  # fmt: skip
    assert text(NPU.call("device_str", node)) == 'str(torch.device("npu", a + b))'
    autocast = text(TORCH.call("autocast", ("dtype=", node), ("enabled=", node)))
    available = "torch.accelerator.is_available()"
    assert autocast.endswith(f'or "cpu"), enabled=(a + b) and {available}, dtype=a + b)')


def test_what_a_target_lacks_is_none() -> None:
    node = ast.parse("x", mode="eval").body
    assert TORCH.function("setenv") is None
    assert TORCH.call("setenv", node, node) is None
    assert TORCH.call("dist_backend", node) is None
    assert TORCH.function("autocast") is None
    assert NPU.call("device_named", node) is None
    assert NPU.function("annotate") is None
    assert NPU.call("annotate", node, node) is None
    assert TORCH.tensor_class("torch.cuda.FloatTensor") is None


def test_imports() -> None:
    assert ACCEL.importable("synchronize") == ("accel", "synchronize")
    assert TORCH.importable("mem_get_info") == ("torch.accelerator", "get_memory_info")
    assert TORCH.importable("seed") is None
    assert NPU.importable("current_device_index") == ("torch.npu", "current_device")


def test_the_library_under_another_name() -> None:
    assert target_of("accel", "accel_torch").function("device") == "accel_torch.device"


def test_device_names_of_unknown_content_have_their_own_spelling() -> None:
    node = ast.parse("args.device", mode="eval").body
    assert text(ACCEL.call("device_named", node)) == "accel.device(args.device)"
    assert text(TORCH.call("device_named", node)) == "torch.device(args.device)"


def test_a_finding_says_where_a_cpu_would_raise() -> None:
    program = b"import torch\n\ntorch.cuda.synchronize()\nprint(torch.cuda.is_available())\n"
    result = convert_source(program, "a.py", Options(target="torch"))
    assert b"torch.accelerator.synchronize()" in result.after
    by_line = {f.line: f for f in result.findings if f.action == "convert"}
    assert "raises on a machine that has only a CPU" in by_line[3].message
    assert by_line[3].effort == "review"
    assert "raises" not in by_line[4].message


def said(line: str, target: str = "torch") -> tuple[str, str]:
    """The message and the effort of a program's only finding."""
    program = f"import torch\n\n{line}\n".encode()
    result = convert_source(program, "a.py", Options(target=target))
    (finding,) = (f for f in result.findings if f.action == "convert")
    return finding.message, finding.effort


@pytest.mark.parametrize(
    ("line", "differs"),
    [
        ("x = x.cuda()", False),
        ("x = x.cuda(1)", True),
        ("x = x.to('cuda')", False),
        ("x = x.to('cuda:1')", True),
        ("print('torch.device(1)')\nx = x.to(torch.device('cuda'))", False),
        ("s = torch.load('a', map_location='cuda')", False),
        ("s = torch.load('a', map_location='cuda:1')", True),
        ("g = torch.Generator('cuda')", False),
        ("g = torch.Generator('cuda:1')", True),
        ("torch.cuda.synchronize(torch.device(n))", True),
        ("n = torch.cuda.device_count()", False),
        ("torch.cuda.manual_seed(1)", True),
        ("g = torch.cuda.default_generators[0]", True),
        ("print(f'{torch.cuda.current_device()}')", True),
        ("f = torch.cuda.is_available", False),
        ("f = torch.cuda.get_device_name", True),
        ("e = torch.cuda.Event(enable_timing=True)", True),
    ],
)
def test_a_caution_is_that_of_what_is_called(line, differs) -> None:
    message, effort = said(line)
    assert (re.search("on a machine that has only a CPU|; .*on a CPU", message) is not None) == (
        differs
    )
    assert effort == ("review" if differs else "auto")
    assert ".;" not in message


def test_a_caution_of_an_imported_name() -> None:
    program = b"from torch.cuda import device_count, synchronize\n\nsynchronize()\n"
    (finding,) = (
        f
        for f in convert_source(program, "a.py", Options(target="torch")).findings
        if f.action == "convert"
    )
    assert finding.message.endswith(
        "; torch.accelerator.synchronize raises on a machine that has only a CPU"
    )
    assert finding.effort == "review"


@pytest.mark.parametrize("target", ["torch", "npu"])
@pytest.mark.parametrize(
    "line",
    [
        "x = x.pin_memory()",
        "x = x.pin_memory().to(device)",
        "m = torch.nn.parallel.DistributedDataParallel(m, device_ids=[rank], output_device=rank)",
        "torch.distributed.barrier(device_ids=[rank])",
    ],
)
def test_what_a_target_writes_as_it_stands_is_no_conversion(line, target) -> None:
    program = f"import torch\n\nx = torch.ones(2)\n{line}\n".encode()
    first = convert_source(program, "a.py", Options(target=target))
    again = convert_source(first.after, "a.py", Options(target=target))
    assert again.after == first.after
    assert {f.action for f in again.findings} <= {"keep", "flag"}
    assert all(entry.action != "convert" for entry in again.ledger)
    if not first.is_changed:
        assert {f.action for f in first.findings} <= {"keep", "flag"}


ZOO = sorted((Path(__file__).parent / "convert" / "zoo").glob("*.py"))
PROGRAMS = [
    *(path.read_text(encoding="utf-8") for path in ZOO),
    *(
        program
        for rule in RULES
        if not "ACC120" <= rule.id <= "ACC139" and rule.id < "ACC150"
        for program in (*(example.before for example in rule.examples), *rule.kept)
    ),
]


@pytest.mark.parametrize("target", ["torch", "npu"])
def test_a_second_run_converts_nothing_and_names_are_imported(target) -> None:
    converted = 0
    for program in PROGRAMS:
        first = convert_source(program.encode(), "a.py", Options(target=target))
        again = convert_source(first.after, "a.py", Options(target=target))
        assert (first.error, again.after) == ("", first.after)
        found = [f for f in again.findings if f.action == "convert"]
        assert found == [], first.after.decode()
        converted += sum(f.action == "convert" for f in first.findings)
        if first.is_changed:
            assert missing(program) or not missing(first.after.decode()), first.after.decode()
    assert converted > 300


def missing(program: str) -> bool:
    """Whether a program speaks of torch and imports no such name."""
    nodes = list(ast.walk(ast.parse(program)))
    imports = [node for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom))]
    bound = {(a.asname or a.name).partition(".")[0] for node in imports for a in node.names}
    used = {node.id for node in nodes if isinstance(node, ast.Name)}
    return "torch" in used and not bound & {"torch", "*"}


@pytest.mark.parametrize(
    "line",
    [
        "x = isinstance(y, torch.cuda.FloatTensor)",
        "x = y.type() in ('torch.cuda.FloatTensor', 'torch.cuda.HalfTensor')",
        "x = y.type() not in ['torch.cuda.FloatTensor']",
    ],
)
def test_a_question_about_a_class_that_the_target_lacks_is_flagged(line) -> None:
    program = f"import torch\n\n{line}\n".encode()
    result = convert_source(program, "a.py", Options(target="torch"))
    assert result.after == program
    assert {entry.action for entry in result.ledger} == {"flag"}
    npu = convert_source(program, "a.py", Options(target="npu")).after.decode()
    assert npu == f"import torch\nimport torch_npu\n\n{line.replace('cuda', 'npu')}\n"


def test_what_stands_already_says_what_it_does_on_a_cpu() -> None:
    program = b"import torch\n\nx = torch.ones(2).pin_memory()\n"
    (torch_s,) = convert_source(program, "a.py", Options(target="torch")).findings
    assert torch_s.action in ("keep", "flag")
    assert "raises on a machine that has only a CPU" in torch_s.message
    (npu_s,) = convert_source(program, "a.py", Options(target="npu")).findings
    assert npu_s.action == "keep"
    assert "raises" not in npu_s.message


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            "import torch.cuda as c\n\nc.synchronize()\n",
            "import torch\nimport torch_npu\n\ntorch.npu.synchronize()\n",
        ),
        (
            "import torch.distributed as dist\n\ndist.init_process_group('nccl')\n",
            "import torch.distributed as dist\nimport torch_npu\n\n"
            'dist.init_process_group("hccl")\n',
        ),
        (
            "from torch.cuda import synchronize\nimport torch\n\nsynchronize()\n",
            "import torch_npu\nfrom torch.npu import synchronize\nimport torch\n\nsynchronize()\n",
        ),
        (
            "import os\n\ntry:\n    from torch.cuda.amp import GradScaler\n"
            "except ImportError:\n    pass\nimport torch\n",
            "import os\nimport torch_npu\n\ntry:\n    from torch.npu.amp import GradScaler\n"
            "except ImportError:\n    pass\nimport torch\n",
        ),
        (
            "def f():\n    from torch.cuda import synchronize\n    synchronize()\n",
            "import torch_npu\ndef f():\n    from torch.npu import synchronize\n"
            "    synchronize()\n",
        ),
    ],
)
def test_the_target_npu_has_its_imports_before_what_needs_them(before, after) -> None:
    result = convert_source(before.encode(), "a.py", Options(target="npu"))
    assert result.after.decode() == after


def test_the_target_npu_imports_its_package() -> None:
    program = b"import torch\n\ntorch.cuda.synchronize()\n"
    result = convert_source(program, "a.py", Options(target="npu"))
    assert result.after == b"import torch\nimport torch_npu\n\ntorch.npu.synchronize()\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("x = torch.cuda.FloatTensor(2)", "x = torch.npu.FloatTensor(2)"),
        ("x = isinstance(y, torch.cuda.LongTensor)", "x = isinstance(y, torch.npu.LongTensor)"),
        ("def f(x: torch.cuda.HalfTensor): ...", "def f(x: torch.npu.HalfTensor): ..."),
        ('x = y.type("torch.cuda.ByteTensor")', 'x = y.type("torch.npu.ByteTensor")'),
        ("x = y.type() == 'torch.cuda.IntTensor'", "x = y.type() == 'torch.npu.IntTensor'"),
        ("x = y.type('torch.' 'cuda.IntTensor')", "x = y.type('torch.npu.IntTensor')"),
        ("torch.cuda.nvtx.range_push('a')", "torch.npu.mstx.range_push('a')"),
        ("with torch.cuda.nvtx.range('a'): ...", "with torch.npu.mstx.annotate('a'): ..."),
    ],
)
def test_the_target_npu_has_tensor_classes_and_marks(before, after) -> None:
    result = convert_source(f"import torch\n\n{before}\n".encode(), "a.py", Options(target="npu"))
    assert result.after.decode() == f"import torch\nimport torch_npu\n\n{after}\n"
    assert {entry.action for entry in result.ledger} == {"convert"}


@pytest.mark.parametrize(
    "line",
    [
        "print('torch.cuda.FloatTensor')",
        "torch.set_default_tensor_type('torch.cuda.FloatTensor')",
        "with torch.cuda.nvtx.range('a {}', 1): ...",
        "x = torch.cuda.nvtx.range",
    ],
)
def test_what_the_target_npu_cannot_say_is_flagged(line) -> None:
    program = f"import torch\n\n{line}\n".encode()
    result = convert_source(program, "a.py", Options(target="npu"))
    assert result.after == program
    assert {entry.action for entry in result.ledger} == {"flag"}


def test_torch_npu_has_the_tensor_classes_and_the_marks() -> None:
    """By its source, since it is not imported here."""
    home = Path(sys.prefix) / "torch-npu/torch_npu/npu"
    if not home.is_dir():
        pytest.skip("torch-npu is not here: accel simulate --install")
    public = ast.literal_eval(
        next(
            node.value
            for node in ast.parse((home / "__init__.py").read_text()).body
            if isinstance(node, ast.Assign) and node.targets[0].id == "__all__"
        )
    )
    assert {*DTYPES, "mstx"} <= set(public)
    marks = next(
        node
        for node in ast.parse((home / "mstx.py").read_text()).body
        if isinstance(node, ast.ClassDef) and node.name == "mstx"
    )
    names = {node.name for node in marks.body if isinstance(node, ast.FunctionDef)}
    assert {"mark", "range_push", "range_pop", "range_start", "range_end"} <= names


def test_accel_s_signatures_have_the_order_that_call_documents() -> None:
    assert list(inspect.signature(accel.to_accelerator).parameters)[:2] == [
        "tensor_or_module", "device",
    ]  # fmt: skip
    assert list(inspect.signature(accel.record_stream).parameters) == ["tensor", "stream"]
    assert next(iter(inspect.signature(accel.autocast).parameters)) == "enabled"


TRAINER = """\
import torch

torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
model = torch.nn.Linear(4, 1).to(device)
optimizer = torch.optim.SGD(model.parameters(), 0.1)
scaler = torch.amp.GradScaler("cuda", enabled=True)
x = torch.ones(2, 4).to(device)
losses = []
for _ in range(3):
    with torch.autocast("cuda", dtype=torch.float16):
        loss = model(x).square().mean()
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    losses.append(loss.item())
if x.is_cuda:
    torch.cuda.synchronize()
"""


@pytest.mark.skipif(torch.accelerator.is_available(), reason="the CPU's numbers")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("target", ["accel", "torch"])
def test_a_converted_trainer_computes_what_it_did_on_a_cpu(target) -> None:
    result = convert_source(TRAINER.encode(), "a.py", Options(target=target))
    after = result.after.decode()
    assert "cuda" not in after
    assert ("accel." in after) == (target == "accel")
    before, now = {}, {}
    exec(compile(TRAINER, "before.py", "exec"), before)
    exec(compile(after, "after.py", "exec"), now)
    assert now["losses"] == before["losses"]
