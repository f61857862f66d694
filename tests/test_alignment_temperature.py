"""Temperature and bias: where they begin, their bounds, and a gradient that stays alive there."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from accel.alignment import Bias, Temperature, contrastive_loss
from tests.alignment_reference import leaves

UP, DOWN = -1.0, 1.0  # a gradient, and where the step against it leads


def test_where_they_begin():
    assert Temperature()().item() == pytest.approx(1 / 0.07)
    assert Temperature().log_scale.item() == pytest.approx(math.log(1 / 0.07))
    assert Temperature(10.0)().item() == pytest.approx(10.0)
    assert Bias()().item() == -10.0
    for made in (Temperature(), Bias()):
        assert made().shape == ()
        assert [tuple(p.shape) for p in made.parameters()] == [(1,)]


def test_inside_the_bounds_it_is_the_exponential():
    made = Temperature(20.0).double()
    assert torch.autograd.gradcheck(
        lambda log: torch.func.functional_call(made, {"log_scale": log}, ()),
        made.log_scale.detach().requires_grad_(),
    )
    (gradient,) = torch.autograd.grad(made(), made.log_scale)
    torch.testing.assert_close(gradient, made.log_scale.exp())


@pytest.mark.parametrize(
    ("value", "scale", "alive"),
    [
        (100.0, 100.0, {DOWN}),
        (500.0, 100.0, {DOWN}),  # as an optimiser's step may leave it
        (1.0, 1.0, {UP}),
        (0.01, 1.0, {UP}),
        (99.0, 99.0, {UP, DOWN}),
    ],
)
def test_at_a_bound_only_the_way_back_is_open(value, scale, alive):
    made = Temperature()
    with torch.no_grad():
        made.log_scale.fill_(math.log(value))
    assert made().item() == pytest.approx(scale, rel=1e-5)
    for direction in (UP, DOWN):
        (gradient,) = torch.autograd.grad(made() * direction, made.log_scale)
        expected = direction * scale if direction in alive else 0.0
        assert gradient.item() == pytest.approx(expected, rel=1e-5)


def test_the_bias_is_bounded_alike():
    made = Bias(5.0, bounds=(-20.0, 5.0))
    (outward,) = torch.autograd.grad(-made(), made.bias)
    (inward,) = torch.autograd.grad(made(), made.bias)
    assert (outward.item(), inward.item()) == (0.0, 1.0)


def test_a_scale_at_its_bound_comes_back_when_the_loss_wants_it():
    """Pairs that do not match want a low scale; a clamp alone would keep it at 100 for good."""
    torch.manual_seed(0)
    x, y = (one.detach() for one in leaves(16, 16))
    made = Temperature(100.0).double()
    optimizer = torch.optim.SGD(made.parameters(), lr=0.01)
    for _ in range(20):
        optimizer.zero_grad()
        contrastive_loss(x, y, scale=made()).backward()
        optimizer.step()
    assert made().item() < 90.0


def test_a_scale_at_its_bound_stays_there_while_the_loss_wants_more():
    x, noise = (one.detach() for one in leaves(16, 16, 32))
    made = Temperature(10.0, bounds=(1.0, 10.0)).double()
    start = made.log_scale.item()
    optimizer = torch.optim.SGD(made.parameters(), lr=10.0)
    for _ in range(3):
        optimizer.zero_grad()
        contrastive_loss(x, x + 0.1 * noise, scale=made()).backward()
        assert made.log_scale.grad.item() == 0.0
        optimizer.step()
    assert made.log_scale.item() == start


def test_nan_is_not_hidden():
    made = Temperature(100.0)
    (gradient,) = torch.autograd.grad(made() * math.nan, made.log_scale)
    assert gradient.isnan().all()
    with torch.no_grad():
        made.log_scale.fill_(math.nan)
    assert made().isnan()


def test_it_is_an_ordinary_module(device):
    made = Temperature(30.0).to(device.torch_device)
    assert made().device == device.torch_device
    twin = copy.deepcopy(made)
    with torch.no_grad():
        made.log_scale.add_(1.0)
    assert twin().item() == pytest.approx(30.0)
    twin.load_state_dict(made.state_dict())
    assert torch.equal(twin(), made())
    assert list(made.state_dict()) == ["log_scale"]
    assert not any(p.requires_grad for p in Temperature(learnable=False).parameters())
    assert not Temperature(learnable=False)().requires_grad
    assert "bounds=(1.0, 100.0)" in str(made)


def test_it_compiles_whole():
    made = Temperature(100.0)
    compiled = torch.compile(made, fullgraph=True, backend="aot_eager")
    for sign, expected in ((UP, 0.0), (DOWN, 100.0)):
        (gradient,) = torch.autograd.grad(compiled() * sign, made.log_scale)
        assert gradient.item() == pytest.approx(expected, rel=1e-5)


def test_functional_transforms_see_it():
    made = Temperature(100.0)

    def scale(log, factor):
        return torch.func.functional_call(made, {"log_scale": log}, ()) * factor

    logs = made.log_scale.detach().expand(2, 1)
    slopes = torch.func.vmap(torch.func.grad(scale))(logs, torch.tensor([UP, DOWN]))
    torch.testing.assert_close(slopes, torch.tensor([[0.0], [100.0]]))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Temperature(0.5), r"begins at 0.5, outside of its bounds \(1.0, 100.0\); widen"),
        (lambda: Temperature(math.nan), "begins at nan, outside"),
        (lambda: Temperature(bounds=(0.0, 100.0)), "above 0"),
        (lambda: Temperature(bounds=(100.0, 1.0)), "least, greatest"),
        (lambda: Bias(200.0), "begins at 200.0, outside of its bounds"),
    ],
)
def test_refusals(make, said):
    with pytest.raises(ValueError, match=said):
        make()
