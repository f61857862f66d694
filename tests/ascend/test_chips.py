"""What differs between chips, and the documented numerics of `--faithful`."""

import json

import pytest
import torch

from accel.devices.chips import chip
from accel.simulate import Machine
from accel.simulate.operators import faithful, generic

NPU = torch.device("npu", 0)
FACTS = """
import json, warnings, torch
warnings.simplefilter("ignore")
p = torch.npu.get_device_properties(0)
facts = {"name": p.name, "memory": p.total_memory, "cubes": p.cube_core_num}
def works(f):
    try:
        f()
        return True
    except (RuntimeError, NotImplementedError) as error:
        return str(error)
def on(dtype):
    return torch.ones(4, 4, device="npu").to(dtype)
facts["bfloat16"] = works(lambda: on(torch.bfloat16) @ on(torch.bfloat16))
e4m3 = lambda: torch.ones(16, 16).to(torch.float8_e4m3fn).npu()
one = torch.ones((), device="npu")
half = torch.bfloat16
facts["fp8"] = works(lambda: torch._scaled_mm(e4m3(), e4m3().t(), one, one, out_dtype=half))
double = torch.ones(3, device="npu").double()
facts["double"] = str(double.dtype)
facts["jit"] = not torch.npu.is_jit_compile_false()
print(json.dumps(facts))
"""


@pytest.mark.parametrize("name", ["910A", "910B2", "910_9391", "950"])
def test_a_chip_is_what_its_profile_says(run_simulated, name):
    result = run_simulated(FACTS, chip=name)
    assert result.returncode == 0, result.stderr
    facts = json.loads(result.stdout)
    profile = chip(name)
    assert facts["name"] == profile.soc_name
    assert (
        facts["memory"] == profile.memory_bytes // 2**20 or facts["memory"] == profile.memory_bytes
    )
    assert facts["cubes"] == profile.cube_cores
    assert (facts["bfloat16"] is True) == profile.bfloat16, facts
    assert (facts["fp8"] is True) == profile.fp8, facts
    assert facts["double"] == "torch.float32", "torch_npu's own rule"
    assert facts["jit"] == profile.jit_compile
    if not profile.bfloat16:
        assert "does not compute in it" in facts["bfloat16"]
    if not profile.fp8:
        assert "8-bit floats" in facts["fp8"]


def test_float64_becomes_float32_with_torch_npus_warning(run_simulated):
    result = run_simulated("import torch; print(torch.ones(1, device='npu').double().dtype)")
    assert result.stdout.split() == ["torch.float32"]
    assert "double dtype" in result.stderr


# --- faithful ----------------------------------------------------------------------------------


def test_hf32_keeps_eleven_bits_and_rounds_half_to_even():
    step = 2.0**-11
    values = torch.tensor(
        [1 + step, 1 + step / 2, 1 + 3 * step / 2, 1 + 0.51 * step, -1 - step / 4]
    )
    expected = torch.tensor([1 + step, 1.0, 1 + 2 * step, 1 + step, -1.0])
    assert (faithful.to_hf32(values) == expected).all()
    special = torch.tensor([float("inf"), float("-inf"), 0.0, -0.0])
    assert (
        faithful.to_hf32(special).view(torch.int32).tolist() == special.view(torch.int32).tolist()
    )
    assert faithful.to_hf32(torch.tensor(float("nan"))).isnan()
    x = torch.randn(1000)
    assert (faithful.to_hf32(x) - x).abs().div(x.abs()).max() <= step / 2


CONVOLUTION = """
import torch
torch.manual_seed(0)
x, w = torch.randn(1, 8, 9, 9), torch.randn(4, 8, 3, 3)
exact = torch.conv2d(x.double(), w.double())
def error():
    there = x.npu(), w.npu().requires_grad_()
    out = torch.conv2d(*there)
    out.sum().backward()
    return (out.cpu().double() - exact).abs().max().item() / exact.abs().max().item()
assert torch.npu.conv.allow_hf32
on = error()
torch.npu.conv.allow_hf32 = False
off = error()
print(on, off)
a, b = torch.randn(64, 64), torch.randn(64, 64)
product = lambda: (a.npu() @ b.npu()).cpu().double()
truth = a.double() @ b.double()
plain = (product() - truth).abs().max().item()
torch.npu.matmul.allow_hf32 = True
print((product() - truth).abs().max().item() / plain)
"""


def test_faithful_convolutions_are_hf32_until_switched_off(run_simulated):
    on, off, ratio = map(float, run_simulated(CONVOLUTION, faithful=True).stdout.split())
    assert 1e-5 < on < 1e-2
    assert off < 1e-6
    assert ratio > 100
    on, off, ratio = map(float, run_simulated(CONVOLUTION).stdout.split())
    assert on < 1e-6
    assert ratio == 1


GELU = """
import torch
F = torch.nn.functional
x = torch.linspace(-4, 4, 101)
there = x.npu().requires_grad_()
F.gelu(there).sum().backward()
tanh = x.clone().requires_grad_()
F.gelu(tanh, approximate="tanh").sum().backward()
exact = F.gelu(x)
print((F.gelu(there).cpu() == F.gelu(x, approximate="tanh")).all().item(),
      (there.grad.cpu() == tanh.grad).all().item())
torch.npu.use_compatible_impl(True)
print((F.gelu(there).cpu() == exact).all().item())
"""


def test_faithful_gelu_is_the_tanh_formula(run_simulated):
    result = run_simulated(GELU, faithful=True)
    assert result.stdout.split() == ["True", "True", "True"], result.stderr
    assert run_simulated(GELU).stdout.split() == ["False", "False", "True"]


SATURATION = """
import torch
x = torch.tensor([12.0, -1.0, 1.0], dtype=torch.float16).npu()
y = torch.tensor([6e4], dtype=torch.float16).npu()
y.mul_(2)
out = torch.empty(3, dtype=torch.float16, device="npu")
torch.exp(x, out=out)
print(*x.exp().tolist()[:1], *x.sqrt().tolist()[1:2], *y.tolist(), out[0].item(),
      *(torch.zeros(1).npu() / 0).tolist(), torch.finfo(torch.float32).max)
"""


def test_faithful_first_generation_saturates(run_simulated):
    largest = torch.finfo(torch.float16).max
    values = run_simulated(SATURATION, faithful=True, chip="910A").stdout.split()
    assert [float(v) for v in values[:5]] == [largest, 0.0, largest, largest, 0.0]
    values = run_simulated(SATURATION, faithful=True, chip="910B2").stdout.split()
    assert values[:5] == ["inf", "nan", "inf", "inf", "nan"]


def test_the_environment_can_force_saturation_where_the_chip_allows(monkeypatch):
    assert faithful.saturates(Machine(chip="910A"))
    assert not faithful.saturates(Machine(chip="910B2"))
    monkeypatch.setenv("INF_NAN_MODE_FORCE_DISABLE", "1")
    assert faithful.saturates(Machine(chip="910B2"))
    assert not faithful.saturates(Machine(chip="950")), "it has no such mode"


AUTOCAST = """
import torch
F = torch.nn.functional
x = torch.randn(4, 8).npu()
with torch.autocast("npu", dtype=torch.float16):
    half = x @ x.t()
    print(half.dtype, F.rms_norm(half, (4,)).dtype, F.softmax(half, -1).dtype)
"""


def test_autocast_has_the_rules_of_torch_npu(run_simulated):
    """CUDA computes rms_norm in float32; torch_npu has no rule for it, in any mode of ours."""
    assert run_simulated(AUTOCAST).stdout.split() == [
        "torch.float16", "torch.float16", "torch.float32",
    ]  # fmt: skip


# --- poison ------------------------------------------------------------------------------------

POISON = """
import torch
for make in (torch.empty, lambda n, **k: torch.empty_strided((n,), (1,), **k),
             lambda n, **k: torch.empty_like(torch.ones(n, **k)),
             lambda n, **k: torch.ones(1, **k).new_empty_strided((n,), (1,))):
    x = make(5, dtype=torch.float32, device="npu")
    assert x.isnan().all(), x
assert torch.empty(3, dtype=torch.bfloat16, device="npu").isnan().all()
assert (torch.empty(3, dtype=torch.int64, device="npu") == 0x7f7f7f7f7f7f7f7f).all()
assert (torch.empty(3, dtype=torch.int8, device="npu") == 0x7f).all()
x = torch.ones(4, 4, device="npu", requires_grad=True)
(x @ x).relu().sum().backward()
assert (x.grad == 8).all()
print("poisoned")
"""


def test_unwritten_memory_is_poisoned(run_simulated):
    result = run_simulated(POISON, poison=True)
    assert result.stdout.split() == ["poisoned"], result.stderr


def test_dtypes_are_refused_in_operators_and_casts(monkeypatch):
    monkeypatch.setattr(generic, "unsupported_dtypes", {torch.bfloat16})
    x = torch.ones(3, dtype=torch.bfloat16).to(NPU)
    for call in (lambda: x + x, lambda: x.float(), lambda: torch.ones(1, device=NPU).bfloat16()):
        with pytest.raises(RuntimeError, match="bfloat16"):
            call()
    assert (x.cpu() == 1).all(), "stored bytes may be copied"


OVERFLOW = """
import torch, accel
from torch import nn
device = accel.current_device()
model = nn.Linear(2, 1, bias=False).to(device.torch_device)
precision = accel.precision.Precision(model, "compute=float16")
optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
taken = []
for size in (1.0, 1.0, 6e4, 1.0):
    optimizer.zero_grad()
    with precision.autocast():
        out = model(torch.full((4, 2), size, device=device.torch_device))
    precision.backward(out.float().sum() * 1e-4)
    taken.append(bool(precision.step(optimizer)))
skipped = precision.last_skipped
print(*taken, precision.loss_scale.value, skipped.step, skipped.value, model.weight.grad.isfinite().all().item())
"""


def test_an_overflow_is_found_where_results_saturate(run_simulated):
    """No gradient is infinite or NaN there; the chip's float status is what tells."""
    result = run_simulated(OVERFLOW, faithful=True, chip="910A")
    *taken, scale, step, value, finite = result.stdout.split()
    assert taken == ["True", "True", "False", "True"]
    assert (float(scale), step, value, finite) == (32768.0, "2", "overflow", "True")
    result = run_simulated(OVERFLOW, faithful=True, chip="910B2")
    assert result.stdout.split()[:6] == ["True", "True", "False", "True", "32768.0", "2"]
    assert result.stdout.split()[6] == "inf"
