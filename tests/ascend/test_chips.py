"""What differs between chips, and the documented numerics of `--faithful`."""

import functools
import json
import os
import subprocess
import sys

import pytest
import torch

from accel.devices.chips import chip
from accel.simulate import Machine
from accel.simulate.machine import VARIABLE
from accel.simulate.operators import faithful, generic

NPU = torch.device("npu", 0)


def test_it_has_the_memory_of_the_chip():
    """What else a chip is, and other chips: tests/simulate/test_devices_npu.py."""
    assert torch.npu.get_device_properties(0).total_memory == chip("910B2").memory_bytes


def test_float64_becomes_float32_with_torch_npus_warning(run_simulated):
    result = run_simulated("import torch; print(torch.ones(1, device='npu').double().dtype)")
    assert result.stdout.split() == ["torch.float32"]
    assert "double dtype" in result.stderr


# --- faithful ----------------------------------------------------------------------------------

PRINTING = """
import json, sys
for name, code in json.loads(sys.argv[1]).items():
    print(f"{name}:", end=" ", flush=True)
    exec(compile(code, name, "exec"), {})
    print("end")
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """The words that scripts print, run one after another in one process for each machine."""

    @functools.cache
    def on(chip, faithful):
        names = {
            ("910A", True): ("OVERFLOW", "SATURATION"),
            ("910B2", True): ("OVERFLOW", "SATURATION", "CONVOLUTION", "GELU"),
            ("910B2", False): ("AUTOCAST", "CONVOLUTION", "GELU"),
        }[chip, faithful]
        scripts = json.dumps({name: globals()[name] for name in names})
        result = subprocess.run(
            [sys.executable, "-c", PRINTING, scripts],
            env={**os.environ, VARIABLE: Machine(chip=chip, faithful=faithful).to_text()},
            capture_output=True,
            text=True,
            timeout=300,
            cwd=tmp_path_factory.mktemp("chips"),
        )
        assert result.returncode == 0, result.stderr
        words = result.stdout.split()
        return {
            name: words[words.index(f"{name}:") + 1 : words.index("end", words.index(f"{name}:"))]
            for name in names
        }

    return lambda script, chip="910B2", *, faithful=True: on(chip, faithful)[script]


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


def test_faithful_convolutions_are_hf32_until_switched_off(said):
    on, off, ratio = map(float, said("CONVOLUTION"))
    assert 1e-5 < on < 1e-2
    assert off < 1e-6
    assert ratio > 100
    on, off, ratio = map(float, said("CONVOLUTION", faithful=False))
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


def test_faithful_gelu_is_the_tanh_formula(said):
    assert said("GELU") == ["True", "True", "True"]
    assert said("GELU", faithful=False) == ["False", "False", "True"]


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


def test_faithful_first_generation_saturates(said):
    largest = torch.finfo(torch.float16).max
    values = said("SATURATION", "910A")
    assert [float(v) for v in values[:5]] == [largest, 0.0, largest, largest, 0.0]
    values = said("SATURATION")
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


def test_autocast_has_the_rules_of_torch_npu(said):
    """CUDA computes rms_norm in float32; torch_npu has no rule for it, in any mode of ours."""
    assert said("AUTOCAST", faithful=False) == [
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
print(*taken, precision.loss_scale.value, skipped.step, skipped.value,
      model.weight.grad.isfinite().all().item())
"""


def test_an_overflow_is_found_where_results_saturate(said):
    """No gradient is infinite or NaN there; the chip's float status is what tells."""
    *taken, scale, step, value, finite = said("OVERFLOW", "910A")
    assert taken == ["True", "True", "False", "True"]
    assert (float(scale), step, value, finite) == (32768.0, "2", "overflow", "True")
    assert said("OVERFLOW")[:7] == ["True", "True", "False", "True", "32768.0", "2", "inf"]
