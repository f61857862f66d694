"""Accel's own operators in a recording: each is judged by another kernel than the one that ran."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import accel
from accel.alignment import contrastive_loss, matched_pairs
from accel.attention import alibi, causal, key_lengths, prefix, relative_bias, window
from accel.numerics.replaying.calls import call_of
from accel.numerics.replaying.judging import judge
from accel.numerics.replaying.walk import JudgedOperator
from accel_kernels.contrastive_loss import operators as contrastive
from accel_kernels.contrastive_loss import truth
from accel_kernels.contrastive_loss.passes import SoftmaxSums
from accel_kernels.fp8 import quantize
from accel_kernels.fp8.formats import E4M3, E5M2, Scaling
from accel_kernels.references import OPERATORS, reference_of, spelt_out
from accel_kernels.scaled_matmul import cpu as scaled_cpu
from accel_kernels.segmented_attention import differentiable
from accel_kernels.segmented_attention.call import Call
from accel_kernels.segmented_attention.differentiable import Gradients, Implementation, run

KERNELS = ["cpu", "reference", "cpu_amx"]


class Attention(nn.Module):
    """Calls with every option that a call may have, and that a kernel takes."""

    def __init__(self, backend: str) -> None:
        super().__init__()
        self.project, self.backend = nn.Linear(32, 96), backend
        self.is_whole = backend != "cpu_amx"
        self.slopes = nn.Parameter(torch.rand(4), requires_grad=self.is_whole)
        self.table = nn.Parameter(torch.randn(1, 21))
        self.added = nn.Parameter(torch.randn(4, 50, 1))
        self.seen = torch.rand(1, 1, 50, 50) > 0.3

    def calls(self) -> Iterator[dict[str, Any]]:
        """Options of calls."""
        yield {"is_causal": True}
        yield {"mask": self.seen, "scale": -0.3}
        yield {
            "mask": window(20, 0), "softcap": 3.0, "bias": alibi(self.slopes), "dropout_p": 0.2,
            "dropout_seed": torch.tensor(4),
        }  # fmt: skip
        if self.is_whole:
            yield {"bias": relative_bias(self.table), "segment_size": 16}
            yield {"bias": self.added, "mask": causal() | prefix(7)}

    def forward(self, x: Tensor) -> Tensor:
        parts = self.project(x).chunk(3, -1)
        query, key, value = (part.unflatten(-1, (4, 8)).transpose(1, 2) for part in parts)
        few = (query[:, :, 10:], key[:, :2], value[:, :2, :, :5])
        named = {"backend": self.backend}
        # One entry sees nothing.
        state = accel.segmented_attention(*few, mask=key_lengths([30, 0]), return_lse=True, **named)
        total = state.lse.masked_fill(state.lse.isinf(), 0.0).sum() + state.out.float().sum()
        for options in self.calls():
            out = accel.segmented_attention(query, key, value, **options, **named)
            total = total + out.float().square().sum()
        return total


def operators(path: Path) -> list[JudgedOperator]:
    """The operators of this package in a recorded step."""
    (step,) = accel.numerics.replay(path).steps
    return [one for one in step.operators if "accel_kernels" in one.key.op]


def replayed(module: nn.Module, path: Path, *inputs: Tensor) -> list[JudgedOperator]:
    """The operators of this package in a step of a module that returns a loss."""
    with accel.numerics.record(module, path, level="full"):
        module(*inputs).backward()
    return operators(path)


def verdicts(found: list[JudgedOperator]) -> set[str]:
    return {one.judged.verdict for one in found}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", KERNELS)
def test_attention_and_its_gradients_are_judged(tmp_path, backend, dtype) -> None:
    module = Attention(backend).to(dtype)
    x = torch.randn(2, 50, 32, dtype=dtype)
    given = (torch.ones(1, 1, 50, 8, dtype=dtype),) * 3
    if accel.explain("segmented_attention", *given, backend=backend).chosen is None:
        pytest.skip(f"no {backend} here")
    found = replayed(module, tmp_path / "run", x)
    count = 1 + len(list(module.calls()))
    assert [one.key.phase for one in found] == ["forward"] * count + ["backward"] * count
    assert verdicts(found) == {"within"}, [one.judged for one in found]


class Alike(nn.Module):
    """Queries that are zero at first, as of a projection that begins with zeros."""

    def __init__(self, bias: Tensor | None = None) -> None:
        super().__init__()
        self.project, self.bias = nn.Linear(8, 24), bias
        with torch.no_grad():
            self.project.weight[:8] = 0.0
            self.project.bias[:8] = 0.0

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unsqueeze(1) for part in self.project(x).chunk(3, -1))
        bias = None if self.bias is None else alibi(self.bias)
        state = accel.segmented_attention(
            q, k, v, bias=bias, is_causal=True, return_lse=True, backend="cpu"
        )
        return state.out.float().square().sum() + state.lse.sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_scores_that_are_all_alike_are_no_fault(tmp_path, dtype) -> None:
    """No noise of the inputs changes them; that of the weights remains."""
    found = replayed(Alike().to(dtype), tmp_path / "run", torch.randn(2, 300, 8, dtype=dtype))
    assert verdicts(found) == {"within"}, [one.judged for one in found]


def test_a_bias_in_float64_makes_no_attention_of_float64(tmp_path) -> None:
    module = Alike(torch.rand(1, dtype=torch.float64))
    nn.init.normal_(module.project.weight)
    assert verdicts(replayed(module, tmp_path / "run", torch.randn(2, 70, 8))) == {"within"}


def test_a_recording_is_judged_where_nothing_was_called_yet(tmp_path, run_python) -> None:
    module = Attention("cpu")
    with accel.numerics.record(module, tmp_path / "run", level="full"):
        module(torch.randn(2, 50, 32)).backward()
    found = run_python("""
        import accel

        (step,) = accel.numerics.replay("run").steps
        print({one.judged.verdict for one in step.operators if "accel_kernels" in one.key.op})
    """)
    assert found.lines == ["{'within'}"]


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


def test_the_reference_computes_in_float32_and_is_held_to_it(tmp_path, monkeypatch) -> None:
    """Kernels that keep weights in 16 bits are excused, and others are not."""
    right = differentiable.implementation("reference")
    known = dict(differentiable._implementations)
    monkeypatch.setattr(differentiable, "_implementations", known)

    def forward(*given: Any) -> tuple[Tensor, Tensor]:
        out, lse = right.forward(*given)
        return (out.float() * 1.01).to(out.dtype), lse

    assert Implementation("reference", forward, right.backward) is known["reference"]
    module = Attention("reference").bfloat16()
    with accel.numerics.record(module, tmp_path / "run", level="full"):
        module(torch.randn(2, 50, 32).bfloat16())
    known["reference"] = right
    assert "out" in verdicts(operators(tmp_path / "run"))


def test_the_bias_gradient_of_a_kernel_of_others_is_judged(tmp_path, monkeypatch) -> None:
    right = differentiable.implementation("reference")
    known = dict(differentiable._implementations)
    monkeypatch.setattr(differentiable, "_implementations", known)

    def backward(*given: Any) -> Gradients:
        found = right.backward(*given)
        return found._replace(bias=found.bias * 1.01)

    kernel = Implementation("mine", right.forward, backward)

    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.slopes = nn.Parameter(torch.rand(2))

        def forward(self, x: Tensor) -> Tensor:
            call = Call(None, 0.3, bias=alibi(self.slopes))
            return run(kernel, x, x, x, call)[0].square().sum()

    found = replayed(Module(), tmp_path / "run", torch.randn(1, 2, 20, 8))
    assert [one.judged.verdict for one in found] == ["within", "out"]
    assert found[1].judged.output == "3"


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
    assert verdicts(found) == {"within"}


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_a_contrastive_loss_is_block_by_block_what_it_is_at_once(monkeypatch, kind) -> None:
    x, y = torch.randn(50, 8, dtype=torch.float64), torch.randn(70, 8, dtype=torch.float64)
    one, two = torch.tensor(3.0, dtype=torch.float64), torch.tensor(-1.0, dtype=torch.float64)
    pairing = {
        "x_sample": torch.arange(50) // 2 - 1, "y_sample": torch.arange(70) % 29,
        "x_group": None, "y_group": None, "duplicates": "negative", "guide_x": x[:, :3],
        "guide_y": y[:, :3], "x_threshold": torch.full((50,), 0.5), "y_threshold":
        torch.full((70,), 0.6), "hardness": 0.3, "backend": "cpu",
    }  # fmt: skip
    calls: dict[str, dict[str, Any]] = {}
    if kind == "sigmoid":
        given = {"x": x, "y": y, "scale": one, "bias": two, **pairing}
        calls["contrastive_sigmoid"] = {**given, "with_gradients": True}
    else:
        rows, columns = torch.randn(50).double(), torch.randn(70).double()
        given = {"x": x, "y": y, "scale": one, "x_reference": rows, "y_reference": columns}
        calls["contrastive_softmax"] = {**given, **pairing}
        lses = reference_of("contrastive_softmax")(**given, **pairing)[:2]
        for far in (0.0, 300.0):  # where log-sum-exps are moved
            back = dict(zip(("grad_x_lse", "grad_y_lse", "grad_x_positive", "grad_y_positive"),
                            (rows, columns, rows, columns), strict=True))  # fmt: skip
            moved = {"x_reference": rows - far, "y_reference": columns - far}
            calls[f"contrastive_softmax_backward {far}"] = {
                **given, **pairing, **moved, "x_lse": lses[0] + far, "y_lse": lses[1] + far, **back,
            }  # fmt: skip
    for name, arguments in calls.items():
        function = reference_of(name.split()[0])
        whole = function(**arguments)
        with monkeypatch.context() as patch:
            patch.setattr(truth, "_PAIRS", 70 * 7)
            parts = function(**arguments)
        for a, b in zip(whole, parts, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["contrastive_softmax_backward", "contrastive_sigmoid"])
def test_judging_a_contrastive_loss_takes_no_memory_of_all_pairs(run_python, name) -> None:
    """All pairs at once take 740 MB here, and a gradient of y for every block 700 MB."""
    found = run_python(f"""
        import resource

        import torch

        from accel_kernels.references import reference_of

        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

        def run(n):
            x, y = (torch.randn(n, 512, dtype=torch.float64) for _ in range(2))
            one, rows = torch.tensor(1.0, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
            pairing = dict(
                x_sample=torch.arange(n), y_sample=torch.arange(n), x_group=None, y_group=None,
                duplicates="negative", guide_x=None, guide_y=None, x_threshold=None,
                y_threshold=None, hardness=0.0, backend="cpu",
            )
            others = dict(bias=one, with_gradients=True)
            if "softmax" in {name!r}:
                names = ("x_reference", "y_reference", "x_lse", "y_lse", "grad_x_lse",
                         "grad_y_lse", "grad_x_positive", "grad_y_positive")
                others = dict.fromkeys(names, rows)
            reference_of({name!r})(x=x, y=y, scale=one, **others, **pairing)

        run(64)
        before = peak()
        run(4096)
        print(peak() - before)
    """)
    # Inputs, gradients and their parts are 100 MB, and matrices of a block 8 MB each.
    assert int(found.lines[0]) < 400e6, found.lines


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_contrastive_kernel_that_is_wrong_is_named(tmp_path, monkeypatch, backend) -> None:
    right = contrastive.passes_of(backend)

    def softmax(*given: Any) -> SoftmaxSums:
        sums = right.softmax(*given)
        return sums._replace(y_lse=sums.y_lse + 1e-4)

    class Loss(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return contrastive_loss(x, y, scale=5.0, backend=backend)

    with monkeypatch.context() as patch:
        patch.setitem(contrastive._passes, backend, right._replace(softmax=softmax))
        module = Loss()
        with accel.numerics.record(module, tmp_path / "run", level="full"):
            module(torch.randn(40, 12), torch.randn(40, 12))
    (found,) = operators(tmp_path / "run")
    assert (found.judged.verdict, found.judged.output) == ("out", "1")


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


@pytest.mark.parametrize("out_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_product_in_eight_bits_that_cancels_is_no_fault(out_dtype) -> None:
    """Codes are integers, but what they stand for is what a product is wrong by."""
    left, right = (quantize(torch.randn(30, 64), Scaling(E4M3, "tensor")) for _ in range(2))
    a, b = torch.cat([left.codes, left.codes], 1), right.codes
    minus = quantize(-torch.randn(30, 64), Scaling(E4M3, "tensor"))._replace(codes=b ^ 0x80)
    b = torch.cat([b, minus.codes], 1)
    words = [E4M3.name, "tensor", left.scaling.scales]
    given = {
        "a": a, "a_scales": left.scales, "a_scaling": words, "b": b, "b_scales": right.scales,
        "b_scaling": words, "bias": None, "out_dtype": out_dtype, "promote": None, "backend": "cpu",
    }  # fmt: skip
    call = call_of("accel_kernels::scaled_matmul", "default", given)
    out = torch.ops.accel_kernels.scaled_matmul(**given)
    assert judge(call, [out], {}).verdict == "within"
    assert judge(call, [out + 1e-2], {}).verdict == "out"
    numbers = spelt_out("scaled_matmul", given)
    assert spelt_out("scaled_matmul", numbers) == numbers


def test_every_operator_of_the_package_has_a_reference() -> None:
    names = torch._C._dispatch_get_all_op_names()
    own = {name.removeprefix("accel_kernels::") for name in names if "accel_kernels::" in name}
    assert own == OPERATORS.keys()
    assert reference_of("nonsense") is None
