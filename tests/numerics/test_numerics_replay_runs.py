"""Whole recordings replayed: every operator of a run judged, and the run's accumulated error."""

import json
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from accel.numerics import load_recording, record, replay
from accel.numerics.replaying.chaining import chained_errors
from accel.numerics.replaying.recorded import Tensors
from accel.numerics.replaying.walk import Replay, replayed


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.norm = nn.Embedding(31, 24), nn.LayerNorm(24)
        self.qkv, self.out = nn.Linear(24, 72), nn.Linear(24, 24)
        self.up, self.down = nn.Linear(24, 48), nn.Linear(48, 24)
        self.head, self.drop = nn.Linear(24, 31, bias=False), nn.Dropout(0.1)

    def forward(self, text):
        x = self.embedding(text)
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 2, 12)).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.drop(self.out(seen.transpose(1, 2).flatten(2)))
        return self.head(self.norm(x + self.down(F.gelu(self.up(x)))))


def run(path, *, level="full", dtype=None, fused=True, only=None):
    """Record two steps of training; the parameters come from a fixed seed."""
    torch.manual_seed(0)
    model, text = Model(), torch.randint(31, (3, 17))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=fused, foreach=not fused)
    with record(model, path, level=level, steps=[0, 1], only=only):
        for _ in range(2):
            with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
                logits = model(text[:, :-1])
            F.cross_entropy(logits.flatten(0, 1).float(), text[:, 1:].flatten()).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    return path


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    return run(tmp_path_factory.mktemp("replay") / "run")


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "foreach"])
def test_a_right_run(tmp_path, dtype, fused) -> None:
    found = replay(run(tmp_path / "run", dtype=dtype, fused=fused))
    assert found.ok, found.sentence
    assert found.out == ()
    assert found.sentence.startswith("Every operator computed what its inputs say: ")
    reasons = {one.judged.reason for one in found.operators if one.judged.verdict == "unchecked"}
    assert reasons <= {
        "it computes no tensor",
        "it draws random numbers",
        "it returns uninitialised memory",
    }
    kinds = found.counts_by_kind
    for kind in ("matmul", "attention", "normalization", "loss", "optimizer", "elementwise"):
        assert kinds[kind]["within"] > 0, kind
    phases = {one.key.phase for one in found.operators if one.judged.verdict == "within"}
    assert phases == {"forward", "backward", "optimizer"}
    assert len(found.steps) == 2


def faulty_gelu(self, *, approximate="none"):
    if self.dtype == torch.float64:
        return 0.5 * self * (1 + torch.erf(self / math.sqrt(2)))
    inner = math.sqrt(2 / math.pi) * (self.float() + 0.044715 * self.float() ** 3)
    return (0.5 * self.float() * (1 + torch.tanh(inner))).to(self.dtype)


OVERRIDING = pytest.mark.filterwarnings("ignore:Warning only once for all operators")


@OVERRIDING
@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
def test_a_faulty_kernel_is_the_only_one_named(tmp_path, dtype) -> None:
    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("gelu", faulty_gelu, "CPU")
        run(tmp_path / "run", dtype=dtype)
    found = replay(tmp_path / "run")
    assert [str(one.key) for one in found.out] == ["forward:/gelu#0"] * 2
    assert not found.ok
    assert "2 operators are out of their limits, first forward:/gelu#0: " in found.sentence


def test_the_error_that_a_run_accumulates(full) -> None:
    found = replay(full, steps=[0], chained=True)
    step = load_recording(full).ranks[0].steps[0]
    errors = found.steps[0].errors
    parameters = {s.value for s in step.sources.values() if s.kind == "parameter"}
    assert not parameters & errors.keys(), "sources have no error"
    loss = next(o for o in step.operators if o.name == "aten::nll_loss_forward")
    assert 1e-9 < errors[loss.outputs[0]] < 1e-6
    products = [errors[o.outputs[0]] for o in step.operators if o.name == "aten::addmm"]
    assert len(products) >= 4
    assert all(1e-8 < error < 1e-5 for error in products)
    # A key's bias moves nothing: its gradient is rounding, and Adam makes steps of it.
    assert sorted(errors.values())[len(errors) * 9 // 10] < 1e-5
    gradients = [v for o in step.operators if o.key.phase == "backward" for v in o.produced]
    assert sum(value in errors for value in gradients) > 20


@OVERRIDING
def test_the_accumulated_error_grows_where_a_kernel_is_wrong(tmp_path) -> None:
    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("gelu", faulty_gelu, "CPU")
        run(tmp_path / "run")
    step = load_recording(tmp_path / "run").ranks[0].steps[0]
    errors = chained_errors(step)
    before = next(o for o in step.operators if str(o.key) == "forward:up/addmm#0")
    at = next(o for o in step.operators if str(o.key) == "forward:/gelu#0")
    after = next(o for o in step.operators if str(o.key) == "forward:down/addmm#0")
    assert errors[before.outputs[0]] < 1e-6
    assert errors[at.outputs[0]] > 1e-4
    assert errors[after.outputs[0]] > 1e-4


def test_a_dropped_kernel_is_not_chained_through_random_numbers(full) -> None:
    """The float64 graph takes the recorded masks, or it would stray from the run at once."""
    step = load_recording(full).ranks[0].steps[0]
    assert any("bernoulli" in o.name or "dropout" in o.name for o in step.operators)
    errors = chained_errors(step)
    last = next(o for o in reversed(step.operators) if o.name == "aten::mm")
    assert errors[last.outputs[0]] < 1e-5


@pytest.mark.parametrize("level", ["sketch", "check"])
def test_other_levels(tmp_path, level) -> None:
    found = replay(run(tmp_path / "run", level=level), chained=True)
    assert all(step.errors == {} for step in found.steps)
    if level == "sketch":
        assert not found.ok
        assert set(found.counts) == {"unchecked"}
        assert found.sentence.startswith("Nothing could be replayed: 0 of ")
    else:
        assert found.ok
        assert found.counts["within"] > 20
        named = [o.judged.operator for o in found.operators if o.judged.verdict == "within"]
        assert all(":" in name for name in named), "verdicts of the run, by the operators' keys"


def test_only_some_operators_kept(tmp_path) -> None:
    found = replay(run(tmp_path / "run", only=["up"]))
    within = {str(one.key) for one in found.operators if one.judged.verdict == "within"}
    assert "forward:up/addmm#0" in within
    assert "forward:down/addmm#0" not in within
    kept = next(o for o in found.operators if str(o.key) == "forward:down/addmm#0")
    assert kept.judged.reason == "its inputs or outputs were not kept"


def test_choosing_steps_ranks_and_operators(full) -> None:
    found = replay(load_recording(full), steps=[1], only=lambda o: o.name == "aten::addmm")
    assert [step.index for step in found.steps] == [1]
    assert {one.judged.name for one in found.operators} == {"aten::addmm"}
    with pytest.raises(ValueError, match="has no step 7 of rank 0; it has"):
        replay(full, steps=[7])
    with pytest.raises(ValueError, match="has no rank 3; it has"):
        replay(full, ranks=[3])


def test_a_replay_as_plain_values(full) -> None:
    found = replay(full, steps=[0], chained=True)
    document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert document["ok"] is True
    assert document["counts"]["within"] == found.counts["within"]
    (step,) = document["steps"]
    assert len(step["operators"]) == len(found.operators)
    assert step["operators"][0]["operator"] == str(found.operators[0].key)
    assert Replay("x", ()).ok is False
    assert Replay("x", ()).sentence == "Nothing could be replayed: 0 of 0 operators were checked."


def test_progress_is_shown_and_costs_are_given(full, capsys) -> None:
    found = replay(full, steps=[0], progress=True)
    assert "operator/s" in capsys.readouterr().err
    replay(full, steps=[0])
    assert capsys.readouterr().err == ""
    assert all(o.judged.milliseconds > 0 for o in found.operators if o.judged.verdict == "within")


def test_memory_holds_no_more_than_it_may(full) -> None:
    step = load_recording(full).ranks[0].steps[0]
    kept = [v for v in step.values if step.has_tensor(v)]
    tensors = Tensors(step, most=20_000)
    for value in kept:
        same = tensors.of(value).numpy().tobytes() == step.tensor(value).numpy().tobytes()
        assert same, "uninitialised memory may hold NaN"
        held = sum(tensor.nbytes for tensor in tensors._read.values())
        assert held <= max(20_000, tensors.of(value).nbytes)
    first = tensors.of(kept[-1])
    assert tensors.of(kept[-1]) is first


def test_a_tampered_tensor_is_refused(tmp_path) -> None:
    path = run(tmp_path / "run")
    for blob in path.rglob("*.safetensors"):
        data = bytearray(blob.read_bytes())
        data[-1] ^= 0xFF
        blob.write_bytes(bytes(data))
    step = load_recording(path).ranks[0].steps[0]
    with pytest.raises(ValueError, match=r"safetensors|digest|damaged"):
        list(replayed(step))
