"""Our Triton kernels of the contrastive losses: run by `test_contrastive_loss_triton`.

In a process of its own, in Triton's interpreter where there is no GPU, for whose sake batches are
small:

    TRITON_INTERPRET=1 pytest tests/kernels/triton_contrastive_loss.py

On a GPU, long forms and all: `pytest --long`.
"""

import pytest
import torch

from accel_kernels.budgets import deviation
from accel_kernels.contrastive_loss.differentiable import sigmoid_sum, softmax_sums
from accel_kernels.contrastive_loss.pairing import ABSENT, Pairing
from accel_kernels.contrastive_loss.passes import Passes
from accel_kernels.contrastive_loss.triton import PASSES, blocks, launch
from tests.kernels import test_contrastive_loss as every_kernel
from tests.kernels.contrastive_cases import (
    CASES,
    Case,
    draw,
    sigmoid_gradient_truth,
    sigmoid_truth,
    upstream,
    widened,
)

# NumPy's, of the interpreter: exponentials of pairs that do not count, before these are left out,
# and maxima of rows of NaN.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{words}:RuntimeWarning")
    for words in ("overflow encountered", "invalid value encountered", "All-NaN slice")
]
long = pytest.mark.long
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# Several tiles, stripes and regions of the interpreter's, of sizes that these do not divide.
ODD = Case("odd", rows=70, columns=40, depth=20, samples="unmatched", absent=0.2, garbage=True)
EVERYTHING = Case(
    "everything", rows=20, columns=70, depth=17, samples="repeated", absent=0.2, garbage=True,
    duplicates="ignore", guided=True, hardness=2.0,
)  # fmt: skip
POSITIVE = EVERYTHING._replace(name="positive", rows=35, columns=20, duplicates="positive")
SHORT = [
    (ODD, torch.float32),
    (EVERYTHING, torch.float32),
    (EVERYTHING, torch.bfloat16),
    (POSITIVE, torch.float16),
    (POSITIVE, torch.float64),
    (Case("one", rows=1, depth=1), torch.float32),
    (Case("near", rows=20, depth=64, scale=100.0, spread=0.0), torch.float32),
    (Case("all absent", rows=7, absent=1.0, garbage=True), torch.float32),
    (Case("no rows", rows=0, columns=5), torch.float32),
    (Case("no columns", rows=5, columns=0), torch.bfloat16),
]
# A thousand rows take minutes in the interpreter, and show it nothing that 150 do not.
ALL = [case for case in CASES if case.rows < 1000 or not launch.INTERPRETING]


@pytest.fixture
def kernel(device) -> Passes:
    """On the CPU if it is interpreted, else on GPUs."""
    kind = device.torch_device.type
    if kind not in (("cpu",) if launch.INTERPRETING else ("cuda", "xpu")):
        pytest.skip("Triton interprets on the CPU only, and compiles for GPUs only")
    return PASSES


@pytest.mark.parametrize(
    ("case", "dtype"),
    [*SHORT, *(pytest.param(case, dtype, marks=long) for case in ALL for dtype in DTYPES)],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_sums_and_gradients_are_as_near_to_float64_as_the_dense_formula(
    kernel, case, dtype, device
) -> None:
    where = device.torch_device
    if where.type == "xpu" and dtype == torch.float64:
        pytest.skip("not every XPU has float64")
    inputs, given = draw(case, dtype, where), upstream(case, dtype, where)
    known = every_kernel.yardstick_of(case, dtype)
    every_kernel.assert_within_budgets(kernel, inputs, given, known)


# What holds for every kernel, of this one; see there.
for name in (
    "nan_in_a_row_that_is_there_is_never_hidden",
    "a_zero_gradient_contributes_nothing_whatever_the_row_holds",
    "a_row_that_nothing_counts_for",
    "logits_too_far_apart_for_one_exponential",
    "a_loss_near_zero_keeps_its_digits",
    "rows_without_a_gradient_may_have_any_logits",
    "layouts_that_are_not_contiguous",
    "what_absent_rows_hold_changes_no_bit",
    "blocks_add_up_to_the_whole",
    "the_same_inputs_give_the_same_bits",
    "single_numbers_are_so_too_over_many_batches",
):
    test = getattr(every_kernel, f"test_{name}")
    short = name in (
        "nan_in_a_row_that_is_there_is_never_hidden",
        "a_zero_gradient_contributes_nothing_whatever_the_row_holds",
        "a_row_that_nothing_counts_for",
    )
    globals()[f"test_{name}"] = test if short else long(test)
del test


def test_all_bits_of_sample_and_group_numbers_count(kernel, device) -> None:
    """Numbers that differ in their upper halves only, and negative ones but for `ABSENT`."""
    case = POSITIVE._replace(guided=False, hardness=0.0)
    inputs = draw(case, torch.float32, device.torch_device)
    x_group, y_group = inputs.pairing.x_group, inputs.pairing.y_group

    def far(sample: torch.Tensor) -> torch.Tensor:
        return torch.where(sample == ABSENT, ABSENT, sample * 2**33 - 2**36 + 5)

    def far_group(group: torch.Tensor) -> torch.Tensor:
        return torch.where(group < 0, group, group * 2**32 + 3)

    wide = inputs.pairing._replace(
        x_sample=far(inputs.pairing.x_sample), y_sample=far(inputs.pairing.y_sample),
        x_group=far_group(x_group), y_group=far_group(y_group),
    )  # fmt: skip
    expected = kernel.softmax(*inputs.softmax)
    found = kernel.softmax(*inputs._replace(pairing=wide).softmax)
    assert expected.x_count.max() > 1
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_layouts_and_repetitions_give_the_same_bits(kernel, device) -> None:
    inputs = draw(ODD._replace(rows=35), torch.float32, device.torch_device)
    given = upstream(ODD._replace(rows=35), torch.float32, device.torch_device)
    twice = inputs._replace(
        x=inputs.x.T.contiguous().T,
        y=torch.stack([inputs.y, inputs.y], 2)[..., 1],
        x_reference=torch.stack([inputs.x_reference] * 2, 1)[:, 0],
        pairing=inputs.pairing._replace(y_sample=inputs.pairing.y_sample.repeat(2)[: ODD.width]),
    )
    assert not twice.x.is_contiguous()
    lses = kernel.softmax(*inputs.softmax)[:2]
    results = [every_kernel.all_results(kernel, each, lses, given) for each in (inputs, twice)]
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_an_anchor_whose_sum_is_empty_gives_no_gradient(kernel, device) -> None:
    inputs = draw(POSITIVE, torch.float32, device.torch_device)
    given = upstream(POSITIVE, torch.float32, device.torch_device)
    x_lse, y_lse = kernel.softmax(*inputs.softmax)[:2]
    row = int(((inputs.pairing.x_sample != ABSENT) & (given.x_lse != 0)).nonzero()[0])
    without = given._replace(x_lse=given.x_lse.clone())
    without.x_lse[row] = 0.0
    expected = kernel.softmax_backward(*inputs.softmax, x_lse, y_lse, without)
    empty = x_lse.clone()
    empty[row] = -torch.inf
    found = kernel.softmax_backward(*inputs.softmax, empty, y_lse, given)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_autograd_runs_it_by_name(kernel, device) -> None:
    inputs = draw(POSITIVE, torch.float32, device.torch_device)
    found = []
    for backend in ("triton", "reference"):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs[:4]]
        x, y, scale, bias = leaves
        sums = softmax_sums(backend, x, y, scale, *inputs[4:])
        some = sums.x_lse > -torch.inf
        loss = torch.where(some, sums.x_lse, 0.0).sum() - sums.y_positive.sum()
        loss = loss + sigmoid_sum(backend, x, y, scale, bias, inputs.pairing)
        found.append([loss, *torch.autograd.grad(loss, leaves)])
    for ours, theirs in zip(*found, strict=True):
        assert deviation(ours.detach(), theirs.detach().double().cpu()).rms < 1e-5


@pytest.mark.parametrize("bias", [-8.0, -17.0, -40.0])
def test_easy_negatives_of_the_sigmoid_loss_keep_their_digits(kernel, device, bias) -> None:
    """Their losses are far below float32's distance of 1 to the next number."""
    inputs = draw(Case("", rows=20, bias=bias, scale=3.0), torch.float32, device.torch_device)
    apart = Pairing(inputs.pairing.x_sample, inputs.pairing.y_sample + 100)
    inputs = inputs._replace(pairing=apart)
    loss, gradients = kernel.sigmoid(*inputs.sigmoid, with_gradients=True)
    truth, of_inputs = sigmoid_truth(widened(inputs)), sigmoid_gradient_truth(widened(inputs))
    assert truth < 1
    assert deviation(loss, truth).rms < 1e-5
    for name, gradient in gradients._asdict().items():
        assert deviation(gradient, getattr(of_inputs, name)).rms < 1e-5, name


def test_regions_cover_every_logit_once_in_linear_memory(kernel, device) -> None:
    for rows, columns in ((1, 1), (63, 1000), (1000, 63), (300, 500)):
        x = torch.zeros(rows, 24, device=device.torch_device)
        y = torch.zeros(columns, 24, device=device.torch_device)
        samples = [torch.zeros(n, dtype=torch.int64, device=x.device) for n in (rows, columns)]
        made = launch.Launch(x, y, Pairing(*samples), scale=x.new_ones(()))
        edge = max(made.blocks.rows, made.blocks.columns, made.product_blocks.out)
        seen = torch.zeros(rows + edge, columns + edge, dtype=torch.int32)
        for region in made.regions():
            below, right = region.first_row + region.height, region.first_column + region.stride
            seen[region.first_row : below, region.first_column : right] += 1
            assert region.height % edge == region.stride % edge == 0
            least = blocks.LEAST_REGION + edge * (rows + columns)
            assert region.height * region.stride <= max(least, (rows + columns) * 12)
        assert (seen[:rows, :columns] == 1).all()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "columns", "depth"), [(4500, 4301, 300), (20_001, 130, 24)])
def test_many_stripes_and_regions_of_a_gpu(kernel, device, dtype, rows, columns, depth) -> None:
    where = device.torch_device
    if where.type == "cpu":
        pytest.skip("needs a GPU: that many tiles take hours in the interpreter")
    case = EVERYTHING._replace(rows=rows, columns=columns, depth=depth)
    inputs, given = draw(case, dtype, where), upstream(case, dtype, where)
    every_kernel.assert_within_budgets(kernel, inputs, given)


@pytest.mark.gpu
def test_memory_of_a_gpu_grows_linearly(kernel, device) -> None:
    """Beside inputs and gradients: parts, or a region's weights; logits would take 4 GiB."""
    where = device.torch_device
    if where.type != "cuda":
        pytest.skip("needs a GPU's allocator")
    inputs = draw(Case("", rows=32_768, depth=64), torch.bfloat16, where)
    given = upstream(Case("", rows=32_768), torch.bfloat16, where)
    torch.cuda.reset_peak_memory_stats(where)
    before = torch.cuda.memory_allocated(where)
    sums = kernel.softmax(*inputs.softmax)
    kernel.softmax_backward(*inputs.softmax, sums.x_lse, sums.y_lse, given)
    assert torch.cuda.max_memory_allocated(where) - before < 160 * 2**20
    assert sums.x_count.sum() == 32_768
