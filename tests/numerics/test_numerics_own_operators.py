"""Accel's own operators in a recording: each is judged by another kernel than the one that ran."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import accel
from accel.alignment import contrastive_loss, matched_pairs
from accel.attention import alibi, key_lengths, window
from accel.numerics.replaying.walk import JudgedOperator
from accel_kernels.fp8 import quantize
from accel_kernels.fp8.formats import E4M3, E5M2, Scaling
from accel_kernels.references import _FORMULAS, _JUDGES
from accel_kernels.scaled_matmul import cpu as scaled_cpu
from accel_kernels.segmented_attention import differentiable
from accel_kernels.segmented_attention.differentiable import Gradients, Implementation

KERNELS = ["cpu", "reference", "cpu_amx"]


class Attention(nn.Module):
    """Calls with every option that a call may have."""

    def __init__(self, backend: str) -> None:
        super().__init__()
        self.project, self.backend = nn.Linear(32, 96), backend
        self.slopes = nn.Parameter(torch.rand(4), requires_grad=backend != "cpu_amx")

    def forward(self, x: Tensor) -> Tensor:
        parts = self.project(x).chunk(3, -1)
        query, key, value = (part.unflatten(-1, (4, 8)).transpose(1, 2) for part in parts)
        few = (query, key[:, :2], value[:, :2])
        named = {"backend": self.backend}
        state = accel.segmented_attention(
            *few, mask=key_lengths([30, 0]), return_lse=True, **named
        )  # one entry sees nothing
        dropped = accel.segmented_attention(
            query, key, value, mask=window(20, 0), softcap=3.0, bias=alibi(self.slopes),
            dropout_p=0.2, dropout_seed=4, **named,
        )  # fmt: skip
        plain = accel.segmented_attention(query, key, value, is_causal=True, **named)
        lse = state.lse.masked_fill(state.lse.isinf(), 0.0)
        return (state.out + dropped + plain).float().square().sum() + lse.sum()


def replayed(module: nn.Module, path: Path, *inputs: Tensor) -> list[JudgedOperator]:
    """The operators of this package in a step of a module that returns a loss."""
    with accel.numerics.record(module, path, level="full"):
        module(*inputs).backward()
    (step,) = accel.numerics.replay(path).steps
    return [one for one in step.operators if "accel_kernels" in one.key.op]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", KERNELS)
def test_attention_and_its_gradients_are_judged(tmp_path, backend, dtype) -> None:
    module = Attention(backend).to(dtype)
    x = torch.randn(2, 50, 32, dtype=dtype)
    if accel.explain("segmented_attention", *(torch.ones(1, 1, 50, 8, dtype=dtype),) * 3,
                     backend=backend).chosen is None:  # fmt: skip
        pytest.skip(f"no {backend} here")
    found = replayed(module, tmp_path / "run", x)
    assert [one.key.phase for one in found] == ["forward"] * 3 + ["backward"] * 3
    assert [one.judged.verdict for one in found] == ["within"] * 6


@pytest.mark.parametrize("wrong", ["output", "log-sum-exp", "gradient"])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_kernel_that_is_wrong_is_named(tmp_path, monkeypatch, backend, wrong) -> None:
    """Also the reference, which is not judged by itself."""
    right = differentiable.implementation(backend)

    def forward(*given: Any) -> tuple[Tensor, Tensor]:
        out, lse = right.forward(*given)
        return out * (1.0001 if wrong == "output" else 1.0), (
            lse + 0.001 if wrong == "log-sum-exp" else lse
        )

    def backward(*given: Any) -> Gradients:
        found = right.backward(*given)
        return found._replace(key=found.key * 1.0001) if wrong == "gradient" else found

    known = dict(differentiable._implementations)
    monkeypatch.setattr(differentiable, "_implementations", known)
    broken = Implementation(backend, forward, backward)
    assert known[backend] is broken
    module = Attention(backend)
    with accel.numerics.record(module, tmp_path / "run", level="full"):
        module(torch.randn(2, 50, 32)).backward()
    known[backend] = right  # what judges is not broken
    phases = {one.key.phase for one in accel.numerics.replay(tmp_path / "run").out}
    assert phases == {"backward" if wrong == "gradient" else "forward"}


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("backend", ["cpu", "reference", "tiles"])
def test_contrastive_losses_are_judged(tmp_path, backend, kind) -> None:
    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.towers = nn.ModuleList([nn.Linear(16, 12), nn.Linear(20, 12)])
            self.scale, self.bias = (nn.Parameter(torch.tensor(n)) for n in (5.0, -2.0))

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            pairing = matched_pairs(torch.arange(40) // 2, torch.arange(50) % 23 - 1)
            return contrastive_loss(
                self.towers[0](x), self.towers[1](y), scale=self.scale,
                bias=self.bias if kind == "sigmoid" else None, kind=kind, pairing=pairing,
                backend=backend,
            )  # fmt: skip

    found = replayed(Loss(), tmp_path / "run", torch.randn(40, 16), torch.randn(50, 20))
    assert [one.key.phase for one in found] == ["forward", "backward"]
    assert [one.judged.verdict for one in found] == ["within"] * 2


@pytest.mark.parametrize("out_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scaling", [Scaling(E4M3, "tensor"), Scaling(E5M2, "1x128")], ids=str)
def test_products_in_eight_bits_are_judged(tmp_path, scaling, out_dtype) -> None:
    class Product(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            a, b = (quantize(part, scaling) for part in x.split(40))
            bias = torch.arange(30.0)
            return scaled_cpu.scaled_matmul(a, b, bias=bias, out_dtype=out_dtype)

    with accel.numerics.record(module := Product(), tmp_path / "run", level="full"):
        module(torch.randn(70, 200))
    (step,) = accel.numerics.replay(tmp_path / "run").steps
    (found,) = (one for one in step.operators if "scaled_matmul" in one.key.op)
    assert found.judged.verdict == "within"


def test_every_operator_of_the_package_has_a_reference() -> None:
    from accel_kernels.contrastive_loss import operators as contrastive
    from accel_kernels.scaled_matmul import operators as scaled
    from accel_kernels.segmented_attention import operators as attention

    assert contrastive is not scaled is not attention  # imported, which defines them
    names = torch._C._dispatch_get_all_op_names()
    own = {name.removeprefix("accel_kernels::") for name in names if "accel_kernels::" in name}
    assert own == _JUDGES.keys() | _FORMULAS.keys()
