"""The contrastive losses, against loops over anchors in float64, gradients included."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import accel
from accel.alignment import (
    ABSENT,
    aligned_pairs,
    contrastive_loss,
    grouped,
    guided,
    matched_pairs,
    with_negatives,
)
from accel_kernels.contrastive_loss import operators
from tests.alignment_reference import leaves, plain_sigmoid, plain_softmax

DIRECTIONS = ("both", "x_to_y", "y_to_x")


def number(value):
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


def check(loss, plain, inputs, rtol=1e-9):
    """Value and every gradient; a loop that does not touch an input has none for it."""
    torch.testing.assert_close(loss, plain, rtol=rtol, atol=1e-12)
    found = torch.autograd.grad(loss, inputs, retain_graph=True)
    expected = torch.autograd.grad(plain, inputs, retain_graph=True, allow_unused=True)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(
            one, torch.zeros_like(one) if other is None else other, rtol=rtol, atol=1e-11
        )


def pairing_named(name, n, m):
    """Each option of a pairing, over rows of which some have many partners, some none."""
    x_sample, y_sample = torch.arange(n), torch.arange(m)
    if name == "plain":
        return matched_pairs(x_sample, y_sample)
    if name == "shuffled":
        return matched_pairs(torch.randperm(n), torch.randperm(m))
    if name == "several partners":
        return matched_pairs(torch.randint(0, 4, (n,)), torch.randint(0, 5, (m,)))
    if name == "absent":
        absent = torch.rand(n) < 0.3, torch.rand(m) < 0.3
        return matched_pairs(
            x_sample.masked_fill(absent[0], ABSENT), y_sample.masked_fill(absent[1], ABSENT)
        )
    plain = matched_pairs(x_sample, y_sample)
    if name == "hardness":
        return plain._replace(hardness=7.0)
    if name.startswith("guide"):
        guides = torch.randn(n, 3, dtype=torch.float64), torch.randn(m, 3, dtype=torch.float64)
        return guided(plain, *guides, margin=0.1, strategy=name.split()[1])
    groups = torch.randint(-1, 4, (n,)), torch.randint(-1, 4, (m,))
    return grouped(plain, *groups, duplicates=name.split()[1])


NAMES = (
    "plain", "shuffled", "several partners", "absent", "hardness", "guide absolute",
    "guide relative", "groups positive", "groups ignore", "groups negative",
)  # fmt: skip


@pytest.mark.parametrize("sizes", [(1, 1), (3, 3), (7, 12), (17, 9)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_softmax_is_the_loop_over_anchors(name, sizes):
    x, y = leaves(*sizes)
    scale, pairing = number(9.0), pairing_named(name, *sizes)
    for direction in DIRECTIONS:
        loss = contrastive_loss(x, y, scale=scale, pairing=pairing, direction=direction)
        check(loss, plain_softmax(x, y, scale, pairing, direction), (x, y, scale))


@pytest.mark.parametrize("sizes", [(1, 1), (3, 3), (7, 12), (17, 9)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_sigmoid_is_the_loop_over_pairs(name, sizes):
    x, y = leaves(*sizes)
    scale, bias, pairing = number(9.0), number(-3.0), pairing_named(name, *sizes)
    loss = contrastive_loss(x, y, scale=scale, bias=bias, kind="sigmoid", pairing=pairing)
    check(loss, plain_sigmoid(x, y, scale, bias, pairing), (x, y, scale, bias))


@pytest.mark.parametrize("n", [1, 3, 63, 1000])
def test_without_a_pairing_it_is_cross_entropy_with_the_row_number(n):
    x, y = leaves(n, n, 16)
    scale = number(1 / 0.07)
    logits, labels = scale * x @ y.T, torch.arange(n)
    halves = F.cross_entropy(logits, labels), F.cross_entropy(logits.T, labels)
    for direction, plain in zip(DIRECTIONS, (sum(halves) / 2, *halves), strict=True):
        loss = contrastive_loss(x, y, scale=scale, direction=direction)
        check(loss, plain, (x, y, scale))


@pytest.mark.parametrize("n", [1, 3, 63, 1000])
def test_sigmoid_without_a_pairing_is_the_logsigmoid_of_signed_logits(n):
    x, y = leaves(n, n, 16)
    scale, bias = number(10.0), number(-10.0)
    signs = 2 * torch.eye(n, dtype=torch.float64) - 1
    plain = -F.logsigmoid(signs * (scale * x @ y.T + bias)).sum() / n
    loss = contrastive_loss(x, y, scale=scale, bias=bias, kind="sigmoid")
    check(loss, plain, (x, y, scale, bias))
    assert contrastive_loss(x, y, scale=2.0, kind="sigmoid").item() == pytest.approx(
        contrastive_loss(x, y, scale=2.0, bias=0.0, kind="sigmoid").item()
    )


def test_hard_negatives_are_more_columns_of_a_cross_entropy():
    x, y = leaves(6, 6)
    hard = F.normalize(torch.randn(4, 5, dtype=torch.float64), dim=-1).requires_grad_()
    scale, pairing = number(20.0), with_negatives(aligned_pairs(6), 4)
    loss = contrastive_loss(
        x, torch.cat([y, hard]), scale=scale, pairing=pairing, direction="x_to_y"
    )
    plain = F.cross_entropy(scale * x @ torch.cat([y, hard]).T, torch.arange(6))
    check(loss, plain, (x, y, hard, scale))


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("sizes", [(0, 0), (0, 3), (3, 0), (2, 3)], ids=str)
def test_where_there_is_no_anchor_the_loss_is_zero_and_so_are_its_gradients(kind, sizes):
    x, y = leaves(*sizes)
    scale = number(5.0)
    sample = torch.full((sizes[0],), ABSENT)
    pairing = matched_pairs(sample, torch.arange(sizes[1]))
    loss = contrastive_loss(x, y, scale=scale, kind=kind, pairing=pairing)
    assert loss.item() == 0.0
    for gradient in torch.autograd.grad(loss, (x, y, scale)):
        assert not gradient.any()


def test_rows_without_a_partner_are_negatives_and_no_anchors():
    x, y = leaves(3, 4)
    pairing = matched_pairs(torch.tensor([0, 1, 7]), torch.tensor([1, 8, 0, 9]))
    loss = contrastive_loss(x, y, scale=number(4.0), pairing=pairing, direction="x_to_y")
    logits = 4.0 * x @ y.T
    torch.testing.assert_close(loss, F.cross_entropy(logits[:2], torch.tensor([2, 0])))


# --- values that are not well behaved ------------------------------------------------------------


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_nan_shows_and_that_of_an_absent_row_does_not(kind):
    x, y = leaves(4, 4)
    spoiled = x.detach().clone()
    spoiled[2] = torch.nan
    assert contrastive_loss(spoiled, y, scale=3.0, kind=kind).isnan()
    sample = torch.tensor([0, 1, ABSENT, 3])
    pairing = matched_pairs(sample, sample)
    spoiled.requires_grad_()
    bad_y = y.detach().clone()
    bad_y[2] = torch.inf
    bad_y.requires_grad_()
    loss = contrastive_loss(spoiled, bad_y, scale=3.0, kind=kind, pairing=pairing)
    kept = torch.tensor([0, 1, 3])
    torch.testing.assert_close(loss, contrastive_loss(x[kept], y[kept], scale=3.0, kind=kind))
    for gradient in torch.autograd.grad(loss, (spoiled, bad_y)):
        assert gradient.isfinite().all()
        assert not gradient[2].any()


@pytest.mark.parametrize("scale", [1e-3, 100.0, 1e4])
def test_extreme_scales(scale, device):
    """A perfect match at a high scale, where an unstabilised exponential overflows."""
    x, _ = leaves(5, 5)
    narrow = x.detach().float().to(device.torch_device).requires_grad_()
    given = torch.tensor(scale, device=device.torch_device)
    loss = contrastive_loss(narrow, narrow.detach(), scale=given)
    plain = plain_softmax(
        narrow.detach().cpu().double(), narrow.detach().cpu().double(),
        torch.tensor(scale, dtype=torch.float64), aligned_pairs(5),
    )  # fmt: skip
    torch.testing.assert_close(loss.cpu().double(), plain, rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(loss, narrow)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("norm", [1e2, 1e3, 1e5, 1e8])
def test_gradients_of_rows_that_are_not_normalised(norm, device):
    """Log-sum-exps of any size: as near to float64 as cross-entropy in float32."""
    squares = [0.0, 0.0, 0.0]
    for seed in range(6):
        made = torch.Generator().manual_seed(seed)
        x, y = (F.normalize(torch.randn(16, 32, generator=made), dim=-1) for _ in range(2))
        x *= norm
        exact = cross_entropy_gradient(x.double(), y.double())
        leaf = x.to(device.torch_device).requires_grad_()
        loss = contrastive_loss(leaf, y.to(device.torch_device), scale=1.0)
        mine = torch.autograd.grad(loss, leaf)[0].cpu()
        for n, one in enumerate((exact, mine - exact, cross_entropy_gradient(x, y) - exact)):
            squares[n] += float(one.double().square().sum())
    size, error, plain = (square**0.5 for square in squares)
    assert error <= 2 * plain + 1e-6 * size


def cross_entropy_gradient(x, y):
    leaf, labels = x.clone().requires_grad_(), torch.arange(len(x))
    logits = leaf @ y.T
    loss = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    return torch.autograd.grad(loss, leaf)[0]


@pytest.mark.parametrize("sides", ["both", "x_to_y"])
def test_normalised_rows_go_through_their_logits_twice(sides, monkeypatch):
    """At the highest scale, untrained: a third time is for rows that are far from norm 1."""
    known, asked = operators.passes_of("cpu"), []

    def softmax(*given):
        asked.append(given)
        return known.softmax(*given)

    monkeypatch.setitem(operators._passes, "cpu", known._replace(softmax=softmax))
    for norm, passes in ((1.0, 1), (100.0, 2)):
        x, y = (one.detach().requires_grad_() for one in leaves(40, 40, 64))
        loss = contrastive_loss(norm * x, y, scale=100.0, direction=sides, backend="cpu")
        loss.backward()
        assert len(asked) == passes
        asked.clear()


def test_float16_gradients_of_a_sigmoid_loss_are_of_the_mean(device):
    """Of the sum of 2048 rows alike they are beyond float16, divided by them they are not."""
    found = []
    for dtype in (torch.float16, torch.float32):
        x, y = (
            torch.full((2048, 4), 0.5, dtype=dtype, device=device.torch_device, requires_grad=True)
            for _ in range(2)
        )
        loss = contrastive_loss(x, y, scale=100.0, bias=-95.0, kind="sigmoid")
        found.append(torch.autograd.grad(loss, (x, y)))
        assert {one.dtype for one in found[-1]} == {dtype}
    for low, exact in zip(*found, strict=True):
        torch.testing.assert_close(low.float(), exact, rtol=1e-3, atol=0.0)


def test_a_loss_near_zero_keeps_its_precision_in_float32():
    """`log(1 + tiny)` of a nearly perfect match, which logits of size 90 would round away."""
    x = torch.eye(8)
    loss = contrastive_loss(x, x, scale=12.0)
    assert loss.item() == pytest.approx(7 * 6.14421e-06, rel=1e-3)


# --- dtypes, layouts, devices --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_low_precision_is_summed_in_float32(dtype, kind, device):
    wide = leaves(63, 63, 32)
    x, y = (one.detach().to(device.torch_device, dtype).requires_grad_() for one in wide)
    scale = torch.tensor(10.0, device=device.torch_device, requires_grad=True)
    loss = contrastive_loss(x, y, scale=scale, kind=kind)
    assert loss.dtype == torch.float32
    exact = [one.detach().cpu().double().requires_grad_() for one in (x, y, scale)]
    pairing = aligned_pairs(63)
    if kind == "softmax":
        logits = exact[2] * exact[0] @ exact[1].T
        labels = torch.arange(63)
        plain = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    else:
        plain = plain_sigmoid(*exact, torch.tensor(0.0, dtype=torch.float64), pairing)
    torch.testing.assert_close(loss.cpu().double(), plain, rtol=1e-5, atol=1e-6)
    found = torch.autograd.grad(loss, (x, y, scale))
    for one, other in zip(found, torch.autograd.grad(plain, exact), strict=True):
        rounding = torch.finfo(one.dtype).eps
        torch.testing.assert_close(
            one.cpu().double(),
            other,
            rtol=4 * rounding,
            atol=2 * rounding * float(other.abs().max()),
        )


def test_layouts_do_not_matter():
    x, y = leaves(9, 9)
    expected = contrastive_loss(x, y, scale=8.0)
    strided = x.detach().T.contiguous().T
    sliced = torch.stack([y.detach(), -y.detach()], 1)[:, 0]
    assert not strided.is_contiguous()
    assert not sliced.is_contiguous()
    torch.testing.assert_close(contrastive_loss(strided, sliced, scale=8.0), expected)
    pairing = matched_pairs(torch.arange(18)[::2], torch.arange(18)[::2])
    torch.testing.assert_close(contrastive_loss(x, y, scale=8.0, pairing=pairing), expected)


def test_numbers_and_tensors_are_the_same():
    x, y = (one.detach() for one in leaves(5, 5))
    for dtype in (torch.float64, torch.float32):
        given = {"scale": torch.tensor(8.0, dtype=dtype), "bias": torch.tensor(-2.0, dtype=dtype)}
        torch.testing.assert_close(
            contrastive_loss(x, y, **given, kind="sigmoid"),
            contrastive_loss(x, y, scale=8.0, bias=-2.0, kind="sigmoid"),
        )


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_autocast_does_not_reach_in(kind, device):
    x, y = (one.detach().float().to(device.torch_device) for one in leaves(33, 33, 24))
    expected = contrastive_loss(x, y, scale=30.0, kind=kind)
    with accel.precision.portable_autocast(device.torch_type):
        found = contrastive_loss(x, y, scale=30.0, kind=kind)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_it_compiles_whole(kind):
    x, y = leaves(12, 12)
    scale = number(7.0)

    def step(x, y, scale):
        unit = F.normalize(x, dim=-1)
        return contrastive_loss(unit, y, scale=scale.exp(), kind=kind)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    given = x, y, scale.detach().log().requires_grad_()
    check(compiled(*given), step(*given), given)


# --- the choice of the kernel --------------------------------------------------------------------


def test_the_kernel_is_chosen_as_everywhere():
    x, y = leaves(4, 4)
    expected = contrastive_loss(x, y, scale=5.0)
    said = accel.explain("contrastive_loss", x, y, scale=5.0)
    assert said.chosen == "cpu"
    assert "contrastive_loss on cpu in float64: cpu (automatic)" in str(said)
    named = contrastive_loss(x, y, scale=5.0, backend="reference")
    torch.testing.assert_close(named, expected)
    with accel.use_backend(contrastive_loss="reference"):
        assert accel.explain("contrastive_loss", x, y, scale=5.0).chosen == "reference"
        torch.testing.assert_close(contrastive_loss(x, y, scale=5.0), expected)
    with pytest.raises(ValueError, match="no backend called 'fastest'"):
        contrastive_loss(x, y, scale=5.0, backend="fastest")
    with pytest.raises(accel.BackendError, match="cannot serve this call"):
        contrastive_loss(x, y, scale=5.0, backend="npu")


def test_every_backend_here_gives_the_same():
    x, y = leaves(6, 9)
    pairing = pairing_named("several partners", 6, 9)
    expected = plain_softmax(x, y, number(5.0), pairing)
    for candidate in accel.explain("contrastive_loss", x, y, scale=5.0, pairing=pairing).candidates:
        if candidate.chosen or not candidate.reasons:
            loss = contrastive_loss(x, y, scale=5.0, pairing=pairing, backend=candidate.name)
            torch.testing.assert_close(loss, expected)
