"""Which value each tensor of a step holds: every sketch is that of what the operator saw."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from accel.numerics import record
from accel.numerics.capture.schemas import schema_of
from accel.numerics.storage.entries import Operator, Ref
from accel.numerics.storage.steps import Step
from accel_kernels.sketch import sketch
from tests.numerics.numerics_zoo import (
    case,
    first_step,
    made,
    one_thread,  # noqa: F401
    recorded,
    step,
)


class Model(nn.Module):
    def __init__(self, change: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.change = change
        self.weight = nn.Parameter(torch.arange(4.0))

    def forward(self, x: Tensor) -> Any:
        return self.change(x * self.weight)


def taken(change: Callable[[Tensor], Any], path: Path, **options: Any) -> Step:
    model, x = Model(change), torch.arange(12.0).reshape(3, 4) + 1
    with record(model, path, **options), torch.no_grad():
        model(x)
    return first_step(path)


def given(step: Step, operator: Operator, name: str) -> int:
    value = operator.arguments[name]
    assert isinstance(value, Ref)
    assert value.value in step.values
    return value.value


IGNORED = ("aten::detach", "aten::alias", "aten::lift_fresh")


class Witness(TorchDispatchMode):
    """Takes the sketch of every argument and result, below the recorder."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, list[bytes], list[bytes]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if within_recorder() or func.namespace == "profiler" or func._schema.name in IGNORED:
            return func(*args, **kwargs)
        before = [sketch(t).raw for t in flat((*args, *kwargs.values()))]
        result = func(*args, **kwargs)
        schema = schema_of(func)
        named = dict(zip(schema.arguments, args, strict=False)) | kwargs
        targets = [t for name in schema.written for t in flat((named.get(name),))]
        after = [t for t in flat((result,)) if not any(t is target for target in targets)]
        is_garbage = func._schema.name.startswith(("aten::empty", "aten::new_empty"))
        after = [] if is_garbage else [*after, *targets]
        self.seen.append((func._schema.name, before, [sketch(t).raw for t in after]))
        return result


def within_recorder() -> bool:
    """Whether an operator is the recorder's own, for a sketch."""
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_code.co_name != "run":
        if frame.f_code.co_filename.endswith("contents.py"):
            return True
        frame = frame.f_back
    return False


def flat(values: Any) -> list[Tensor]:
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += flat(value)
    return found


def refs(value: Any) -> list[int]:
    if isinstance(value, Ref):
        return [value.value]
    return [v for item in value for v in refs(item)] if isinstance(value, list) else []


@pytest.mark.parametrize(
    "name", ["mlp", "cnn", "lstm", "shared", "reentrant", "checkpoint", "encoder", "language"]
)
@pytest.mark.parametrize("autocast", [False, True])
def test_every_value_is_what_the_operator_saw(tmp_path: Path, name: str, autocast: bool) -> None:
    one = case(name)
    model = made(one.model)
    optimizer = torch.optim.AdamW(model.parameters())
    recorder = record(model, tmp_path / "r")
    with Witness() as witness, recorder:
        step(model, one, autocast=autocast)
        optimizer.step()
    found = first_step(tmp_path / "r")
    assert [o.name for o in found.operators] == [name for name, *_ in witness.seen]
    compared = 0
    for operator, (_, before, after) in zip(found.operators, witness.seen, strict=True):
        read = [v for argument in operator.arguments.values() for v in refs(argument)]
        written = [v for values in operator.writes.values() for v in values]
        made_values = [v for v in operator.outputs if v is not None] + written
        pairs = [*zip(read, before, strict=True)]
        pairs += [*zip(made_values, after, strict=True)] if after else []
        for value, raw in pairs:
            recorded_sketch = found.values[value].sketch
            if recorded_sketch is not None:  # views have none of their own
                assert recorded_sketch.raw == raw, f"{operator.key}: value {value}"
                compared += 1
    assert compared > len(found.operators)


def test_inputs_refer_to_the_output_that_they_are(tmp_path: Path) -> None:
    found = recorded(tmp_path / "r", case("language"))
    sources = [s for s in found.sources.values() if s.kind == "other"]
    # All but constants of the loss (its targets, and what they are made of) is known.
    assert len(sources) <= 2
    kinds = {s.kind for s in found.sources.values()}
    assert {"parameter", "input"} <= kinds


def test_a_change_in_place_is_a_new_value(tmp_path: Path) -> None:
    found = taken(lambda x: (x.add_(1), x.mul(2)), tmp_path / "r")
    first, add, mul = found.operators
    assert add.writes == {"self": (given(found, mul, "self"),)}
    assert given(found, add, "self") == first.outputs[0]
    assert given(found, mul, "self") != first.outputs[0]
    assert add.outputs == (None,)


def test_writing_to_a_view_changes_its_base(tmp_path: Path) -> None:
    def change(x: Tensor) -> Tensor:
        x[1].zero_()
        return x.sum()

    found = taken(change, tmp_path / "r", level="full")
    total = found.operators[-1]
    seen = found.tensor(given(found, total, "self"))
    assert seen[1].eq(0).all()
    assert not seen[0].eq(0).all()


def test_writing_elsewhere_in_the_same_memory_changes_nothing(tmp_path: Path) -> None:
    def change(x: Tensor) -> Tensor:
        halves = torch.zeros(8)
        left, right = halves[:4], halves[4:]
        left.copy_(x[0])
        right.copy_(x[1])
        return left * right

    found = taken(change, tmp_path / "r")
    first, second = (o for o in found.operators if o.name == "aten::copy_")
    product = found.operators[-1]
    assert given(found, product, "self") == first.writes["self"][0]
    assert given(found, product, "other") == second.writes["self"][0]


def test_memory_that_nothing_was_written_to_has_no_sketch(tmp_path: Path) -> None:
    def change(x: Tensor) -> Tensor:
        fresh = torch.empty_like(x)
        fresh.copy_(x)
        return fresh + 1

    found = taken(change, tmp_path / "r")
    _, empty, copy, add = found.operators
    assert empty.outputs[0] is not None
    assert found.values[empty.outputs[0]].sketch is None
    assert given(found, add, "self") == copy.writes["self"][0]


def test_freed_memory_is_not_taken_for_what_was_in_it(tmp_path: Path) -> None:
    def change(x: Tensor) -> Tensor:
        total = x.sum()
        for i in range(20):  # each allocation gets the memory of the one before
            total = total + (x + i).sum()
        return total

    found = taken(change, tmp_path / "r", level="full")
    sums = [o for o in found.operators if o.name == "aten::sum"]
    values = [given(found, o, "self") for o in sums]
    assert len(set(values)) == 21
    for i, value in enumerate(values[1:]):
        assert torch.equal(found.tensor(value), found.tensor(values[0]) + i)


def test_views_refer_to_what_they_look_at(tmp_path: Path) -> None:
    found = taken(lambda x: x.t().reshape(2, 6).exp(), tmp_path / "r")
    by_name = {o.name: o for o in found.operators}
    transposed = by_name["aten::t"].outputs[0]
    assert transposed is not None
    assert found.values[transposed].base == found.operators[0].outputs[0]
    assert found.values[transposed].sketch is None


def test_out_arguments_and_lists(tmp_path: Path) -> None:
    def change(x: Tensor) -> None:
        out = torch.zeros(3, 4)
        torch.add(x, 1, out=out)
        torch._foreach_mul_([out, x], 3.0)
        torch.split(out, 2)

    found = taken(change, tmp_path / "r", level="full")
    add = next(o for o in found.operators if o.overload == "out")
    scaled = next(o for o in found.operators if o.name == "aten::_foreach_mul_")
    assert scaled.arguments["self"][0] == Ref(add.writes["out"][0])
    assert len(scaled.writes["self"]) == 2
    for before, after in zip(scaled.arguments["self"], scaled.writes["self"], strict=True):
        assert torch.equal(found.tensor(after), found.tensor(before.value) * 3)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda x: x.to_sparse(), "sparse"),
        (lambda x: torch.nested.nested_tensor([x, x], layout=torch.jagged), "nested"),
    ],
)
def test_what_has_no_sketch_says_why(
    tmp_path: Path, make: Callable[[Tensor], Tensor], reason: str
) -> None:
    found = taken(make, tmp_path / "r")
    assert any(reason in (value.skipped or "") for value in found.values.values())


def test_gradients_are_those_of_autograd(tmp_path: Path) -> None:
    one = case("language")
    model = made(one.model)
    with record(model, tmp_path / "r", level="full"):
        hidden: list[Tensor] = []
        watched = model.blocks[0].norm2
        handle = watched.register_forward_hook(lambda m, i, o: hidden.append(o))
        out = model(one.inputs)
        loss = one.loss(out)
        expected = torch.autograd.grad(loss, [hidden[0], *model.parameters()], retain_graph=True)
        handle.remove()
        loss.backward()
    found = first_step(tmp_path / "r")
    call = next(m for m in found.modules if m.module == "blocks.0.norm2")
    assert torch.equal(found.tensor(found.adjoints[call.outputs["0"]]), expected[0])
    for (name, _), gradient in zip(model.named_parameters(), expected[1:], strict=True):
        value = next(s.value for s in found.sources.values() if s.name == name)
        assert torch.equal(found.tensor(found.adjoints[value]), gradient)


def test_at_full_every_operator_output_has_its_gradient(tmp_path: Path) -> None:
    found = recorded(tmp_path / "r", case("language"), level="full")
    wanted = [
        value
        for o in found.operators
        if o.key.phase == "forward" and o.name in ("aten::addmm", "aten::gelu", "aten::mean")
        for value in o.outputs[:1]
    ]
    assert len(wanted) >= 6
    assert all(value in found.adjoints for value in wanted)


def test_only_what_is_asked_for_is_kept(tmp_path: Path) -> None:
    found = recorded(tmp_path / "r", case("language"), level="full", only=["blocks.1.mlp.*"])
    kept = {o.key.module for o in found.operators for v in o.produced if found.has_tensor(v)}
    assert kept == {"blocks.1.mlp.0", "blocks.1.mlp.1", "blocks.1.mlp.2"}
    for operator in found.operators:
        if operator.key.module in kept and found.values[operator.produced[0]].base is None:
            for argument in operator.arguments.values():
                assert all(found.has_tensor(value) for value in refs(argument)), operator.key


def test_a_cap_drops_and_says_how_much(tmp_path: Path) -> None:
    found = recorded(tmp_path / "r", case("language"), level="full", size_cap=100_000)
    assert found.end is not None
    assert found.end.dropped > 0
    assert any(found.has_tensor(value) for value in found.values)
    with pytest.raises(ValueError, match="were not kept"):
        found.tensor(next(v for v in found.values if not found.has_tensor(v)))


def test_at_full_memory_that_no_operator_wrote_to_is_seen_to_have_changed(tmp_path: Path) -> None:
    def change(x: Tensor) -> Tensor:
        doubled = x * 2
        doubled.numpy()[0] = 7.0  # as a hand-written kernel does
        return doubled + 1

    found = taken(change, tmp_path / "r", level="full")
    first, add = found.operators[-2:]
    seen = given(found, add, "self")
    assert seen != first.outputs[0]
    assert found.tensor(seen)[0].eq(7).all()
    assert "no operator" in found.sources[seen].name
