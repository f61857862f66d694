"""`record`: which steps, what is said of them, and what happens when things go wrong."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode

import accel
from accel.numerics import load_recording, record
from tests.numerics.numerics_zoo import (
    Mlp,
    case,
    first_step,
    made,
    names,
    one_thread,  # noqa: F401
    recorded,
    step,
)


def steps_of(path: Path) -> list[int]:
    return sorted(load_recording(path).ranks[0].steps)


def train(path: Path, count: int, *, accumulate: int = 1, **options: Any) -> None:
    one = case("mlp")
    model = made(one.model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with record(model, path, **options):
        for _ in range(count):
            for _ in range(accumulate):
                step(model, one)
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0]),
        ({"every": 1}, [0, 1, 2, 3, 4]),
        ({"every": 3}, [0, 3]),
        ({"steps": [1, 4, 17]}, [1, 4]),
        ({"steps": range(2)}, [0, 1]),
    ],
)
def test_which_steps(tmp_path: Path, options: dict[str, Any], expected: list[int]) -> None:
    train(tmp_path / "r", 5, **options)
    assert steps_of(tmp_path / "r") == expected


def test_accumulated_gradients_are_one_step(tmp_path: Path) -> None:
    train(tmp_path / "r", 2, accumulate=3, every=1)
    assert steps_of(tmp_path / "r") == [0, 1]
    found = first_step(tmp_path / "r")
    assert [call.index for call in found.calls] == [0, 1, 2]
    assert "backward:layers.0[2]/addmm#0/mm#0" in names(found)


def test_two_optimizers_are_one_step_and_steps_can_be_told(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    both = [torch.optim.SGD(part.parameters(), 0.1) for part in model]
    with record(model, tmp_path / "a", every=1):
        for _ in range(2):
            model(torch.randn(3, 4)).sum().backward()
            for optimizer in both:
                optimizer.step()
    assert steps_of(tmp_path / "a") == [0, 1]
    with record(model, tmp_path / "b", every=1) as recorder, torch.no_grad():
        for i in range(3):
            assert recorder.index == i
            model(torch.randn(3, 4))
            recorder.step()
    assert steps_of(tmp_path / "b") == [0, 1, 2, 3]
    assert load_recording(tmp_path / "b").ranks[0].steps[3].operators == ()


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


@dataclass
class Result:
    logits: Tensor
    loss: Tensor | None
    past: tuple[Any, ...]


class Nested(nn.Module):
    def forward(self, x: Tensor, *, extra: dict[str, Tensor], flag: bool = False) -> Result:
        pair = Pair(x + 1, x + 2)
        return Result(x * 2, None, (pair, [OrderedDict(a=extra["y"] + x)]))


def test_nested_inputs_and_outputs_have_stable_paths(tmp_path: Path) -> None:
    model, x = Nested(), torch.randn(3)
    with record(model, tmp_path / "r", level="full"):
        model(x, extra={"y": x}, flag=True)
    found = first_step(tmp_path / "r")
    (call,) = found.modules
    assert set(call.inputs) == {"0", "extra.y"}
    assert set(call.outputs) == {"logits", "past.0.left", "past.0.right", "past.1.0.a"}
    assert torch.equal(found.tensor(call.outputs["past.1.0.a"]), x + x)
    assert found.calls[0].arguments == {"1.flag": True}


def test_the_manifest_says_what_ran(tmp_path: Path) -> None:
    recorded(tmp_path / "r", case("mlp"), seed=11, arguments=["train.py", "--fast"])
    manifest = load_recording(tmp_path / "r").manifest
    assert manifest.seed == 11
    assert manifest.arguments == ("train.py", "--fast")
    assert manifest.complete
    assert manifest.error is None
    assert manifest.versions["torch"] == torch.__version__
    assert manifest.device["family"] == "cpu"
    assert manifest.numerics_mode == accel.numerics_mode().to_dict()
    assert (manifest.level, manifest.steps, manifest.world) == ("sketch", "every 200", 1)


def test_circumstances_are_noted(tmp_path: Path) -> None:
    found = recorded(tmp_path / "r", case("mlp"), autocast=True)
    assert found.calls[0].autocast == "bfloat16"
    assert found.calls[0].training
    by_key = {str(o.key): o for o in found.operators}
    product = by_key["forward:layers.0/addmm#0"]
    assert product.autocast == "bfloat16"
    assert found.values[product.produced[0]].dtype == "bfloat16"
    before = found.calls[0].generators["cpu"]
    torch.manual_seed(99)
    again = recorded(tmp_path / "s", case("mlp"), model=made(Mlp, seed=4))
    assert again.calls[0].generators["cpu"] != before


def test_an_exception_leaves_a_readable_recording_that_says_so(tmp_path: Path) -> None:
    model, one = made(Mlp), case("mlp")

    def fail() -> None:
        with record(model, tmp_path / "r"):
            step(model, one)
            raise KeyError("lost")

    with pytest.raises(KeyError):
        fail()
    manifest = load_recording(tmp_path / "r").manifest
    assert not manifest.complete
    assert manifest.error == "KeyError: 'lost'"
    assert "backward:layers.0/addmm#0/mm#0" in names(first_step(tmp_path / "r"))
    assert not model.layers[0]._forward_hooks
    assert _get_current_dispatch_mode() is None


KILLED = """
import os, signal, sys, torch
from accel.numerics import record

class Last(torch.nn.Module):
    def forward(self, x):
        os.kill(os.getpid(), signal.SIGKILL)

model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8), Last())
with record(model, sys.argv[1], level=sys.argv[2]):
    model(torch.ones(2, 8))
"""


@pytest.mark.parametrize("level", ["sketch", "full"])
def test_a_run_that_is_killed_in_mid_step_is_readable(tmp_path: Path, level: str) -> None:
    path = tmp_path / "r"
    done = subprocess.run([sys.executable, "-c", KILLED, str(path), level])
    assert done.returncode == -signal.SIGKILL
    recording = load_recording(path)
    assert not recording.manifest.complete
    assert recording.manifest.error is None
    found = recording.ranks[0].steps[0]
    assert found.end is None
    if level == "sketch":
        assert "forward:1/addmm#0" in names(found)  # the last operator before the end
        assert found.values[found.operators[-1].produced[0]].sketch is not None


def test_what_cannot_be_seen_is_refused(tmp_path: Path) -> None:
    compiled = nn.Sequential(nn.Linear(2, 2))
    compiled.compile(backend="eager")
    outer = nn.Sequential(torch.compile(nn.Linear(2, 2), backend="eager"))
    for model, reason in [
        (compiled, r"the model is compiled \(module\.compile"),
        (outer, r"0 is compiled \(torch\.compile"),
        (nn.DataParallel(nn.Linear(2, 2)), "replicated"),
        (nn.Linear(2, 2, device="meta"), "meta device"),
    ]:
        with pytest.raises(ValueError, match=reason):
            record(model, tmp_path / "r")
    with pytest.raises(TypeError, match=r"takes a torch\.nn\.Module, got function"):
        record(F.relu, tmp_path / "r")  # type: ignore[arg-type]
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": "all"}, "unknown level 'all'; known are sketch, full, check"),
        ({"every": 0}, "every must be a number of steps from 1, got 0"),
        ({"size_cap": -1}, "size_cap must be a number of bytes from 0"),
        ({"data_parallel": (2, 2)}, r"0 <= index < count"),
        ({"only": "blocks.*"}, r"only takes a list of patterns"),
    ],
)
def test_wrong_arguments(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        record(nn.Linear(2, 2), tmp_path / "r", **options)
    assert not (tmp_path / "r").exists()


def test_a_model_that_is_never_called_is_an_error(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="the model was not called inside the block"),
        record(nn.Linear(2, 2), tmp_path / "r"),
    ):
        pass
    assert not load_recording(tmp_path / "r").manifest.complete


def test_a_recording_is_never_overwritten(tmp_path: Path) -> None:
    recorded(tmp_path / "r", case("mlp"))
    before = (tmp_path / "r" / "rank-0" / "manifest.json").read_bytes()
    with pytest.raises(ValueError, match="never overwritten"):
        recorded(tmp_path / "r", case("mlp"))
    assert (tmp_path / "r" / "rank-0" / "manifest.json").read_bytes() == before


def test_the_environment_overrides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"level": "full", "only": ["layers.2"], "steps": [1], "path": str(tmp_path / "zoom")}
    monkeypatch.setenv("ACCEL_RECORD", json.dumps(asked))
    train(tmp_path / "r", 3)
    assert not (tmp_path / "r").exists()
    recording = load_recording(tmp_path / "zoom")
    assert list(recording.ranks[0].steps) == [1]
    found = recording.ranks[0].steps[1]
    for operator in found.operators:
        if operator.key.module in ("layers.2", "layers.4") and operator.name == "aten::addmm":
            kept = all(map(found.has_tensor, operator.produced))
            assert kept == (operator.key.module == "layers.2")


class Pass(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def test_a_mode_that_was_entered_meanwhile_is_left_alone(tmp_path: Path) -> None:
    one = case("mlp")
    model = made(one.model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with record(model, tmp_path / "r") as recorder:
        with Pass() as other:
            for _ in range(2):
                step(model, one)
                optimizer.step()
            assert _get_current_dispatch_mode() is other
            assert not recorder.is_recording
        step(model, one)
    assert _get_current_dispatch_mode() is None
    assert steps_of(tmp_path / "r") == [0]


def test_checks_at_level_check(tmp_path: Path) -> None:
    found = recorded(tmp_path / "r", case("language"), level="check", steps=1)
    verdicts = [check.fields["verdict"] for check in found.checks.values()]
    assert set(verdicts) <= {"within", "exact", "unchecked"}
    assert verdicts.count("within") > 15
    checked = {found.operators[o].name for o in found.checks}
    assert {"aten::addmm", "aten::native_layer_norm_backward", "aten::add_"} <= checked
    # One of each signature: the two blocks are alike.
    assert sum(found.operators[o].name == "aten::gelu" for o in found.checks) == 1
    assert not any(found.has_tensor(value) for value in found.values)


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_a_distributed_model_is_recorded_under_its_own_names(tmp_path: Path) -> None:
    one = case("mlp")
    plain = recorded(tmp_path / "plain", one)
    wrapped = nn.parallel.DistributedDataParallel(made(one.model))
    with record(wrapped, tmp_path / "wrapped"):
        step(wrapped, one)
    found = first_step(tmp_path / "wrapped")
    assert set(names(plain, "forward")) <= set(names(found, "forward"))
    assert any(o.key.phase == "collective" for o in found.operators)


def test_nothing_is_written_outside_of_the_directory(tmp_path: Path) -> None:
    recorded(tmp_path / "r", case("mlp"), level="full")
    assert os.listdir(tmp_path) == ["r"]


def test_compiled_functions_run_as_they_are_written_and_that_is_said(tmp_path: Path) -> None:
    compiled = 0

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        nonlocal compiled
        compiled += 1
        return graph.forward

    @torch.compile(backend=backend)
    def activation(x: Tensor) -> Tensor:
        return F.gelu(x * 2)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return activation(self.linear(x))

    model, x = Model(), torch.randn(3, 4)
    with record(model, tmp_path / "r", steps=[0]) as recorder:
        model(x).sum().backward()
        assert compiled == 0
        recorder.step()
        with torch.no_grad():
            model(x)
        assert compiled == 1
    found = first_step(tmp_path / "r")
    assert "forward:/gelu#0" in names(found)
    assert "backward:/gelu#0/gelu_backward#0" in names(found)
    assert [one.what for one in found.skipped] == ["torch.compile"]


def test_a_program_that_compiles_nothing_hears_nothing_of_it(tmp_path: Path) -> None:
    code = (
        "import sys, torch, torch._dynamo\n"
        "from accel.numerics import load_recording, record\n"
        "model = torch.nn.Linear(2, 2)\n"
        "with record(model, sys.argv[1]):\n"
        "    model(torch.ones(1, 2))\n"
        "assert load_recording(sys.argv[1]).ranks[0].steps[0].skipped == ()\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "r")], check=True)


def test_modules_and_parameters_may_be_exchanged_between_steps(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    with record(model, tmp_path / "r", every=1):
        for _ in range(3):
            # Each time at the address of the one before, maybe: names go by what is there now.
            model[1] = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
            optimizer = torch.optim.SGD(model.parameters(), 0.1)
            model(torch.randn(5, 4)).sum().backward()
            optimizer.step()
            del optimizer
    steps = load_recording(tmp_path / "r").ranks[0].steps
    assert sorted(steps) == [0, 1, 2]
    for found in (steps[1], steps[2]):
        assert "forward:1.0/addmm#0" in names(found)
        assert {one.name for one in found.updates} == {n for n, _ in model.named_parameters()}


def test_a_model_that_is_copied_or_saved_in_a_recorded_step(tmp_path: Path) -> None:
    model, x = made(Mlp), case("mlp").inputs
    with record(model, tmp_path / "r"):
        model(x)
        count = len(names(first_step(tmp_path / "r")))
        twin = copy.deepcopy(model)
        averaged = torch.optim.swa_utils.AveragedModel(model)
        torch.save(model, tmp_path / "model.pt")
        before = len(first_step(tmp_path / "r").modules)
        for other in (twin, averaged, torch.load(tmp_path / "model.pt", weights_only=False)):
            assert torch.equal(other(x), model(x))
    after = first_step(tmp_path / "r")
    assert count < len(after.operators)
    # Only the recorded model's own calls were told.
    assert len(after.modules) == before + 3 * before


def test_other_threads_are_not_seen_and_that_is_said(tmp_path: Path) -> None:
    model, x = made(Mlp), case("mlp").inputs
    with record(model, tmp_path / "r"), torch.no_grad():
        model(x)
        thread = threading.Thread(target=lambda: [model(x) for _ in range(20)])
        thread.start()
        thread.join()
        model(x)
    found = first_step(tmp_path / "r")
    assert [call.call for call in found.modules if call.module == ""] == [0, 1]
    assert any("calls of modules in threads" in one.what for one in found.skipped)


def test_no_hook_stays_on_a_parameter_that_a_module_returns(tmp_path: Path) -> None:
    class Returns(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.weight

    model = nn.Sequential(Returns())
    with record(model, tmp_path / "r"):
        model(torch.ones(3)).sum().backward()
    assert not model[0].weight._backward_hooks


def test_lazy_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"weight is not there yet: call the lazy model once"):
        record(nn.LazyLinear(3), tmp_path / "r")


class Count(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("level", ["sketch", "full", "check"])
def test_the_programs_own_modes_do_not_see_the_recorder(tmp_path: Path, level: Any) -> None:
    one = case("mlp")
    plain, watched = Count(), Count()
    first, second = made(one.model), made(one.model)
    with plain:
        step(first, one)
    recorder = record(second, tmp_path / "r", level=level)
    with watched, recorder:
        step(second, one)
    assert watched.seen == plain.seen


@pytest.mark.parametrize("where", ["sparse", "functorch", "nested"])
def test_tensors_without_memory_of_their_own(tmp_path: Path, where: str) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)
            self.register_buffer("adjacent", torch.eye(3).to_sparse())

        def forward(self, x: Tensor) -> Tensor:
            if where == "sparse":
                return torch.sparse.mm(self.adjacent, self.linear(x))
            if where == "functorch":
                return torch.func.vmap(torch.func.grad(lambda row: self.linear(row).sum()))(x)
            nested = torch.nested.nested_tensor([x, x[:2]], layout=torch.jagged)
            return self.linear(nested).to_padded_tensor(0.0)

    model = Model()
    x = torch.randn(3, 4)
    expected = model(x)
    for level in ("sketch", "full", "check"):
        with record(model, tmp_path / level, level=level):
            assert torch.equal(model(x), expected)
        assert first_step(tmp_path / level).end is not None


def test_an_optimizer_in_the_backward_gets_every_gradient(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    optimizers = {p: torch.optim.SGD([p], 0.1) for p in model.parameters()}
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: optimizers[p].step())
    with record(model, tmp_path / "r"):
        model(torch.randn(3, 4)).sum().backward()
    found = first_step(tmp_path / "r")
    parameters = {s.name: s.value for s in found.sources.values() if s.kind == "parameter"}
    assert set(parameters) == {name for name, _ in model.named_parameters()}
    assert all(value in found.adjoints for value in parameters.values())
