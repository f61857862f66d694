"""The shipped assertions and the conformance suite, which must find what is wrong."""

import dataclasses
import json

import pytest
import torch

import accel
from accel import dispatch
from accel.devices import CpuDevice
from accel.testing import assert_within_budget, conformance, presentation, suite
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


@pytest.fixture(scope="module")
def checks():
    return conformance([CpuDevice()])


def test_this_machine_is_within_budget(checks) -> None:
    assert [check for check in checks if check.reason is not None] == []


def test_the_suite_covers_what_it_says(checks) -> None:
    assert len(checks) == suite.expected_checks([CpuDevice()])
    assert {check.dtype for check in checks} == {"float32", "bfloat16"}
    engines = {check.engine for check in checks}
    assert {"cpu/cpu", "cpu/sdpa", "cpu/reference", "cpu/automatic"} <= engines
    names = {check.name for check in checks}
    assert {"transformer forward", "transformer gradients", "AdamW step"} <= names
    for check in checks:
        assert check.error > 0.0, "an error of zero would mean that nothing was computed"


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
    failed = [c for c in checks if c.reason is not None]
    assert {c.engine for c in failed} <= {"cpu/cpu", "cpu/automatic"}
    assert {c.name for c in failed if c.engine == "cpu/cpu"} == {
        case.name for case in suite.ATTENTION_CASES
    }
    assert any(c.engine == "cpu/automatic" for c in failed)
    assert "exceed their budgets" in presentation.verdict(failed)


def test_a_kernel_that_raises_is_a_failed_check_and_the_others_go_on(monkeypatch) -> None:
    def broken(kernel):
        def faulty(*tensors, **options):
            raise RuntimeError("no such unit")

        return faulty

    break_kernel(monkeypatch, broken)
    checks = conformance([CpuDevice()], dtypes=[torch.float32])
    failed = [check for check in checks if check.reason is not None]
    assert {check.engine for check in failed} == {"cpu/cpu", "cpu/automatic"}
    assert all("raised RuntimeError: no such unit" in str(check.reason) for check in failed)
    assert any(check.engine == "cpu/reference" and check.reason is None for check in checks)
    document = json.loads(presentation.as_json(checks, [CpuDevice()]))
    assert document["checks"][0]["error"] is None
    assert "raised RuntimeError" in presentation.as_html(checks, [CpuDevice()])


def test_presentation(checks) -> None:
    device = accel.current_device()
    document = json.loads(presentation.as_json(checks, [device]))
    assert document["ok"] is True
    assert len(document["checks"]) == len(checks)
    assert document["environment"]["torch"] == torch.__version__
    assert document["numerics_mode"]["mkldnn_enabled"] is True
    failed = [dataclasses.replace(checks[0], reason="a <reason>"), *checks[1:]]
    assert json.loads(presentation.as_json(failed, [device]))["ok"] is False
    assert json.loads(presentation.as_json([], [device]))["ok"] is False
    page = presentation.as_html(failed, [device])
    assert "a &lt;reason&gt;" in page
    assert "<svg" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page
    assert "EXCEEDED" in presentation.as_text(failed)
