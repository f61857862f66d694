"""Mixed precision: which calls are CUDA's, and that converted ones do on a CPU what they did."""

import warnings

import pytest
import torch

from accel.convert.engine import convert_source
from accel.convert.options import Options


def convert(program: str, **options):
    result = convert_source(program.encode(), "program.py", Options(**options))
    assert result.error == ""
    assert [entry for entry in result.ledger if entry.action == "missing"] == []
    if options.get("target", "accel") == "accel":
        again = convert_source(result.after, "program.py", Options(**options))
        assert again.after == result.after
    return result


def body(program: str, **options) -> str:
    """The converted program without the import lines."""
    lines = convert(program, **options).after.decode().splitlines()
    return "\n".join(line for line in lines if not line.startswith(("import", "from"))).strip()


CALLS = {
    "torch.autocast('cuda')": "accel.autocast()",
    "torch.autocast('cuda',)": "accel.autocast()",
    "torch.autocast(device_type='cuda',)": "accel.autocast()",
    "torch.autocast(dtype=d, device_type='cuda')": "accel.autocast(dtype=d)",
    "torch.autocast(enabled=e, device_type='cuda', dtype=d)": "accel.autocast(enabled=e, dtype=d)",
    "torch.autocast('cuda', d)": "accel.autocast(dtype=d)",
    "torch.autocast('cuda', d, e, c)": "accel.autocast(dtype=d, enabled=e, cache_enabled=c)",
    "torch.autocast('cuda', enabled=e)": "accel.autocast(enabled=e)",
    "torch.autocast(device_type='cuda', **more)": "accel.autocast(**more)",
    "torch.amp.GradScaler()": "accel.GradScaler()",
    "torch.amp.GradScaler('cuda', 2.0, growth_interval=5)": (
        "accel.GradScaler(2.0, growth_interval=5)"
    ),
    "torch.amp.GradScaler(device='cuda', enabled=e)": "accel.GradScaler(enabled=e)",
    "torch.amp.custom_fwd(f, device_type='cuda')": "accel.custom_fwd(f)",
    "torch.amp.custom_bwd(device_type='cuda')(f)": "accel.custom_bwd(f)",
    "torch.cuda.amp.autocast(e, d)": "accel.autocast(e, d)",
    "torch.autocast(kind)": "torch.autocast(kind)",
    "torch.autocast('cpu')": "torch.autocast('cpu')",
    "torch.amp.GradScaler(device=kind)": "torch.amp.GradScaler(device=kind)",
    "torch.autocast(*given)": "torch.autocast(*given)",
}


@pytest.mark.parametrize("before", CALLS)
def test_calls(before) -> None:
    assert body(f"import torch\n\n{before}\n") == CALLS[before]


def test_a_name_for_cuda_counts_as_cuda_unless_exec_may_set_it() -> None:
    plain = "import torch\n\nkind = 'cuda'\ntorch.autocast(kind)\n"
    assert "accel.autocast()" in body(plain)
    configured = plain.replace("torch.autocast", "exec(open('config.py').read())\ntorch.autocast")
    assert "torch.autocast(kind)" in body(configured)


def test_an_attribute_that_is_always_cuda() -> None:
    program = (
        "import torch\n\nclass Trainer:\n    def __init__(self, kind):\n        self.kind = {}\n\n"
        "    def step(self):\n        return torch.autocast(device_type=self.kind)\n"
    )
    assert "accel.autocast()" in body(program.format("'cuda'"))
    assert "torch.autocast(device_type=self.kind)" in body(program.format("kind"))


# Programs in which the text `cuda` reaches an amp function through a variable, and what they ask.
REACHED = {
    "def f(kind):\n    return torch.autocast(kind)\n\nf('cuda')\n": "flag",
    "def f(kind):\n    return torch.autocast(kind)\n\nf('cpu')\n": "keep",
    "p.add_argument('--device', default='cuda')\na = p.parse_args()\n"
    "torch.autocast(device_type=a.device)\n": "flag",
    "class A:\n    def __init__(self, device='cuda'):\n        self.device = device\n\n"
    "    def f(self):\n        return torch.autocast(self.device)\n": "flag",
    "conf = {'device': 'cuda'}\ntorch.autocast(conf['device'])\n": "flag",
    "device = torch.device('cuda')\ntorch.autocast(device.type)\n": "flag",
    "def f(kind='cuda'):\n    return torch.amp.GradScaler(device=kind)\n": "flag",
    "device = 'cuda' if torch.cuda.is_available() else 'cpu'\ntorch.autocast(device)\n": "keep",
    "device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')\n"
    "torch.autocast(device_type=device.type)\n": "keep",
    "if torch.cuda.is_available():\n    device = 'cuda'\nelse:\n    device = 'cpu'\n"
    "torch.autocast(device)\n": "keep",
    "device = 'cpu'\nif not torch.cuda.is_available():\n    pass\nelse:\n    device = 'cuda'\n"
    "torch.autocast(device)\n": "keep",
    "device = 'cuda'\nif not torch.cuda.is_available():\n    device = 'cpu'\n"
    "torch.autocast(device)\n": "keep",
    "p.add_argument('--device', default='cuda')\na = p.parse_args()\n"
    "if a.device == 'cuda' and not torch.cuda.is_available():\n    a.device = 'cpu'\n"
    "torch.autocast(a.device)\n": "keep",
    "device = 'cuda'\nif slow:\n    device = 'cpu'\ntorch.autocast(device)\n": "flag",
    "device = 'cuda'\ntorch.autocast(device)\nif not torch.cuda.is_available():\n"
    "    device = 'cpu'\n": "flag",
    # Asked before the call, in the ways of public programs.
    "def f(kind='cuda'):\n    if kind == 'cpu':\n        return None\n"
    "    return torch.autocast(kind)\n": "keep",
    "def f(kind='cuda'):\n    if kind == 'cuda':\n        return None\n"
    "    return torch.autocast(kind)\n": "flag",
    "def f(kind='cuda'):\n    return torch.autocast(kind, enabled=kind == 'cuda')\n": "keep",
    "def f(kind='cuda'):\n    return torch.autocast(kind, enabled=amp and kind != 'cpu')\n": "keep",
    "def f(kind='cuda'):\n    return torch.autocast(kind, enabled=amp or kind != 'cpu')\n": "flag",
    "def f(kind='cuda'):\n    return torch.autocast(kind, enabled=amp)\n": "flag",
    "def f(device='cuda'):\n    kind = torch.device(device).type\n"
    "    return torch.autocast(kind) if 'cuda' in kind else None\n": "keep",
    "def f(device='cuda'):\n    if not device.startswith('cuda'):\n        return None\n"
    "    return torch.autocast(device)\n": "keep",
    "def f(kind='cuda'):\n    return torch.autocast(kind) if kind in ('cpu', 'cuda') else None\n": (
        "flag"
    ),
    "def f(kind='cuda', other='cpu'):\n"
    "    return torch.autocast(kind) if other == 'cuda' else None\n": "flag",
    # A text that is taken for what another device is.
    "def f(device):\n    kind = 'cuda' if 'cuda' in device else 'cpu'\n"
    "    return torch.autocast(kind)\n": "keep",
    "device = 'cuda'\nkind = 'cuda' if 'cuda' in device else 'cpu'\ntorch.autocast(kind)\n": "flag",
}


@pytest.mark.parametrize(("program", "action"), REACHED.items())
def test_a_text_that_reaches_amp_through_a_variable(program, action) -> None:
    result = convert(f"import torch\n\n{program}")
    found = [f for f in result.findings if f.rule == "ACC042"]
    calls = [f for f in found if result.before[f.span.start : f.span.end] != b"'cuda'"]
    assert [f.action for f in calls] == [action]


ONLY_AMP = [program for program, action in REACHED.items() if action == "flag"][:4]


@pytest.mark.parametrize("program", ONLY_AMP)
def test_a_text_that_reaches_nothing_but_amp_stays(program) -> None:
    result = convert(f"import torch\n\n{program}")
    assert result.after == result.before
    assert [f.action for f in result.findings] == ["flag", "flag"]


NANO = """import torch
from contextlib import nullcontext
device = 'cuda'
dtype = 'bfloat16'
exec(open('configurator.py').read())
device_type = 'cuda' if 'cuda' in device else 'cpu'
ptdtype = {'float32': torch.float32, 'bfloat16': torch.bfloat16}[dtype]
ctx = nullcontext() if device_type == 'cpu' else torch.amp.autocast(
    device_type=device_type, dtype=ptdtype
)
"""


def test_a_program_that_asks_for_cpu_has_nothing_to_look_at() -> None:
    result = convert(NANO)
    assert {f.action for f in result.findings} == {"convert", "keep"}
    assert "device_type=device_type" in result.after.decode()


QUESTIONS = (
    "torch.is_autocast_enabled()",
    "torch.is_autocast_enabled('cuda')",
    "torch.get_autocast_dtype('cuda')",
    "torch.set_autocast_enabled('cuda', True)",
    "torch.set_autocast_dtype(device_type='cuda', dtype=torch.float16)",
    "torch.get_autocast_gpu_dtype()",
)


@pytest.mark.parametrize("question", QUESTIONS)
def test_questions_about_cudas_autocast_are_for_a_human(question) -> None:
    found = [f for f in convert(f"import torch\n\nx = {question}\n").findings if f.rule == "ACC044"]
    assert [f.action for f in found] == ["flag"]
    assert body(f"import torch\n\nx = {question}\n") == f"x = {question}"
    other = question.replace("'cuda'", "kind").replace("gpu_dtype()", "dtype(kind)")
    if other != question:
        assert not convert(f"import torch\n\nx = {other}\n").findings


OUTER = "torch.autocast('cuda', dtype=torch.bfloat16)"
NESTED = {
    "torch.cuda.amp.autocast()": "accel.autocast(dtype=torch.float16)",
    "torch.cuda.amp.autocast(e)": "accel.autocast(e, dtype=torch.float16)",
    "torch.cuda.amp.autocast(enabled=e,)": "accel.autocast(enabled=e, dtype=torch.float16,)",
    "torch.cuda.amp.autocast(dtype=d)": "accel.autocast(dtype=d)",
    "torch.cuda.amp.autocast(e, d)": "accel.autocast(e, d)",
    "torch.cuda.amp.autocast(**more)": "accel.autocast(**more)",
    "torch.cuda.amp.autocast((e))": "accel.autocast((e))",  # and flagged
}


@pytest.mark.parametrize("before", NESTED)
def test_float16_is_written_where_another_type_may_be_in_force(before) -> None:
    after = body(f"import torch\n\nwith {OUTER}:\n    {before}\n")
    assert after == f"with accel.autocast(dtype=torch.bfloat16):\n    {NESTED[before]}"
    alone = body(f"import torch\n\nwith torch.autocast('cuda'):\n    {before}\n")
    assert alone.splitlines()[1].strip() == NESTED[before].replace(
        ", dtype=torch.float16", ""
    ).replace("dtype=torch.float16", "")


def test_float16_is_written_for_imported_names_and_flagged_for_other_targets() -> None:
    program = (
        "import torch\nfrom torch.cuda.amp import autocast\n\n"
        f"with {OUTER}, autocast():\n    pass\n"
    )
    assert "autocast(dtype=torch.float16):" in body(program)
    found = convert(program, target="torch").findings
    assert "flag" in {f.action for f in found if f.rule == "ACC040"}


def test_a_comment_in_the_way_is_not_lost() -> None:
    program = "import torch\n\ntorch.autocast(\n    'cuda',  # here\n    enabled=e,\n)\n"
    result = convert(program)
    assert b"# here" in result.after
    assert {f.action for f in result.findings if f.rule == "ACC041"} == {"flag"}


KIND = 'str(torch.accelerator.current_accelerator() or "cpu")'
HERE = "torch.accelerator.is_available()"
TORCH = {
    "torch.cuda.amp.autocast(e, d)": f"torch.autocast({KIND}, enabled=e and {HERE}, dtype=d)",
    "torch.autocast('cuda', d, e)": f"torch.autocast({KIND}, enabled=e and {HERE}, dtype=d)",
    "torch.cuda.amp.GradScaler(enabled=e)": f"torch.amp.GradScaler({KIND}, enabled=e and {HERE})",
    "torch.amp.custom_fwd(device_type='cuda')": f"torch.amp.custom_fwd(device_type={KIND})",
    "torch.amp.custom_fwd(f, device_type='cuda')": "torch.amp.custom_fwd(f, device_type='cuda')",
}


@pytest.mark.parametrize("before", TORCH)
def test_the_target_torch_names_the_device_type(before) -> None:
    assert body(f"import torch\n\n{before}\n", target="torch") == TORCH[before]


def test_the_target_torch_converts_at_the_use() -> None:
    program = "import torch\nfrom torch.cuda.amp import custom_fwd\n\n@custom_fwd\ndef f(x): ...\n"
    after = convert(program, target="torch").after.decode()
    assert "torch.cuda" not in after
    assert f"@torch.amp.custom_fwd(device_type={KIND})" in after


def test_the_target_npu() -> None:
    program = "import torch\n\nwith torch.autocast('cuda', enabled=e):\n    pass\n"
    assert "with torch.npu.amp.autocast(enabled=e):" in body(program, target="npu")


PROGRAM = """
import torch
from torch.cuda.amp import GradScaler, autocast

torch.manual_seed(0)
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), 0.1)
scaler = GradScaler()
losses = []
for _ in range(3):
    with autocast(dtype=torch.bfloat16), torch.autocast("cuda", enabled=True):
        loss = model(torch.ones(2, 4)).square().mean()
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    losses.append(loss.item())
kinds = loss.dtype, scaler.get_scale(), scaler.is_enabled()
"""


def run(program: str) -> dict[str, object]:
    scope: dict[str, object] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that it disables them
        exec(compile(program, "program.py", "exec"), scope)
    return scope


@pytest.mark.skipif(torch.accelerator.is_available(), reason="the CPU's numbers")
def test_a_cpu_computes_what_it_did() -> None:
    after = convert(PROGRAM).after.decode()
    assert "cuda" not in after
    before, now = run(PROGRAM), run(after)
    assert before["losses"] == now["losses"]
    assert before["kinds"] == now["kinds"] == (torch.float32, 1.0, False)
