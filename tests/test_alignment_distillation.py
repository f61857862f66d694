"""The logit form of distillation against its formula, OpenCLIP's loss, and what it refuses."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from accel.alignment.loss import DIRECTIONS
from accel.alignment.transfer.distillation import distillation_loss
from accel.precision.autocast import portable_autocast
from accel_kernels.budgets import budget, deviation, typical
from tests.kernels.contrastive_peers import open_clip_losses
from tests.transfer_cases import Batch, batch_of, plain_distillation

SIZES = [(1, 1), (1, 3), (3, 1), (3, 3), (63, 100), (513, 511), (1000, 1000)]
LEARNED = ("student_x", "student_y", "student_scale")


def loss_of(batch: Batch, direction: str = "both", **options: Tensor) -> Tensor:
    return distillation_loss(
        batch.student_x, batch.student_y, batch.teacher_x, batch.teacher_y,
        student_scale=batch.student_scale, teacher_scale=batch.teacher_scale,
        direction=direction, **options,
    )  # fmt: skip


def gradients(loss: Tensor, batch: Batch) -> dict[str, Tensor]:
    found = torch.autograd.grad(loss, [getattr(batch, name) for name in LEARNED])
    return {"loss": loss.detach(), **dict(zip(LEARNED, found, strict=True))}


def truth_of(batch: Batch, direction: str) -> dict[str, Tensor]:
    leaves = batch.leaves(torch.float64)
    return gradients(plain_distillation(leaves, direction), leaves)


# --- values ------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_float64_is_the_formula(size, direction):
    batch = batch_of(*size)
    leaves = batch.leaves(torch.float64)
    found = gradients(loss_of(leaves, direction), leaves)
    for name, truth in truth_of(batch, direction).items():
        torch.testing.assert_close(found[name], truth, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("size", [(63, 100), (513, 511), (1000, 1000)], ids=str)
def test_float32_is_as_near_as_the_formula_in_float32(device, size):
    """Twice its error, as every kernel; the tensors of a run share a floor."""
    batch = batch_of(*size)
    truth = truth_of(batch, "both")
    plain = batch.leaves(torch.float32)
    errors = {
        name: deviation(one, truth[name])
        for name, one in gradients(plain_distillation(plain, "both"), plain).items()
    }
    leaves = batch.leaves(torch.float32, device.torch_device)
    floor = typical(errors.values())
    for name, one in gradients(loss_of(leaves), leaves).items():
        assert one.dtype == torch.float32
        allowed = budget(errors[name], torch.float32, floor=floor)
        assert allowed.exceeded_by(deviation(one, truth[name])) is None, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_are_summed_in_float32(device, dtype):
    """Of inputs that are exact in it, so that only the gradients are rounded: once."""
    rounded = Batch(*(one.to(dtype).to(torch.float64) for one in batch_of(130, 70)))
    truth = truth_of(rounded, "both")
    leaves = rounded.leaves(dtype, device.torch_device)
    found = gradients(loss_of(leaves), leaves)
    assert found["loss"].dtype == torch.float32
    assert float(found["loss"]) == pytest.approx(float(truth["loss"]), rel=1e-5)
    for name in ("student_x", "student_y"):
        assert found[name].dtype == dtype
        info = torch.finfo(dtype)
        atol = 1e-6 * float(truth[name].abs().max()) + info.smallest_normal * info.eps
        torch.testing.assert_close(
            found[name].cpu().double(), truth[name], rtol=info.eps, atol=atol
        )


def test_autocast_changes_nothing(device):
    leaves = batch_of(40, 50).leaves(torch.float32, device.torch_device)
    outside = gradients(loss_of(leaves), leaves)
    with portable_autocast(device.torch_type):
        inside = gradients(loss_of(leaves), leaves)
    for name, one in outside.items():
        assert torch.equal(inside[name], one), name


def test_a_teacher_of_another_dtype():
    batch = batch_of(20, 30)
    mixed = batch.leaves(torch.float32)
    teacher = {name: getattr(mixed, name).to(torch.bfloat16) for name in ("teacher_x", "teacher_y")}
    exact = {name: one.to(torch.float32) for name, one in teacher.items()}
    assert torch.equal(loss_of(mixed._replace(**teacher)), loss_of(mixed._replace(**exact)))


def test_views_that_are_not_contiguous():
    batch = batch_of(65, 33)
    strided = Batch(*(one.T.contiguous().T if one.dim() else one for one in batch))
    assert not strided.student_x.is_contiguous()
    leaves = strided.leaves(torch.float64)
    found = gradients(loss_of(leaves), leaves)
    for name, truth in truth_of(batch, "both").items():
        torch.testing.assert_close(found[name], truth)


def test_a_student_that_agrees_loses_nothing():
    batch = batch_of(700, 600).leaves(torch.float32)
    twin = batch._replace(
        teacher_x=batch.student_x, teacher_y=batch.student_y, teacher_scale=batch.student_scale
    )
    found = gradients(loss_of(twin), twin)
    assert float(found.pop("loss")) == 0.0
    assert all(float(one.abs().max()) < 1e-9 for one in found.values())


def test_the_gradient_is_that_of_gradcheck():
    leaves = batch_of(5, 4).leaves(torch.float64)

    def of(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
        return loss_of(leaves._replace(student_x=x, student_y=y, student_scale=scale))

    assert torch.autograd.gradcheck(of, [getattr(leaves, name) for name in LEARNED])


def test_the_teacher_gets_no_gradient():
    leaves = batch_of(6, 7).leaves(torch.float64)
    loss_of(leaves).backward()
    assert leaves.teacher_x.grad is leaves.teacher_y.grad is leaves.teacher_scale.grad is None
    assert all(getattr(leaves, name).grad is not None for name in LEARNED)


def test_scales_as_numbers():
    batch = batch_of(9, 9)
    assert torch.equal(
        loss_of(batch._replace(student_scale=14.0, teacher_scale=40.0)), loss_of(batch)
    )


def test_a_second_derivative_is_refused():
    leaves = batch_of(4, 4).leaves(torch.float64)
    (first,) = torch.autograd.grad(loss_of(leaves), [leaves.student_x], create_graph=True)
    with pytest.raises(RuntimeError, match="have no second derivative"):
        first.sum().backward()


def test_compiled_code_gives_the_same():
    batch = batch_of(600, 30)
    ours, theirs = batch.leaves(torch.float64), batch.leaves(torch.float64)
    found = gradients(torch.compile(loss_of, fullgraph=True, backend="aot_eager")(ours), ours)
    for name, one in gradients(loss_of(theirs), theirs).items():
        torch.testing.assert_close(found[name], one)


# --- OpenCLIP ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 3, 1000])
def test_open_clip_has_the_same_gradients_and_adds_the_teachers_entropy(rows):
    batch = batch_of(rows, rows)
    theirs, ours = batch.leaves(torch.float64), batch.leaves(torch.float64)
    teacher = [one.detach() for one in (theirs.teacher_x, theirs.teacher_y, theirs.teacher_scale)]
    _, distilled = open_clip_losses().DistillClipLoss()(
        theirs.student_x, theirs.student_y, theirs.student_scale, *teacher
    )
    logits = teacher[2] * teacher[0] @ teacher[1].T
    entropies = [-(one.softmax(1) * one.log_softmax(1)).sum(1).mean() for one in (logits, logits.T)]
    found = gradients(loss_of(ours), ours)
    torch.testing.assert_close(found["loss"] + sum(entropies) / 2, distilled.detach())
    expected = gradients(distilled, theirs)
    for name in LEARNED:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-10, atol=1e-14)


# --- memory ------------------------------------------------------------------------------------


def saved_bytes(rows: int) -> int:
    """Of what autograd keeps for the backward."""
    leaves = batch_of(rows, rows).leaves(torch.float32)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda one: kept.append(one) or one, lambda one: one
    ):
        loss_of(leaves)
    return sum(one.untyped_storage().nbytes() for one in kept)


def test_only_inputs_and_eight_vectors_are_saved():
    for rows in (64, 2000):
        inputs = 4 * rows * (2 * 24 + 2 * 17) + 2 * 4
        assert saved_bytes(rows) == inputs + 8 * 4 * rows


MEASURE = """
import resource, sys
import torch
from accel.alignment.transfer.distillation import distillation_loss

torch.set_num_threads(1)

def run(rows):
    leaves = [torch.randn(rows, 32).requires_grad_() for _ in range(4)]
    for leaf in leaves[:2]:
        leaf.grad = torch.zeros_like(leaf)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    distillation_loss(*leaves, student_scale=1.0, teacher_scale=1.0).backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before

run(600)
print(run(int(sys.argv[1])))
"""


def test_a_matrix_that_takes_268_mb_is_never_there():
    """8,192 rows, forward and backward: the formula takes many such matrices."""
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, "8192"], capture_output=True, text=True, check=True
    )
    assert int(result.stdout) * 1024 < 60e6  # Linux counts kilobytes


# --- presence ----------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_absent_rows_take_no_part(direction):
    batch = batch_of(30, 20)
    x_present, y_present = torch.rand(30) < 0.6, torch.rand(20) < 0.5
    leaves = Batch(*(one.clone() for one in batch))
    for name, present in (("x", x_present), ("y", y_present)):
        for side in ("student", "teacher"):
            getattr(leaves, f"{side}_{name}")[~present] = math.nan
    leaves = leaves.leaves(torch.float64)
    found = gradients(loss_of(leaves, direction, x_present=x_present, y_present=y_present), leaves)
    part = batch._replace(
        student_x=batch.student_x[x_present], teacher_x=batch.teacher_x[x_present],
        student_y=batch.student_y[y_present], teacher_y=batch.teacher_y[y_present],
    )  # fmt: skip
    truth = truth_of(part, direction)
    torch.testing.assert_close(found["loss"], truth["loss"])
    torch.testing.assert_close(found["student_x"][x_present], truth["student_x"])
    torch.testing.assert_close(found["student_scale"], truth["student_scale"])
    assert not found["student_x"][~x_present].any()
    assert not found["student_y"][~y_present].any()


@pytest.mark.parametrize("size", [(0, 0), (0, 5), (5, 0)], ids=str)
def test_nothing_to_compare_is_zero_with_a_graph(size):
    leaves = batch_of(*size).leaves(torch.float32)
    found = gradients(loss_of(leaves), leaves)
    assert all(not one.any() for one in found.values())


# --- extreme and bad input -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["student_x", "student_y", "teacher_x", "teacher_y"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_shows(name, value):
    batch = batch_of(12, 9)
    getattr(batch, name)[3, 2] = value
    leaves = batch.leaves(torch.float32)
    found = gradients(loss_of(leaves), leaves)
    assert all(bool(one.isnan().any()) for one in found.values())


def test_zero_vectors_are_equally_similar_to_everything():
    batch = batch_of(12, 9)
    batch.student_x[4] = 0.0
    batch.teacher_y[2] = 0.0
    leaves = batch.leaves(torch.float64)
    found = gradients(loss_of(leaves), leaves)
    for name, truth in truth_of(batch, "both").items():
        assert bool(truth.isfinite().all())
        torch.testing.assert_close(found[name], truth)


def test_logits_of_thousands_do_not_overflow():
    batch = batch_of(33, 40)._replace(
        student_scale=torch.tensor(5e3, dtype=torch.float64),
        teacher_scale=torch.tensor(2e4, dtype=torch.float64),
    )
    leaves = batch.leaves(torch.float32)
    found = gradients(loss_of(leaves), leaves)
    truth = truth_of(batch, "both")
    assert float(found["loss"]) == pytest.approx(float(truth["loss"]), rel=1e-5)
    assert all(bool(one.isfinite().all()) for one in found.values())


def test_order_of_rows_does_not_matter():
    batch = batch_of(600, 20)
    order = torch.randperm(600)
    moved = batch._replace(student_x=batch.student_x[order], teacher_x=batch.teacher_x[order])
    torch.testing.assert_close(loss_of(moved), loss_of(batch), rtol=1e-13, atol=0.0)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"direction": "sideways"}, ValueError, "direction is one of both, x_to_y, y_to_x,"),
        ({"student_x": torch.zeros(4)}, ValueError, r"student_x is \[rows, dim\], not \[4\]"),
        ({"student_x": torch.zeros(4, 3)}, ValueError, r"student_x \[4, 3\] in torch.float32 and"),
        ({"teacher_y": torch.zeros(5, 9)}, ValueError, r"teacher_x \[4, 17\].*one width and dtype"),
        ({"teacher_x": torch.zeros(3, 17)}, ValueError, "student_x has 4 rows and teacher_x 3"),
        ({"student_y": torch.zeros(5, 24).long()}, TypeError, "student_y .* not torch.int64"),
        ({"student_y": [[1.0]]}, TypeError, "student_y .* not list"),
        ({"student_y": torch.zeros(5, 24).double()}, ValueError, "one width and dtype"),
        ({"student_y": torch.zeros(5, 24, device="meta")}, ValueError, "student_y on meta"),
        ({"student_scale": 0.0}, ValueError, "student_scale must be positive and finite, not 0.0"),
        ({"teacher_scale": math.inf}, ValueError, "teacher_scale must be positive and finite"),
        ({"teacher_scale": "1"}, TypeError, r"teacher_scale is a number or a tensor \[\], not '1'"),
        ({"teacher_scale": torch.ones(2)}, ValueError, r"one number, not a tensor of shape \[2\]"),
        ({"student_scale": torch.tensor(3)}, TypeError, "floating-point, not torch.int64"),
        ({"x_present": torch.ones(4)}, TypeError, "x_present is a Boolean tensor"),
        ({"y_present": torch.ones(4).bool()}, ValueError, r"y_present is \[5\], .* not \[4\]"),
    ],
)  # fmt: skip
def test_bad_input(change, error, text):
    batch = batch_of(4, 5).leaves(torch.float32)._asdict()
    with pytest.raises(error, match=text):
        distillation_loss(**{**batch, **change})


# --- use ---------------------------------------------------------------------------------------


def test_training_makes_the_student_retrieve_as_the_teacher_does():
    """From other features of the same samples; judged by whom each x takes for its partner."""
    torch.manual_seed(0)
    hidden = torch.randn(256, 6)
    x, y = (torch.tanh(hidden @ torch.randn(6, 20)) for _ in range(2))
    teacher = F.normalize(hidden, dim=1), F.normalize(hidden + 0.3 * torch.randn(256, 6), dim=1)
    towers = torch.nn.ModuleList([torch.nn.Linear(20, 16) for _ in range(2)])
    optimizer = torch.optim.Adam(towers.parameters(), lr=0.02)

    def agreement() -> float:
        own, other = (F.normalize(tower(one), dim=1) for tower, one in zip(towers, (x, y)))  # noqa: B905
        same = (own @ other.T).argmax(1) == (teacher[0] @ teacher[1].T).argmax(1)
        return float(same.float().mean())

    untrained = agreement()
    for _ in range(150):
        student = [F.normalize(tower(one), dim=1) for tower, one in zip(towers, (x, y))]  # noqa: B905
        loss = distillation_loss(*student, *teacher, student_scale=20.0, teacher_scale=20.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert untrained < 0.1
    assert agreement() > 0.4
