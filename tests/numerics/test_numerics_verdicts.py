"""Each thing that a team meets gets its own verdict, though the two machines round differently.

The reference is the zoo's GPT by other kernels, without oneDNN: no two values are equal in all bits
further down.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from accel.numerics import Comparison, compare, record
from benchmarks.fault_zoo.faults import Injector
from benchmarks.fault_zoo.models import Batch
from benchmarks.fault_zoo.variants import other_machine
from benchmarks.fault_zoo.workload import Precision, Workload
from benchmarks.fault_zoo.zoo import FAULTS

pytestmark = pytest.mark.filterwarnings("ignore:TF32 acceleration")
Prepare = Callable[[Workload], None]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(
    path: Path,
    precision: Precision = "float32",
    level: str = "sketch",
    *,
    prepare: Prepare = lambda workload: None,
    under: Callable[[], AbstractContextManager[object]] = nullcontext,
    only: list[str] | None = None,
    member: tuple[int, int] | None = None,
) -> Path:
    workload = Workload("gpt", precision)
    prepare(workload)
    with under(), record(workload.model, path, level=level, only=only, data_parallel=member):
        workload.step()
    return path


def found(
    tmp_path: Path,
    prepare: Prepare = lambda workload: None,
    precision: Precision = "float32",
) -> Comparison:
    """The verdict on sketches of the two machines, the second with a change."""
    a = run(tmp_path / "a", precision, under=other_machine)
    return compare(a, run(tmp_path / "b", precision, prepare=prepare))


def test_nothing_but_rounding(tmp_path: Path) -> None:
    assert found(tmp_path).verdict.kind == "rounding only"


def test_a_transposed_weight(tmp_path: Path) -> None:
    def transpose(workload: Workload) -> None:
        weight = workload.model.get_parameter("blocks.2.attention.out.weight")
        with torch.no_grad():
            weight.copy_(weight.t().clone())

    verdict = found(tmp_path, transpose).verdict
    assert verdict.kind == "different weight/input"
    assert "blocks.2.attention.out.weight" in verdict.sentence


def test_permuted_tokens(tmp_path: Path) -> None:
    def permute(workload: Workload) -> None:
        tokens, places, hidden = workload.batch.inputs
        order = torch.arange(tokens.shape[1])
        order[[20, 40]] = order[[40, 20]]
        inputs = (tokens[:, order], places, hidden)
        workload.batch = workload.batch._replace(inputs=inputs)

    verdict = found(tmp_path, permute).verdict
    assert verdict.kind == "different weight/input"
    assert "input 0" in verdict.sentence


def test_a_changed_eps(tmp_path: Path) -> None:
    def change(workload: Workload) -> None:
        norm = workload.model.get_submodule("blocks.1.norm2")
        assert isinstance(norm, nn.LayerNorm)
        norm.eps = 1e-6

    verdict = found(tmp_path, change).verdict
    assert verdict.kind == "different program"
    assert str(verdict.operator) == "forward:blocks.1.norm2/native_layer_norm#0"
    assert "eps" in verdict.sentence


class WithoutRule(nn.Module):
    """A linear layer that autocast leaves alone."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        with torch._C._DisableAutocast():
            return F.linear(x.float(), self.weight, self.bias)


def test_one_autocast_rule_missing(tmp_path: Path) -> None:
    def leave_out(workload: Workload) -> None:
        block = workload.model.get_submodule("blocks.1")
        inward = block.get_submodule("inward")
        assert isinstance(inward, nn.Linear)
        block.add_module("inward", WithoutRule(inward))

    verdict = found(tmp_path, leave_out, "autocast").verdict
    assert verdict.kind == "different switch"
    assert verdict.operator is not None
    assert verdict.operator.module == "blocks.1.inward"


def test_hf32_in_one_layer(tmp_path: Path) -> None:
    (narrow,) = (fault for fault in FAULTS if fault.name == "product operands")

    def one_layer() -> Injector:
        injector = Injector(narrow, 11)
        injector.where = lambda occurrence, call: occurrence == 6
        return injector

    window = ["blocks.1.*"]
    a = run(tmp_path / "a", level="full", under=other_machine, only=window)
    b = run(tmp_path / "b", level="full", under=one_layer, only=window)
    verdict = compare(a, b).verdict
    assert verdict.kind == "different switch", verdict
    assert str(verdict.operator) == "forward:blocks.1.inward/addmm#0"
    assert "HF32" in verdict.sentence


@contextmanager
def as_rank(rank: int) -> Iterator[None]:
    """One of two ranks that say nothing to each other."""
    dist.init_process_group("fake", rank=rank, world_size=2, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


def test_swapped_ranks(tmp_path: Path) -> None:
    def half(which: int) -> Prepare:
        def take(workload: Workload) -> None:
            tokens, places, hidden = workload.batch.inputs
            mine = slice(2 * which, 2 * which + 2)
            targets = workload.batch.targets.view(tokens.shape)[mine].reshape(-1)
            workload.batch = Batch((tokens[mine], places, hidden[mine]), targets)

        return take

    for rank in (0, 1):
        with as_rank(rank):
            run(tmp_path / "a", prepare=half(rank), under=other_machine, member=(rank, 2))
            run(tmp_path / "b", prepare=half(1 - rank), member=(rank, 2))
    verdict = compare(tmp_path / "a", tmp_path / "b").verdict
    assert verdict.kind == "different weight/input"
    assert "rank" in verdict.sentence
