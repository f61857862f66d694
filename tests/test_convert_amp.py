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


def test_a_parameter_that_is_cuda_by_default_is_for_a_human() -> None:
    program = "import torch\n\ndef f(device_type='cuda'):\n    return torch.autocast(device_type)\n"
    found = [f for f in convert(program).findings if f.rule == "ACC042"]
    assert [f.action for f in found] == ["flag"]


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
