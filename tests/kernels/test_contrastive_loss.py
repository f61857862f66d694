"""Every kernel of the contrastive losses, generated from its specs, against float64."""

import functools
import statistics
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import accel
from accel_kernels.budgets import Budget, Deviation, budget, deviation, typical, unit_roundoff
from accel_kernels.contrastive_loss import SPECS
from accel_kernels.contrastive_loss.pairing import ABSENT, Pairing
from accel_kernels.contrastive_loss.passes import Passes, SoftmaxGradients
from accel_kernels.contrastive_loss.tiles import Settings, passes
from tests.kernels.contrastive_cases import (
    CASES,
    Case,
    Inputs,
    draw,
    sigmoid_gradient_truth,
    sigmoid_truth,
    softmax_gradient_truth,
    softmax_truth,
    upstream,
    widened,
)

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
ORDERS = 4
# An error of so few numbers is no root mean square but a draw, and held to the worst that may be.
FEW = 32
NAMED = {case.name: case for case in CASES}
# Besides the specs: tiles that cut every batch, and no side evenly.
SMALL = "tiles of 19 by 13"
TYPES = {device.torch_device.type for device in accel.available_devices()}
NAMES = [
    *(
        spec.name
        for spec in SPECS
        if (not spec.devices or spec.devices & TYPES) and spec.name != "triton"  # it has its own
    ),
    SMALL,
]


def spared(case: Case, dtype: torch.dtype) -> bool:
    """Wide dtypes show what a long batch does, and float16 differs from bfloat16 in values only."""
    if case.rows == 1000:
        return dtype in DTYPES[2:]
    return dtype == torch.float16 and not case.name.startswith(("everything", "plain", "scale"))


@pytest.fixture(params=NAMES)
def kernel(request, device) -> Passes:
    """What runs on the device; of the others, a skip that says why."""
    if request.param == SMALL:
        return passes(Settings(19, 13, has_float64=device.torch_device.type != "npu"))
    spec = next(spec for spec in SPECS if spec.name == request.param)
    kind = device.torch_device.type
    if spec.devices and kind not in spec.devices:
        pytest.skip(f"{spec.name} does not run on {kind}")
    if spec.absent is not None and (reason := spec.absent(torch.float32)) is not None:
        pytest.skip(f"{spec.name} {reason}")
    return spec.load()


def takes(kernel: Passes, device, dtype: torch.dtype) -> bool:
    """Whether a kernel, and the device, has a dtype."""
    mine = [spec for spec in SPECS if spec.name != "triton" and spec.load() is kernel]
    if device.torch_device.type == "npu" and dtype == torch.float64:
        return False  # Ascend has no products of it
    return not mine or dtype in mine[0].dtypes


def gradients_at(gradients: SoftmaxGradients, dtype: torch.dtype) -> SoftmaxGradients:
    return SoftmaxGradients(*(gradient.cpu().to(dtype) for gradient in gradients))


def narrowed(inputs: Inputs) -> Inputs:
    """The inputs in float32 on the CPU, for the dense formula in float32."""
    *tensors, pairing = widened(inputs)
    guide = pairing.guide
    if guide is not None:
        guide = type(guide)(*(tensor.float() for tensor in guide))
    return Inputs(*(tensor.float() for tensor in tensors), pairing._replace(guide=guide))


def all_results(kernel: Passes, inputs: Inputs, lses, given) -> dict[str, Tensor]:
    """Sums and gradients of both losses."""
    sums = kernel.softmax(*inputs.softmax)
    lses = (lse.to(sums.x_lse) for lse in lses)
    backward = kernel.softmax_backward(*inputs.softmax, *lses, given)
    total, gradients = kernel.sigmoid(*inputs.sigmoid, with_gradients=True)
    assert torch.equal(total, kernel.sigmoid(*inputs.sigmoid, with_gradients=False)[0])
    return _named(sums, backward[:3], total, gradients)


def dense_results(inputs: Inputs, lses, given) -> dict[str, Tensor]:
    """The same by the dense formula, in the dtype of the inputs."""
    backward = softmax_gradient_truth(inputs, *lses, given)
    return _named(
        softmax_truth(inputs), backward[:3], sigmoid_truth(inputs), sigmoid_gradient_truth(inputs)
    )


def _named(sums, backward, total, gradients) -> dict[str, Tensor]:
    return {
        **{name: getattr(sums, name) for name in sums._fields},
        **dict(zip(("d x", "d y", "d scale"), backward, strict=True)),
        "sigmoid": total,
        **{f"sigmoid d {name}": getattr(gradients, name) for name in gradients._fields},
    }


def plain_errors(inputs: Inputs, lses, given, truth) -> dict[str, Deviation]:
    """Of the dense formula in float32: over orders of its sums, of which one may be lucky."""
    found: dict[str, list[Deviation]] = {name: [] for name in truth}
    lses, given = [lse.float() for lse in lses], gradients_at(given, torch.float32)
    for seed in range(ORDERS):
        order = torch.arange(inputs.x.shape[1])
        if seed:
            order = order[torch.randperm(len(order), generator=torch.Generator().manual_seed(seed))]
        other = inputs._replace(x=inputs.x[:, order], y=inputs.y[:, order])
        results = dense_results(other, lses, given)
        for name in ("d x", "d y", "sigmoid d x", "sigmoid d y"):
            results[name] = results[name][:, order.argsort()]
        for name, value in truth.items():
            found[name].append(deviation(results[name], value))
    return {
        name: Deviation(max(one.rms for one in all_orders), max(one.worst for one in all_orders))
        for name, all_orders in found.items()
    }


class Yardstick(NamedTuple):
    """The truth of a call, how far the dense formula in float32 is from it, and what it was of."""

    lses: tuple[Tensor, Tensor]
    truth: dict[str, Tensor]
    errors: dict[str, Deviation]


def yardstick(inputs: Inputs, given: SoftmaxGradients) -> Yardstick:
    wide = widened(inputs)
    lses = softmax_truth(wide)[:2]
    truth = dense_results(wide, lses, gradients_at(given, torch.float64))
    return Yardstick(lses, truth, plain_errors(narrowed(inputs), lses, given, truth))


@functools.cache
def yardstick_of(case: Case, dtype: torch.dtype) -> Yardstick:
    """Of a case: the same for all kernels."""
    return yardstick(draw(case, dtype), upstream(case, dtype))


def assert_within_budgets(
    kernel: Passes, inputs: Inputs, given: SoftmaxGradients, known: Yardstick | None = None
) -> None:
    """At most twice as far from float64 as the dense formula in float32 is, for its like."""
    lses, truth, errors = known or yardstick(inputs, given)
    dtype = inputs.scale.dtype
    # Of float64: the dense formula's errors there, by the ratio of the units; those of the truth
    # besides, and those of exponentials, which float64 has to one unit and float32 to half.
    ratio = 4 * unit_roundoff(torch.float64) / unit_roundoff(torch.float32)
    ratio = ratio if dtype == torch.float64 else 1.0
    errors = {n: Deviation(e.rms * ratio, e.worst * ratio) for n, e in errors.items()}
    floor = typical(e for e in errors.values() if e.rms)
    for name, found in all_results(kernel, inputs, lses, given).items():
        assert found.dtype == dtype, name
        assert found.device == inputs.x.device, name
        allowed = budget(errors[name], dtype, floor=floor)
        if found.numel() < FEW:
            allowed = Budget(allowed.worst, allowed.worst)
        reason = allowed.exceeded_by(deviation(found, truth[name]))
        assert reason is None, f"{name}: {reason}"


@pytest.mark.parametrize(
    ("case", "dtype"),
    [(case, dtype) for case in CASES for dtype in DTYPES if not spared(case, dtype)],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_sums_and_gradients_are_as_near_to_float64_as_the_dense_formula(
    kernel, case, dtype, device
) -> None:
    if not takes(kernel, device, dtype):
        pytest.skip(f"has no {dtype}")
    where = device.torch_device
    inputs, given = draw(case, dtype, where), upstream(case, dtype, where)
    assert_within_budgets(kernel, inputs, given, yardstick_of(case, dtype))


@pytest.mark.parametrize("dtype", DTYPES[1:3], ids=str)
def test_single_numbers_are_so_too_over_many_batches(kernel, device, dtype) -> None:
    """The gradients of scale and bias and the sum of the sigmoid loss: one number a batch."""
    squares: dict[str, list[tuple[float, float]]] = {}
    case, where = (
        Case("", rows=40, columns=31, samples="unmatched", scale=30.0),
        device.torch_device,
    )
    for seed in range(24):
        inputs, given = draw(case, dtype, where, seed), upstream(case, dtype, where, seed)
        lses, truth, errors = yardstick(inputs, given)
        for name, found in all_results(kernel, inputs, lses, given).items():
            if not found.dim():
                pair = deviation(found, truth[name]).rms, errors[name].rms
                squares.setdefault(name, []).append(pair)
    assert len(squares) == 4
    for name, pairs in squares.items():
        mine, plain = (
            statistics.fmean(e**2 for e in one) ** 0.5 for one in zip(*pairs, strict=True)
        )
        assert mine <= 2 * plain + unit_roundoff(torch.float32), name


@pytest.mark.parametrize("seed", range(4))
def test_layouts_that_are_not_contiguous(kernel, device, seed) -> None:
    case = NAMED["everything"]
    inputs = draw(case, torch.float32, device.torch_device, seed)
    given = upstream(case, torch.float32, device.torch_device, seed)
    strided = inputs._replace(
        x=inputs.x.T.contiguous().T,
        y=torch.stack([inputs.y, inputs.y], 2)[..., 1],
        x_reference=torch.stack([inputs.x_reference] * 2, 1)[:, 0],
        pairing=inputs.pairing._replace(
            x_sample=torch.stack([inputs.pairing.x_sample] * 2, 1)[:, 1]
        ),
    )
    assert not strided.x.is_contiguous()
    assert not strided.y.is_contiguous()
    assert_within_budgets(kernel, strided, given)


# --- extreme values ----------------------------------------------------------------------------


def spread_out(device, size: float) -> Inputs:
    """Rows and columns of lengths from 1/size to size: logits of any order, of either sign."""
    inputs = draw(Case("", rows=45, columns=37, samples="unmatched", scale=1.0), torch.float32)
    exponents = torch.linspace(-1, 1, 45)[:, None], torch.linspace(1, -1, 37)[:, None]
    x, y = inputs.x * size ** exponents[0], inputs.y * size ** exponents[1]
    y[::7] *= -1.0
    logits = x.double() @ y.double().T
    pairs = (inputs.pairing.x_sample[:, None] == inputs.pairing.y_sample).double()
    references = (pairs * logits).sum(1), (pairs * logits).sum(0)
    inputs = inputs._replace(x=x, y=y, x_reference=references[0].float())
    inputs = inputs._replace(y_reference=references[1].float())
    *tensors, pairing = inputs
    where = device.torch_device
    moved = Pairing(pairing.x_sample.to(where), pairing.y_sample.to(where))
    return Inputs(*(tensor.to(where) for tensor in tensors), moved)


@pytest.mark.parametrize("size", [3.0, 10.0, 40.0, 3e4])
def test_logits_too_far_apart_for_one_exponential(kernel, device, size) -> None:
    """Up to 1e9: differences of which float32's exponential has no number for."""
    inputs = spread_out(device, size)
    case = Case("", rows=45, columns=37)
    assert_within_budgets(kernel, inputs, upstream(case, torch.float32, device.torch_device))


def test_rows_without_a_gradient_may_have_any_logits(kernel, device) -> None:
    """Of short rows and short columns only: logits of long ones overflow any common factor."""
    inputs = spread_out(device, 40.0)
    given = upstream(Case("", rows=45, columns=37), torch.float32, device.torch_device)
    given = SoftmaxGradients(*(torch.zeros_like(gradient) for gradient in given))
    given.x_lse[:16:3] = 0.5
    given.x_positive[:16:3] = -0.5
    given.y_lse[26::2] = 0.25
    assert_within_budgets(kernel, inputs, given)


def test_a_loss_near_zero_keeps_its_digits(kernel, device) -> None:
    """Aligned at a scale of 100: the float32 logits themselves are wrong by about 1e-5."""
    case = Case("", rows=64, depth=128, scale=100.0, spread=0.0)
    inputs = draw(case, torch.float32, device.torch_device)
    sums = kernel.softmax(*inputs.softmax)
    truth = softmax_truth(widened(inputs))
    found = (sums.x_lse - sums.x_positive).double().cpu()
    error = (found - (truth.x_lse - truth.x_positive)).abs().max()
    logits = 100.0 * inputs.x.cpu() @ inputs.y.cpu().T
    plain = torch.nn.functional.cross_entropy(logits, torch.arange(64), reduction="none")
    plain_error = (plain.double() - (truth.x_lse - truth.x_positive)).abs().max()
    # The reference of 100 is rounded; what is left of the logits is not.
    assert error <= 2 * plain_error + 4 * unit_roundoff(torch.float32)


def test_nan_in_a_row_that_is_there_is_never_hidden(kernel, device) -> None:
    case = NAMED["absent with garbage"]
    inputs = draw(case, torch.float32, device.torch_device)
    there = int((inputs.pairing.x_sample != ABSENT).nonzero()[0])
    inputs.x[there, 3] = torch.nan
    here = [sample != ABSENT for sample in inputs.pairing[:2]]
    sums = kernel.softmax(*inputs.softmax)
    assert sums.x_lse[there].isnan()
    assert sums.y_lse[here[1]].isnan().all()
    assert not sums.x_lse[here[0]].isnan().all()
    given = upstream(case, torch.float32, device.torch_device)
    found = kernel.softmax_backward(*inputs.softmax, sums.x_lse, sums.y_lse, given)
    assert found.scale.isnan()
    assert found.y[here[1]].isnan().any()
    assert (found.y[~here[1]] == 0).all()
    total, gradients = kernel.sigmoid(*inputs.sigmoid, with_gradients=True)
    assert total.isnan()
    assert gradients.scale.isnan()
    assert gradients.bias.isnan()
    assert (gradients.x[~here[0]] == 0).all()


@pytest.mark.parametrize("name", ["absent with garbage", "everything", "everything positive"])
def test_what_absent_rows_hold_changes_no_bit(kernel, name, device) -> None:
    """Embeddings, references, guides and gradients of rows that are not there: NaN or zeros."""
    case, where = NAMED[name], device.torch_device
    results = []
    for filling in (torch.nan, torch.inf, 0.0):
        inputs, given = draw(case, torch.float32, where), upstream(case, torch.float32, where)
        x_gone, y_gone = (sample == ABSENT for sample in inputs.pairing[:2])
        guide = inputs.pairing.guide
        of_x = [inputs.x, inputs.x_reference, given.x_lse, given.x_positive]
        of_y = [inputs.y, inputs.y_reference, given.y_lse, given.y_positive]
        if guide is not None:
            of_x, of_y = [*of_x, guide.x, guide.x_threshold], [*of_y, guide.y, guide.y_threshold]
        for gone, tensors in ((x_gone, of_x), (y_gone, of_y)):
            for tensor in tensors:
                tensor[gone] = filling
        sums = kernel.softmax(*inputs.softmax)
        results.append(all_results(kernel, inputs, sums[:2], given))
    for name, value in results[-1].items():
        assert not value.isnan().any(), name
        assert torch.equal(results[0][name], value), name
        assert torch.equal(results[1][name], value), name


def test_a_zero_gradient_contributes_nothing_whatever_the_row_holds(kernel, device) -> None:
    """Rows without partner in one direction: no other row's gradient depends on them."""
    inputs = draw(Case("", samples="unmatched"), torch.float32, device.torch_device)
    given = SoftmaxGradients(*(torch.zeros(63, device=device.torch_device) for _ in range(4)))
    anchors = inputs.pairing.x_sample < 10_000
    given.x_lse[anchors], given.x_positive[anchors] = 0.1, -0.1
    clean = kernel.softmax(*inputs.softmax)
    expected = kernel.softmax_backward(*inputs.softmax, clean.x_lse, clean.y_lse, given)
    inputs.x[~anchors] = torch.nan
    sums = kernel.softmax(*inputs.softmax)
    found = kernel.softmax_backward(*inputs.softmax, sums.x_lse, sums.y_lse, given)
    assert (found.x[~anchors] == 0).all()
    assert torch.equal(found.x[anchors], expected.x[anchors])
    assert torch.equal(found.y, expected.y)


def test_a_guide_that_is_no_number_leaves_nothing_out(kernel, device) -> None:
    """Out is what is above a threshold; NaN is not, as similarity or as threshold."""
    case, where = NAMED["guide"], device.torch_device
    inputs, given = draw(case, torch.float32, where), upstream(case, torch.float32, where)
    guide = inputs.pairing.guide
    assert guide is not None
    guide.x[5], guide.y[17], guide.y_threshold[30] = torch.nan, torch.nan, torch.nan
    assert_within_budgets(kernel, inputs, given)


def test_a_row_that_nothing_counts_for(kernel, device) -> None:
    """Its group is all there is, and is ignored: -inf, and no gradient."""
    inputs = draw(Case("", rows=6, samples="unmatched"), torch.float32, device.torch_device)
    groups = torch.zeros(6, dtype=torch.int64, device=device.torch_device)
    pairing = Pairing(
        groups + torch.arange(6, device=groups.device), groups + 100, groups, groups, "ignore"
    )
    inputs = inputs._replace(pairing=pairing)
    sums = kernel.softmax(*inputs.softmax)
    assert (sums.x_lse == -torch.inf).all()
    assert (sums.y_lse == -torch.inf).all()
    ones = SoftmaxGradients(*(torch.ones_like(sums.x_lse) for _ in range(4)))
    found = kernel.softmax_backward(*inputs.softmax, sums.x_lse, sums.y_lse, ones)
    assert not any(gradient.count_nonzero() for gradient in found)


def test_blocks_add_up_to_the_whole(kernel, device) -> None:
    """As ranks of a ring go through them: sums of blocks, gradients with the whole's sums."""
    case, where = NAMED["everything"], device.torch_device
    inputs, given = draw(case, torch.float32, where), upstream(case, torch.float32, where)
    whole = kernel.softmax(*inputs.softmax)
    gradients = kernel.softmax_backward(*inputs.softmax, *whole[:2], given)
    guide, pairing = inputs.pairing.guide, inputs.pairing
    lses, total = [], torch.zeros_like(gradients.x)
    for part in (slice(0, 50), slice(50, 51), slice(51, 131)):
        of_part = pairing._replace(
            y_sample=pairing.y_sample[part],
            y_group=pairing.y_group[part],
            guide=guide._replace(y=guide.y[part], y_threshold=guide.y_threshold[part]),
        )
        arguments = (
            inputs.x, inputs.y[part], inputs.scale, inputs.x_reference, inputs.y_reference[part],
            of_part,
        )  # fmt: skip
        lses.append(kernel.softmax(*arguments).x_lse)
        of_columns = given._replace(y_lse=given.y_lse[part], y_positive=given.y_positive[part])
        found = kernel.softmax_backward(*arguments, whole.x_lse, whole.y_lse[part], of_columns)
        total += found.x
        assert deviation(found.y, gradients.y[part].double().cpu()).rms < 1e-5
    joined = torch.stack(lses).logsumexp(0)
    assert deviation(joined, whole.x_lse.double().cpu()).rms < 1e-6
    assert deviation(total, gradients.x.double().cpu()).rms < 1e-5


def test_the_same_inputs_give_the_same_bits(kernel, device) -> None:
    case, where = NAMED["everything"], device.torch_device
    inputs, given = draw(case, torch.float32, where), upstream(case, torch.float32, where)
    lses = kernel.softmax(*inputs.softmax)[:2]
    first, second = (all_results(kernel, inputs, lses, given) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
