"""The shipped assertions and the conformance suite, which must find what is wrong."""

import dataclasses
import json
import math

import pytest
import torch
from torch.nn import functional as F

import accel
from accel import dispatch
from accel.devices import CpuDevice
from accel.testing import (
    assert_backward_stable,
    assert_within_budget,
    conformance,
    presentation,
    suite,
)
from accel.testing.stability import measure_stability
from accel_kernels.budgets import Deviation
from accel_kernels.spec import Operation


def matrices(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A product, an independent one (added in another order), and the truth."""
    a, b = torch.randn(40, 300).to(dtype), torch.randn(300, 30).to(dtype)
    halves = a[:, :150] @ b[:150] + a[:, 150:] @ b[150:]
    return a @ b, halves, a.double() @ b.double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_right_result_is_within_budget(dtype) -> None:
    assert_within_budget(*matrices(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("fault", ["scaled", "one element", "nan", "coarser"])
def test_a_wrong_result_is_not(dtype, fault) -> None:
    actual, reference, truth = matrices(dtype)
    if fault == "scaled":
        actual = actual * (1 + 30 * torch.finfo(dtype).eps)
    elif fault == "one element":
        actual[3, 4] += 0.5 * truth.abs().max()
    elif fault == "nan":
        actual[3, 4] = torch.nan
    else:
        lower = torch.bfloat16 if dtype == torch.float32 else torch.float8_e4m3fn
        actual = actual.to(lower).to(dtype)
    with pytest.raises(AssertionError, match="the product: "):
        assert_within_budget(actual, reference, truth, name="the product")


def test_the_floor_serves_a_reference_that_is_exact_by_luck() -> None:
    truth = torch.tensor([1.0 / 3.0], dtype=torch.float64)
    reference = truth.float()
    actual = torch.nextafter(torch.nextafter(reference, torch.ones(1)), torch.ones(1))
    with pytest.raises(AssertionError):
        assert_within_budget(actual, reference, truth)
    assert_within_budget(actual, reference, truth, floor=Deviation(rms=2e-7, worst=2e-7))


def test_what_cannot_be_compared() -> None:
    actual, reference, truth = matrices(torch.float32)
    with pytest.raises(TypeError, match="dtype under test"):
        assert_within_budget(actual, reference.double(), truth)
    with pytest.raises(ValueError, match="shape"):
        assert_within_budget(actual[:3], reference, truth)


# --- assert_backward_stable --------------------------------------------------------------------


def mlp(x, *weights, nested, flag=True):
    for weight in (*weights, *nested["more"]):
        x = F.gelu(x @ weight)
    return {"out": x, "norm": F.layer_norm(x, x.shape[-1:]), "ignored": x.argmax()}


def mlp_inputs(dtype):
    tensors = [torch.randn(65, 33), *(torch.randn(33, 33) / 5 for _ in range(3))]
    x, a, b, c = (tensor.to(dtype) for tensor in tensors)
    return (x, a, b), {"nested": {"more": [c]}, "flag": False}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_a_right_function_is_backward_stable(dtype) -> None:
    args, kwargs = mlp_inputs(dtype)
    assert_backward_stable(mlp, *args, **kwargs)
    names = {one.name for one in measure_stability(mlp, args, kwargs)}
    assert {"output out", "output norm", "gradient of argument 0"} <= names
    assert "gradient of argument nested.more.0" in names


def _with_fault(fault):
    def product(a, b):
        if a.dtype == torch.float64:
            return a @ b
        if fault == "bf16 inputs":
            return (a.bfloat16() @ b.bfloat16()).float()
        out = a @ b
        if fault == "scaled":
            return out * (1 + 1e-5)
        if fault == "one element":
            return out + torch.eye(*out.shape) * (torch.arange(out.shape[0]) == 3)[:, None] * 1e-3
        if fault == "not a number":
            return out.masked_fill(torch.arange(out.shape[0])[:, None] == 3, math.nan)
        out.register_hook(lambda gradient: gradient * (1 + 1e-5))  # gradient only
        return out

    return product


@pytest.mark.parametrize(
    ("fault", "where"),
    [
        ("bf16 inputs", "output 0|gradient"),
        ("scaled", "output 0|gradient"),
        ("one element", "output 0"),
        ("not a number", "output 0"),
        ("gradient", "gradient of argument [01]"),
    ],
)
def test_a_wrong_function_is_not_backward_stable(fault, where) -> None:
    a, b = torch.randn(40, 300), torch.randn(300, 30)
    with pytest.raises(AssertionError, match=rf"^({where}) .*is not backward stable: .*R .*M "):
        assert_backward_stable(_with_fault(fault), a, b)


def test_a_16_bit_kernel_that_rounds_once_is_held_to_float32() -> None:
    x = torch.randn(64, 100).bfloat16()

    def norm(x, eps):
        wide = x if x.dtype == torch.float64 else x.float()
        used = eps if x.dtype == torch.float64 else 1e-3
        return F.layer_norm(wide, wide.shape[-1:], eps=used).to(x.dtype)

    assert_backward_stable(norm, x, eps=1e-3, compute=torch.float32)
    with pytest.raises(AssertionError, match=r"misround|before rounding"):
        assert_backward_stable(norm, x, eps=1e-5, compute=torch.float32)


def test_only_what_requires_gradients_gets_them() -> None:
    a, b = torch.randn(4, 4), torch.randn(4, 4, requires_grad=True)
    names = [one.name for one in measure_stability(torch.matmul, (a, b), {})]
    assert names == ["output 0", "gradient of argument 1"]
    names = [one.name for one in measure_stability(torch.matmul, (a, b), {}, gradients=False)]
    assert names == ["output 0"]


def test_what_no_stability_can_be_measured_of() -> None:
    with pytest.raises(ValueError, match="no argument is a floating-point tensor"):
        assert_backward_stable(torch.add, torch.arange(3), 1)
    with pytest.raises(ValueError, match="shape"):
        assert_backward_stable(torch.sum, torch.randn(3), reference=lambda x: x)
    with pytest.raises(TypeError, match="floating-point dtype"):
        assert_backward_stable(torch.sum, torch.randn(3), compute=torch.int32)


# --- the suite ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checks():
    return conformance([CpuDevice()])


def test_this_machine_is_within_its_limits(checks) -> None:
    assert [check for check in checks if not check.passed] == []


def test_the_suite_covers_what_it_says(checks) -> None:
    assert len(checks) == suite.expected_checks([CpuDevice()])
    assert {check.dtype for check in checks} == {"float32", "bfloat16"}
    engines = {check.engine for check in checks}
    assert {"cpu/cpu", "cpu/sdpa", "cpu/reference", "cpu/automatic", "cpu/aten"} <= engines
    assert {"cpu/foreach", "cpu/fused"} <= engines
    names = {check.name for check in checks}
    assert {"transformer forward", "transformer gradients", "AdamW steps"} <= names
    assert {"mm 8192", "layer_norm backward 1023", "conv2d backward", "relu"} <= names
    assert {check.verdict for check in checks} <= {"within", "exact", "known"}
    for check in checks:
        assert check.R > 0.0 or check.verdict == "exact", check
        assert check.verdict != "known" or check.note


def break_kernel(monkeypatch, wrap) -> None:
    """Replace the cpu kernel of segmented attention by a faulty one."""
    operation = dispatch._OPERATIONS["segmented_attention"]
    specs = tuple(
        dataclasses.replace(spec, load=lambda load=spec.load: wrap(load()))
        if spec.name == "cpu"
        else spec
        for spec in operation.specs
    )
    broken = Operation(operation.name, operation.request, specs)
    monkeypatch.setitem(dispatch._OPERATIONS, "segmented_attention", broken)
    monkeypatch.setattr(dispatch, "_memo", {})
    # The operators and other engines are not under test here, and take their time.
    monkeypatch.setattr(suite, "operator_cases", lambda dtype: iter(()))
    monkeypatch.setattr(suite.onnx_engine, "engines", list)


def wrong_forward(kernel):
    def faulty(query, key, value, **options):
        out, lse = kernel(query, key, value, **options)
        return out * (1 + 1e-5), lse

    return faulty


def wrong_gradient(kernel):
    def faulty(query, key, value, **options):
        out, lse = kernel(query, key * 1.0, value, **options)
        if key.requires_grad:
            key.register_hook(lambda grad: grad * (1 + 1e-5))
        return out, lse

    return faulty


@pytest.mark.parametrize("fault", [wrong_forward, wrong_gradient])
def test_a_faulty_kernel_is_found_alone_and_in_the_model(monkeypatch, fault) -> None:
    break_kernel(monkeypatch, fault)
    checks = conformance([CpuDevice()], dtypes=[torch.float32])
    failed = [c for c in checks if not c.passed]
    assert {c.engine for c in failed} <= {"cpu/cpu", "cpu/automatic"}
    assert {c.name for c in failed if c.engine == "cpu/cpu"} == {
        case.name for case in suite.ATTENTION_CASES
    }
    assert any(c.engine == "cpu/automatic" for c in failed)
    assert "are out of their limits" in presentation.verdict(failed)


def test_a_kernel_that_raises_is_a_failed_check_and_the_others_go_on(monkeypatch) -> None:
    def broken(kernel):
        def faulty(*tensors, **options):
            raise RuntimeError("no such unit")

        return faulty

    break_kernel(monkeypatch, broken)
    checks = conformance([CpuDevice()], dtypes=[torch.float32])
    failed = [check for check in checks if not check.passed]
    assert {check.engine for check in failed} == {"cpu/cpu", "cpu/automatic"}
    assert all("raised RuntimeError: no such unit" in str(check.reason) for check in failed)
    assert any(check.engine == "cpu/reference" and check.passed for check in checks)
    document = json.loads(presentation.as_json(checks, [CpuDevice()]))
    shown = [one for one, check in zip(document["checks"], checks, strict=True) if not check.passed]
    assert [one["R"] for one in shown] == [None] * len(failed)
    assert "raised RuntimeError" in presentation.as_html(checks, [CpuDevice()])


def test_presentation(checks) -> None:
    device = accel.current_device()
    absent = {"onnxruntime/all": "pip install it"}
    document = json.loads(presentation.as_json(checks, [device], absent))
    assert document["ok"] is True
    assert len(document["checks"]) == len(checks)
    assert document["environment"]["torch"] == torch.__version__
    assert document["numerics_mode"]["mkldnn_enabled"] is True
    assert document["absent"] == absent
    failed = [dataclasses.replace(checks[0], reason="a <reason>"), *checks[1:]]
    assert json.loads(presentation.as_json(failed, [device]))["ok"] is False
    assert json.loads(presentation.as_json([], [device]))["ok"] is False
    page = presentation.as_html(failed, [device], absent)
    assert "a &lt;reason&gt;" in page
    assert "pip install it" in page
    assert "<svg" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page
    text = presentation.as_text(failed, absent)
    assert "OUT" in text
    assert "not here: onnxruntime/all: pip install it" in text
