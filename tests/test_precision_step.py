"""Precision.step and backward at their edges: skipping, clipping, misuse, states."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from accel.precision import DynamicLossScale, Precision


def scaled(model, value=8.0):
    return Precision(model, "compute=float16", loss_scale=DynamicLossScale(value))


@pytest.fixture(params=["compute=float32", "compute=float16"])
def trained(request):
    """A model, its Precision and optimizer after one step, with fresh gradients."""
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))
    precision = Precision(model, request.param)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for step in range(2):
        optimizer.zero_grad()
        precision.backward(model(torch.randn(5, 4)).mean())
        if step == 0:
            precision.step(optimizer)
    return model, precision, optimizer


class TestSkipping:
    @pytest.mark.parametrize("value", ["nan", "inf"])
    @pytest.mark.parametrize("name", ["0.weight", "2.bias"])
    def test_changes_nothing_and_names_the_cause(self, trained, caplog, name, value):
        model, precision, optimizer = trained
        model.get_parameter(name).grad.view(-1)[-1] = float(value)
        scale = precision.loss_scale.value
        before = copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"]))
        assert not precision.step(optimizer, max_norm=1.0)
        after = (model.state_dict(), optimizer.state_dict()["state"])
        flat = torch.utils._pytree.tree_leaves
        assert all(map(torch.equal, flat(before), flat(after)))
        skipped = precision.last_skipped
        assert (skipped.step, skipped.parameter, skipped.value) == (1, name, value)
        assert skipped.loss_scale == scale
        assert f"step 1 skipped: the gradient of {name} holds {value}" in caplog.text

    def test_names_the_first_in_the_models_order(self):
        model = nn.ModuleDict({"a": nn.Linear(1, 1), "b": nn.Linear(1, 1)})
        precision = Precision(model, "compute=float32")
        optimizer = torch.optim.SGD([*model["b"].parameters(), *model["a"].parameters()])
        precision.backward(sum(p.sum() for p in model.parameters()))
        for parameter in model.parameters():
            parameter.grad.fill_(float("nan"))
        precision.step(optimizer)
        assert precision.last_skipped.parameter == "a.weight"

    @pytest.mark.parametrize("value", ["nan", "inf"])
    def test_a_loss_that_is_not_finite_is_named_and_forgotten(self, value):
        weight = nn.Parameter(torch.ones(1))
        precision = Precision(nn.ParameterList([weight]), "compute=float32")
        optimizer = torch.optim.SGD([weight])
        precision.backward(weight.sum())
        precision.backward((weight * float(value)).sum())
        assert not precision.step(optimizer)
        assert str(precision.last_skipped) == f"step 0 skipped: the loss is {value} (loss scale 1)"
        weight.grad = None
        precision.backward(weight.sum())
        weight.grad.fill_(float("inf"))
        assert not precision.step(optimizer)
        assert precision.last_skipped.parameter == "0"

    def test_a_loss_that_is_not_finite_and_gradients_that_are(self):
        weight = nn.Parameter(torch.ones(1))
        precision = Precision(nn.ParameterList([weight]), "compute=float32")
        precision.backward(weight.sum() + float("inf"))
        assert precision.step(torch.optim.SGD([weight]))

    def test_a_parameter_that_is_not_the_models(self):
        stranger = nn.Parameter(torch.ones(1))
        precision = Precision(nn.Linear(1, 1), "compute=float32")
        precision.backward(stranger.sum())
        stranger.grad.fill_(float("inf"))
        assert not precision.step(torch.optim.SGD([stranger]))
        assert precision.last_skipped.parameter == "?"

    def test_backs_off_and_recovers(self, caplog):
        weight = nn.Parameter(torch.ones(2))
        precision = scaled(nn.ParameterList([weight]), 2.0**20)
        optimizer = torch.optim.SGD([weight], lr=0.0)
        for _ in range(7):  # in float16, 2^20 overflows, and 2^15 no more
            optimizer.zero_grad()
            precision.backward((weight.half() * torch.ones(2).half()).sum().float())
            weight.grad.copy_(weight.grad.half())
            precision.step(optimizer)
        assert len(caplog.records) == 5
        assert precision.loss_scale.value == 2.0**15


class TestClipping:
    @pytest.mark.parametrize("max_norm", [1e-3, 0.5, 1e9, float("inf")])
    def test_as_torchs(self, trained, max_norm):
        model, precision, optimizer = trained
        scale = precision.loss_scale.value
        twin = copy.deepcopy(model)
        for mine, copied in zip(model.parameters(), twin.parameters(), strict=True):
            copied.grad = mine.grad / scale
        nn.utils.clip_grad_norm_(twin.parameters(), max_norm)
        precision.step(optimizer, max_norm)
        for mine, copied in zip(model.parameters(), twin.parameters(), strict=True):
            assert torch.equal(mine.grad, copied.grad)

    @pytest.mark.parametrize("max_norm", [1e-3, 1.0, 1e20, float("inf")])
    def test_finite_gradients_whose_norm_overflows(self, max_norm):
        weight = nn.Parameter(torch.zeros(3))
        precision = Precision(nn.ParameterList([weight]), "compute=float32")
        gradient = torch.tensor([3e38, -2e38, 0.0])
        precision.backward((weight * gradient).sum())
        assert precision.step(torch.optim.SGD([weight], lr=1.0), max_norm)
        exact = gradient.double() * min(1.0, max_norm / gradient.double().norm().item())
        torch.testing.assert_close(weight.grad.double(), exact, rtol=1e-6, atol=0.0)
        assert torch.equal(weight, -weight.grad)

    @pytest.mark.parametrize("max_norm", [1.0, 1e30])
    def test_bfloat16_parameters(self, max_norm):
        weight = nn.Parameter(torch.zeros(1000, dtype=torch.bfloat16))
        precision = Precision(nn.ParameterList([weight]), "compute=bfloat16")
        precision.backward((weight * 2e37).sum())
        assert precision.step(torch.optim.SGD([weight], lr=0.0), max_norm)
        assert weight.grad.double().norm().item() == pytest.approx(max_norm, rel=0.01)

    @pytest.mark.parametrize("max_norm", [0.0, -1.0, float("nan")])
    def test_a_wrong_limit_changes_nothing(self, trained, max_norm):
        model, precision, optimizer = trained
        before = copy.deepcopy([p.grad for p in model.parameters()])
        with pytest.raises(ValueError, match="max_norm must be positive"):
            precision.step(optimizer, max_norm)
        assert all(map(torch.equal, before, [p.grad for p in model.parameters()]))
        assert precision.step(optimizer)


class TestUnusualGradients:
    @pytest.mark.parametrize("max_norm", [None, 1e-3])
    def test_sparse_ones_step_as_dense_ones(self, max_norm):
        sparse = nn.Embedding(10, 4, sparse=True)
        dense = nn.Embedding(10, 4, _weight=sparse.weight.detach().clone())
        for table in (sparse, dense):
            precision = scaled(table)
            precision.backward(table(torch.tensor([1, 1, 7])).sin().sum())
            optimizer = torch.optim.SGD(table.parameters(), lr=1.0)
            assert precision.step(optimizer, max_norm)
        torch.testing.assert_close(sparse.weight, dense.weight)
        assert sparse.weight.grad.is_sparse

    def test_sparse_ones_that_are_not_finite_are_skipped(self):
        table = nn.Embedding(4, 2, sparse=True)
        precision = scaled(table)
        precision.backward(table(torch.tensor([1])).sum() * float("nan"))
        assert not precision.step(torch.optim.SparseAdam(table.parameters()))
        assert precision.last_skipped.parameter == "the loss"

    def test_empty_frozen_and_unused_parameters(self):
        model = nn.Linear(3, 1)
        model.bias.requires_grad_(False)
        model.empty = nn.Parameter(torch.empty(0, 3))
        model.unused = nn.Parameter(torch.ones(2))
        precision = scaled(model)
        precision.backward(model(torch.ones(1, 3)).sum() + model.empty.sum())
        frozen = model.bias.clone()
        assert precision.step(torch.optim.SGD(model.parameters(), lr=1.0), max_norm=0.1)
        assert torch.equal(model.bias, frozen)
        assert torch.equal(model.unused, torch.ones(2))
        assert model.weight.grad.norm().item() == pytest.approx(0.1, rel=1e-4)

    def test_only_empty_ones(self):
        model = nn.ParameterList([nn.Parameter(torch.empty(0))])
        precision = Precision(model, "compute=float32")
        precision.backward(model[0].sum())
        assert precision.step(torch.optim.SGD(model.parameters()), max_norm=1.0)
        model.append(nn.Parameter(torch.ones(1)))
        precision.backward((model[0].sum() + model[1] * float("nan")).sum())
        assert not precision.step(torch.optim.SGD(model.parameters()))

    def test_ones_that_carry_a_graph(self):
        weight = nn.Parameter(torch.ones(2))
        precision = scaled(nn.ParameterList([weight]))
        with pytest.warns(UserWarning, match="create_graph"):
            precision.backward((weight**2).sum(), create_graph=True)
        graph = weight.grad.grad_fn
        assert precision.step(torch.optim.SGD([weight], lr=0.5), max_norm=100.0)
        assert weight.grad.grad_fn is graph
        assert torch.equal(weight, torch.zeros(2))

    def test_complex_ones(self):
        weight = nn.Parameter(torch.ones(2, dtype=torch.complex64))
        precision = Precision(nn.ParameterList([weight]), "compute=float32")
        precision.backward((weight * (3 + 4j)).sum().abs())
        assert precision.step(torch.optim.SGD([weight]), max_norm=1.0)
        assert weight.grad.norm().item() == pytest.approx(1.0, rel=1e-4)


class TestMisuse:
    def test_no_gradient(self, trained):
        _, precision, optimizer = trained
        optimizer.zero_grad()
        with pytest.raises(ValueError, match="call backward first"):
            precision.step(optimizer)

    def test_twice_without_backward(self):
        model = nn.Linear(2, 1)
        precision, optimizer = scaled(model), torch.optim.SGD(model.parameters())
        precision.backward(model(torch.ones(1, 2)).sum())
        precision.step(optimizer)
        before = model.weight.grad.clone()
        with pytest.raises(ValueError, match="twice for this optimizer"):
            precision.step(optimizer)
        assert torch.equal(model.weight.grad, before)

    def test_gradients_of_another_backward(self):
        model = nn.Linear(2, 1)
        precision = scaled(model)
        model(torch.ones(1, 2)).sum().backward()
        with pytest.raises(ValueError, match=r"Precision\.backward\(loss\) instead"):
            precision.step(torch.optim.SGD(model.parameters()))

    def test_float16_parameters_under_a_scale(self):
        model = nn.Linear(2, 1).half()
        precision = scaled(model)
        precision.backward(model(torch.ones(1, 2).half()).float().sum())
        with pytest.raises(ValueError, match="keep the parameters in float32"):
            precision.step(torch.optim.SGD(model.parameters()))

    def test_a_loss_that_is_no_scalar(self, trained):
        model, precision, _ = trained
        pending, grad = precision.state_dict(), model[0].weight.grad.clone()
        with pytest.raises(ValueError, match=r"scalar loss, not one of shape \(5, 1\)"):
            precision.backward(model(torch.randn(5, 4)))
        assert precision.state_dict() == pending
        assert torch.equal(model[0].weight.grad, grad)
        precision.backward(model(torch.ones(2, 4)), gradient=torch.ones(2, 1))
        precision.backward(model(torch.ones(1, 4)))  # one element is a scalar to torch


class TestState:
    def test_is_plain_and_restores(self, trained):
        model, precision, optimizer = trained
        precision.step(optimizer)
        state = precision.state_dict()
        assert state["steps"] == 2
        assert state["pending"] is True
        other = Precision(model, precision.policy)
        other.load_state_dict(state)
        assert other.state_dict() == state

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"policy": "compute=bfloat16"}, "trained under 'compute=bfloat16'"),
            ({"steps": -1}, "not valid"),
            ({"steps": "3"}, "not valid"),
            ({"pending": "yes"}, "not valid"),
            ({"loss_scale": None}, "not valid"),
            ({"loss_scale": {"value": 0.0, "steps_since_overflow": 0}}, "loss scale"),
            ({"more": 1}, "no state of Precision"),
        ],
    )
    def test_a_wrong_one_changes_nothing(self, trained, change, message):
        _, precision, _ = trained
        before = precision.state_dict()
        with pytest.raises(ValueError, match=message):
            precision.load_state_dict({**before, "steps": 7, **change})
        assert precision.state_dict() == before
