"""What a recording holds."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import accel
from accel.numerics import Recording, compare, load_recording, record
from accel.numerics.entries import Key
from tests.numerics_zoo import Mlp, Shared, case, made, one_thread, recorded, step  # noqa: F401


def value(recording: Recording, phase: Any, module: str, call: int = 0, path: str = "0") -> Tensor:
    return recording.tensor(recording.entries[Key(phase, module, call, path)])


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


@dataclasses.dataclass
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
    with record(model, tmp_path / "r"):
        model(x, extra={"y": x}, flag=True)
    recording = load_recording(tmp_path / "r")
    paths = {(key.phase, key.path) for key in recording.entries}
    assert paths == {
        ("input", "0"), ("input", "extra.y"),
        ("forward", "logits"), ("forward", "past.0.left"), ("forward", "past.0.right"),
        ("forward", "past.1.0.a"),
    }  # fmt: skip
    assert torch.equal(value(recording, "forward", "", path="past.1.0.a"), x + x)
    assert recording.calls[0].arguments == {"1.flag": True} | recording.calls[0].arguments


DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn,
    torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.int64, torch.int32,
    torch.int16, torch.int8, torch.uint8, torch.uint16, torch.bool, torch.complex64,
    torch.complex128,
]  # fmt: skip


class Cast(nn.Module):
    def __init__(self, change: Any) -> None:
        super().__init__()
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (63,), (4, 5)])
def test_every_dtype_and_shape_comes_back(
    tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    x = (torch.rand(shape) * 4).to(dtype)
    model = Cast(lambda x: x.clone())
    with record(model, tmp_path / "r", reference=dtype.is_floating_point or dtype.is_complex):
        model(x)
    recording = load_recording(tmp_path / "r")
    back = value(recording, "forward", "")
    assert back.dtype == dtype
    assert back.shape == x.shape
    raw = [t.reshape(-1).contiguous().view(torch.uint8) for t in (back, x)]
    assert torch.equal(*raw)
    if dtype.is_floating_point:
        truth = recording.tensor(recording.truths[Key("forward", "", 0, "0")])
        assert torch.equal(truth, x.to(torch.float64))


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.t(),
        lambda x: x[:, :1].expand(4, 6),
        lambda x: x[::2, 1::3],
        lambda x: x.to(memory_format=torch.contiguous_format).view(2, 12).t()[3],
        lambda x: torch.complex(x, x).conj(),
        lambda x: torch.complex(x, x).conj().imag,
        lambda x: x.relu().to_sparse(),
    ],
    ids=["transposed", "expanded", "strided", "view", "conjugate", "negative", "sparse"],
)
def test_layouts_do_not_matter(tmp_path: Path, change: Any) -> None:
    x = torch.randn(4, 6)
    model = Cast(change)
    with record(model, tmp_path / "r", reference=False):
        out = model(x)
    back = value(load_recording(tmp_path / "r"), "forward", "")
    expected = out.to_dense() if out.is_sparse else out.resolve_conj().resolve_neg()
    assert torch.equal(back, expected)


def test_an_output_that_is_changed_in_place_later_is_recorded_as_it_was(tmp_path: Path) -> None:
    model, one = made(Mlp), case("mlp")
    with record(model, tmp_path / "r"):
        model(one.inputs)
    recording = load_recording(tmp_path / "r")
    before, after = (value(recording, "forward", f"layers.{i}") for i in (0, 1))
    assert (before < 0).any()
    assert torch.equal(before.relu(), after)
    assert torch.equal(value(recording, "input", "layers.1"), before)


def test_equal_tensors_are_stored_once(tmp_path: Path) -> None:
    recording = recorded(tmp_path / "r", case("language"))
    digests = [entry.digest for entry in recording.entries.values()]
    assert len(set(digests)) < 0.7 * len(digests)
    kept = sum(path.stat().st_size for path in tmp_path.glob("r/*.safetensors"))
    entries = [*recording.entries.values(), *recording.truths.values()]
    once = {e.digest: recording.tensor(e).nbytes for e in entries}
    assert sum(once.values()) <= kept < 1.3 * sum(once.values())


def test_gradients_are_those_of_autograd(tmp_path: Path) -> None:
    one = case("shared")
    recording = recorded(tmp_path / "r", one)
    model = made(one.model)
    outputs: list[Tensor] = []
    handle = model.block.register_forward_hook(lambda m, i, o: outputs.append(o))
    loss = one.loss(model(one.inputs))
    handle.remove()
    for call, gradient in enumerate(torch.autograd.grad(loss, outputs, retain_graph=True)):
        assert torch.equal(value(recording, "gradient", "block", call), gradient)
    loss.backward()
    for name, parameter in model.named_parameters():
        module, _, path = name.rpartition(".")
        found = value(recording, "parameter_gradient", module, path=path)
        assert torch.equal(found, parameter.grad), name


def test_shared_modules_and_tied_weights_are_counted_and_named_once(tmp_path: Path) -> None:
    recording = recorded(tmp_path / "r", case("shared"), steps=2)
    calls = sorted(k.call for k in recording.entries if k[:2] == ("forward", "block"))
    assert calls == [0, 1, 2, 3, 4, 5]
    steps = [k for k in recording.entries if k.phase == "parameter_gradient"]
    assert {key.call for key in steps} == {0, 1}
    assert Key("parameter_gradient", "first", 0, "weight") in recording.entries
    assert Key("parameter_gradient", "last", 0, "weight") not in recording.entries
    assert recording.failures == []


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("autocast", [True, False])
def test_checkpointing_records_the_same_tensors(
    tmp_path: Path, reentrant: bool, autocast: bool
) -> None:
    one = case("shared")
    plain = recorded(tmp_path / "a", one, autocast=autocast, steps=2)
    under = recorded(
        tmp_path / "b", one, model=made(lambda: Shared(reentrant)), autocast=autocast, steps=2
    )
    assert set(under.entries) == set(plain.entries)
    assert set(under.truths) == set(plain.truths)
    for key, entry in plain.entries.items():
        # Parameters' gradients add up in another order, so the second step has other parameters.
        if entry.root == 0 and key.phase in ("forward", "input", "gradient", "input_gradient"):
            assert under.entries[key].digest == entry.digest, key


class Twins(nn.Module):
    """Two checkpointed calls of one block that compute the same bits."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        left = checkpoint(self.block, x, use_reentrant=True)
        right = checkpoint(self.block, x, use_reentrant=True)
        return left + 3 * right


def test_reentrant_calls_with_equal_bits_each_get_a_gradient(tmp_path: Path) -> None:
    model, x = Twins(), torch.randn(5, 4, requires_grad=True)
    with record(model, tmp_path / "r"):
        model(x).sum().backward()
    recording = load_recording(tmp_path / "r")
    found = [value(recording, "gradient", "block", call)[0, 0].item() for call in (0, 1)]
    assert sorted(found) == [1.0, 3.0]
    # one parameter, two accumulations in one backward: their sum is the gradient
    weight = value(recording, "parameter_gradient", "block", path="weight")
    assert torch.equal(weight, model.block.weight.grad)
    truth = recording.tensor(recording.truths[Key("parameter_gradient", "block", 0, "weight")])
    torch.testing.assert_close(truth.float(), weight)


def test_a_gradient_that_is_zeroed_or_accumulated_is_what_the_step_added(tmp_path: Path) -> None:
    model, one = made(Mlp), case("mlp")
    step(model, one)
    alone = model.layers[0].weight.grad.clone()
    with record(model, tmp_path / "r"):  # the gradient of before is still there
        step(model, one)
        model.zero_grad(set_to_none=False)
        step(model, one)
    recording = load_recording(tmp_path / "r")
    for call in (0, 1):
        found = value(recording, "parameter_gradient", "layers.0", call, "weight")
        assert torch.equal(found, alone)


def test_two_backwards_through_one_call_add_up(tmp_path: Path) -> None:
    model, x = nn.Linear(3, 2), torch.randn(4, 3)
    with record(model, tmp_path / "r"):
        out = model(x)
        out.sum().backward(retain_graph=True)
        (2 * out).sum().backward()
    recording = load_recording(tmp_path / "r")
    assert torch.equal(value(recording, "gradient", ""), torch.full((4, 2), 3.0))
    truth = recording.tensor(recording.truths[Key("parameter_gradient", "", 0, "weight")])
    torch.testing.assert_close(truth, 3 * x.double().sum(0).expand(2, 3))


def test_calls_before_one_backward_are_one_step(tmp_path: Path) -> None:
    model, x = nn.Linear(3, 3), torch.randn(4, 3)
    with record(model, tmp_path / "r"):
        (model(x) * model(-2 * x)).sum().backward()
    recording = load_recording(tmp_path / "r")
    assert [call.index for call in recording.calls] == [0, 1]
    key = Key("parameter_gradient", "", 0, "weight")
    truth = recording.tensor(recording.truths[key])
    torch.testing.assert_close(truth.float(), model.weight.grad)


def test_parts_that_are_called_on_their_own_are_recorded(tmp_path: Path) -> None:
    model, one = made(Mlp), case("mlp")
    with record(model, tmp_path / "r"):
        hidden = model.layers[0](one.inputs)
        model.layers[4](hidden.new_ones(2, 100)).sum().backward()
    recording = load_recording(tmp_path / "r")
    assert [call.module for call in recording.calls] == ["layers.0", "layers.4"]
    assert Key("parameter_gradient", "layers.4", 0, "weight") in recording.truths
    assert Key("parameter_gradient", "layers.0", 0, "weight") not in recording.entries


def test_gradients_of_the_models_inputs(tmp_path: Path) -> None:
    model, x = nn.Linear(3, 2), torch.randn(4, 3, requires_grad=True)
    with record(model, tmp_path / "r"):
        model(x).square().sum().backward()
    recording = load_recording(tmp_path / "r")
    assert torch.equal(value(recording, "input_gradient", ""), x.grad)
    assert Key("input_gradient", "", 0, "0") in recording.truths


def test_no_gradients_if_not_asked_for(tmp_path: Path) -> None:
    model, one = made(Mlp), case("mlp")
    with record(model, tmp_path / "r", gradients=False):
        step(model, one)
    phases = {key.phase for key in load_recording(tmp_path / "r").entries}
    assert phases == {"parameter", "input", "forward"}


def test_without_reference_only_digests_of_parameters(tmp_path: Path) -> None:
    recording = recorded(tmp_path / "r", case("mlp"), reference=False)
    assert recording.truths == {}
    parameters = [e for e in recording.entries.values() if e.key.phase == "parameter"]
    assert len(parameters) == 6
    assert {entry.blob for entry in parameters} == {None}
    with pytest.raises(ValueError, match=r"only the digest of parameter of layers\.0"):
        recording.tensor(parameters[0])


def test_the_manifest_says_what_ran(tmp_path: Path) -> None:
    recording = recorded(tmp_path / "r", case("mlp"), seed=17, arguments=["train.py", "--lr", "1"])
    manifest = recording.manifest
    assert manifest.complete
    assert manifest.error is None
    assert manifest.seed == 17
    assert manifest.arguments == ["train.py", "--lr", "1"]
    assert manifest.versions["torch"] == torch.__version__
    assert manifest.device["family"] == "cpu"
    assert manifest.numerics_mode == accel.numerics_mode().to_dict()
    assert recording.calls[0].training


def test_autocast_is_noted(tmp_path: Path) -> None:
    recording = recorded(tmp_path / "r", case("mlp"), autocast=True)
    assert recording.calls[0].autocast == "bfloat16"
    entry = recording.entries[Key("forward", "layers.0", 0, "0")]
    assert (entry.dtype, entry.autocast) == ("bfloat16", "bfloat16")


def test_an_exception_leaves_a_readable_recording_that_says_so(tmp_path: Path) -> None:
    model, one = made(Mlp), case("mlp")

    def train() -> None:
        with record(model, tmp_path / "r"):
            step(model, one)
            raise KeyError("lost")

    with pytest.raises(KeyError):
        train()
    recording = load_recording(tmp_path / "r")
    assert not recording.manifest.complete
    assert recording.manifest.error == "KeyError: 'lost'"
    assert Key("parameter_gradient", "layers.0", 0, "weight") in recording.entries
    assert not model.layers[0]._forward_hooks


def test_a_call_that_raises_does_not_confuse_the_next(tmp_path: Path) -> None:
    model, one = made(Mlp), case("mlp")
    with record(model, tmp_path / "r"):
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            model(torch.randn(2, 3))
        step(model, one)
    recording = load_recording(tmp_path / "r")
    assert [failure.root for failure in recording.failures] == [0]
    assert Key("forward", "", 1, "0") in recording.truths
    assert Key("forward", "", 0, "0") not in recording.entries


KILLED = """
import os, sys, torch
from accel.numerics import record
model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))
with record(model, sys.argv[1]):
    for i in range(3):
        model(torch.ones(2, 8)).sum().backward()
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_a_killed_run_is_readable_up_to_its_last_flush(tmp_path: Path) -> None:
    path = tmp_path / "r"
    command = [sys.executable, "-c", KILLED, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        os.kill(process.pid, signal.SIGKILL)
    recording = load_recording(path)
    assert not recording.manifest.complete
    assert recording.manifest.error is None
    keys = set(recording.entries)
    assert {Key("forward", "0", call, "0") for call in range(3)} <= keys
    assert Key("parameter_gradient", "0", 1, "weight") in keys  # of the last step that ended
    for entry in [*recording.entries.values(), *recording.truths.values()]:
        recording.tensor(entry)


def test_what_cannot_be_recorded_is_said(tmp_path: Path) -> None:
    model = Cast(lambda x: torch.nested.nested_tensor([x, x], layout=torch.jagged))
    with record(model, tmp_path / "r"):
        model(torch.randn(3))
    skipped = load_recording(tmp_path / "r").skipped
    assert [one.reason for one in skipped] == ["a nested tensor is not recorded"]


def test_what_hooks_do_not_see_is_refused(tmp_path: Path) -> None:
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


def test_a_model_that_is_never_called_is_an_error(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="the model was not called inside the block"),
        record(nn.Linear(2, 2), tmp_path / "r"),
    ):
        pass
    assert not load_recording(tmp_path / "r").manifest.complete


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
    model = made(one.model)
    wrapped = nn.parallel.DistributedDataParallel(model)
    with record(wrapped, tmp_path / "wrapped"):
        step(wrapped, one)
    both = compare(plain, tmp_path / "wrapped")
    assert both.verdict.startswith("They are the same: all ")
    assert both.missing == both.extra == ()
