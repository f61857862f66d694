"""Attention over a sequence that several processes share, against one process in float64."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from accel.attention.api import draw_seed
from accel.attention.context_parallel.api import context_parallel_attention
from accel.attention.context_parallel.sharding import SequenceLayout
from accel.simulate.activation import child_environment
from accel.simulate.machine import Machine
from accel.testing.assertions import assert_within_budget
from accel_kernels import budgets
from accel_kernels.segmented_attention import reference
from accel_kernels.segmented_attention.call import Call
from accel_kernels.segmented_attention.formula import whole_attention
from tests import context_parallel_worker as worker
from tests.context_parallel_worker import CASES, MISTAKES, ON_ASCEND, Case
from tests.process_groups import launch, launched_well

WORKER = Path(worker.__file__)
ALONE = (
    "repeated", "drawn", "control", "second_derivative", "checkpointed", "autocast", "remembered",
    "poisoned", "other_groups", "everyones",
)  # fmt: skip


@pytest.fixture(params=[2, 4])
def ranks(request) -> int:
    return request.param


@pytest.fixture(scope="module")
def launches(tmp_path_factory) -> Callable[[int], Path]:
    @functools.cache
    def launched(ranks: int) -> Path:
        out = tmp_path_factory.mktemp(f"{ranks}-ranks")
        launched_well(WORKER, ranks, str(out), *CASES[ranks], *ALONE, *MISTAKES)
        return out

    return launched


@pytest.fixture
def shared(launches: Callable[[int], Path], ranks: int) -> Path:
    """Everything that was computed by as many processes, in one launch."""
    return launches(ranks)


Attend = Callable[[Tensor, Tensor, Tensor, Call], tuple[Tensor, Tensor]]


def by_parts(query: Tensor, key: Tensor, value: Tensor, call: Call) -> tuple[Tensor, Tensor]:
    """In one process, by tiles about as large as the pieces of four ranks."""
    options = {**call._asdict(), "segment_size": 13}
    out, lse = reference.segmented_attention(query, key, value, **options)
    assert lse is not None
    return out, lse


def expected(case: Case, dtype: torch.dtype, attend: Attend = whole_attention) -> dict[str, Tensor]:
    """Outputs and gradients in one process, by the definition unless another way is given."""
    given = worker.inputs(case)
    if dtype == torch.float64 or case.dtype == torch.float64:
        given = {n: t if n == "dense" else t.to(dtype) for n, t in given.items()}
    names = ["query", "key", "value", *(["bias"] if "bias" in given else [])]
    for name in names:
        given[name].requires_grad_()
    call = worker.call_of(case, given)
    out, lse = attend(given["query"], given["key"], given["value"], call)
    results, outputs, grads = {"out": out}, [out], [given["grad_out"]]
    if case.options.get("return_lse"):
        results["lse"] = lse
        outputs, grads = [out, lse], [given["grad_out"], given["grad_lse"]]
    taken = torch.autograd.grad(outputs, [given[name] for name in names], grads)
    results.update((f"grad_{name}", grad) for name, grad in zip(names, taken, strict=True))
    return {name: tensor.detach() for name, tensor in results.items()}


def put_together(case: Case, parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The ranks' parts, each at its positions; parts of a bias's gradient are added."""
    layout, key_layout = worker.layouts(case, len(parts))
    results = {}
    for name in parts[0]:
        if name == "grad_bias":
            results[name] = torch.stack([part[name] for part in parts]).sum(0)
            continue
        one = key_layout if name in ("grad_key", "grad_value") else layout
        where = torch.cat([one.positions(rank) for rank in range(len(parts))])
        whole = torch.cat([part[name] for part in parts], 2)
        results[name] = torch.empty_like(whole)
        results[name][:, :, where] = whole
    return results


def load(out: Path, name: str, ranks: int) -> list[dict[str, Tensor]]:
    return [torch.load(out / f"{name}-{rank}.pt") for rank in range(ranks)]


def check(case: Case, actual: dict[str, Tensor]) -> None:
    truth = expected(case, torch.float64)
    yardstick = truth if case.dtype == torch.float64 else expected(case, case.dtype)
    if "grad_bias" in truth:
        # Sums of far more numbers than the others, in which parts cancel that are rounded apart.
        yardstick["grad_bias"] = expected(case, case.dtype, by_parts)["grad_bias"]
    assert actual.keys() == truth.keys()
    floor = budgets.typical(budgets.deviation(yardstick[name], truth[name]) for name in truth)
    if case.dtype == torch.float64:  # whose truth is itself rounded: by float32's errors, scaled
        narrow = expected(case, torch.float32)
        found = budgets.typical(budgets.deviation(narrow[name], truth[name]) for name in truth)
        scale = budgets.unit_roundoff(torch.float64) / budgets.unit_roundoff(torch.float32)
        floor = budgets.Deviation(found.rms * scale, found.worst * scale)
    for name in truth:
        assert_within_budget(actual[name], yardstick[name], truth[name], floor=floor, name=name)


@pytest.mark.parametrize(
    ("ranks", "name"),
    [(ranks, name) for ranks, cases in CASES.items() for name in cases],
)
def test_ranks_together_compute_what_one_computes(shared: Path, ranks: int, name: str) -> None:
    case = CASES[ranks][name]
    check(case, put_together(case, load(shared, name, ranks)))


def test_the_mean_of_parts_is_found_out(shared: Path, ranks: int) -> None:
    """The published formula as a control: the check above refuses it."""
    case = CASES[ranks]["ring:causal"]
    with pytest.raises(AssertionError, match="exceeds its budget"):
        check(case, put_together(case, load(shared, "control", ranks)))


@pytest.fixture(scope="module")
def on_ascend(tmp_path_factory) -> Path:
    """The same on two simulated Ascend chips, by hccl: the real torch_npu, memory poisoned."""
    out = tmp_path_factory.mktemp("hccl")
    environment = child_environment(Machine("910B2", devices=2, poison=True))
    environment.update(ACCEL_TEST_DEVICE="npu", ACCEL_TEST_BACKEND="hccl")
    launched_well(WORKER, 2, str(out), *ON_ASCEND, **environment)
    return out


@pytest.mark.without_npu
@pytest.mark.parametrize("name", ON_ASCEND)
def test_hccl_carries_what_gloo_carries(on_ascend: Path, name: str) -> None:
    case = CASES[2][name]
    check(case, put_together(case, load(on_ascend, name, 2)))


def said(out: Path, name: str, ranks: int) -> list[str]:
    return [(out / f"{name}-{rank}.txt").read_text() for rank in range(ranks)]


def test_bits_repeat_and_a_group_serves_as_a_mesh(shared: Path, ranks: int) -> None:
    assert said(shared, "repeated", ranks) == ["[]"] * ranks


def test_what_sees_what_is_found_out_once(shared: Path, ranks: int) -> None:
    assert said(shared, "remembered", ranks) == ["True"] * ranks


def test_a_checkpoint_recomputes_the_same_dropout(shared: Path, ranks: int) -> None:
    assert said(shared, "checkpointed", ranks) == ["True"] * ranks


def test_what_nobody_sees_reaches_nobody(shared: Path, ranks: int) -> None:
    for method in ("ring", "ulysses"):
        for filling in ("nan", "inf"):
            parts = load(shared, f"poisoned-{method}-{filling}", ranks)
            check(worker.POISONED, put_together(worker.POISONED, parts))


def test_groups_of_some_processes_and_meshes_by_name(shared: Path, ranks: int) -> None:
    assert (
        said(shared, "other_groups", ranks)
        == ["this process is not in the group that is given"] * ranks
    )
    case = CASES[ranks]["ring:window_and_documents"]
    plain, truth = (expected(case, d)["out"] for d in (torch.float32, torch.float64))
    for way in ("ring", "ulysses", *(["named"] if ranks == 4 else [])):
        for rank in range(ranks):
            whole = torch.load(shared / f"other_groups-{way}-{rank}.pt")
            assert_within_budget(whole, plain, truth)


def test_autocast_narrows_the_inputs(shared: Path, ranks: int) -> None:
    assert said(shared, "autocast", ranks) == ["True torch.bfloat16 torch.float32"] * ranks


def test_without_a_seed_all_ranks_drop_what_the_first_draws(shared: Path, ranks: int) -> None:
    parts = {
        seed: [torch.load(shared / f"drawn-{seed}-{rank}.pt") for rank in range(ranks)]
        for seed in (100, 200)
    }
    assert not torch.equal(parts[100][0], parts[200][0])
    for seed, (first, *others) in parts.items():
        assert all(torch.equal(first, other) for other in others)
        torch.manual_seed(seed)  # the first rank's draw, and so that of a single process
        given = worker.inputs(Case(options={"dropout_p": 0.5}))
        case = Case(options={"dropout_p": 0.5, "dropout_seed": int(draw_seed())})
        call = worker.call_of(case, given)
        tensors = [given[name] for name in ("query", "key", "value")]
        out, _ = whole_attention(*tensors, call)
        truth, _ = whole_attention(*(tensor.double() for tensor in tensors), call)
        assert_within_budget(first, out, truth)


def test_ulysses_has_a_second_derivative_and_a_ring_says_it_has_none(
    shared: Path, ranks: int
) -> None:
    for text in said(shared, "second_derivative", ranks):
        assert text.startswith("ring: ring attention has no second derivative")
    case = Case(method="ulysses", options={"is_causal": True})
    parts = load(shared, "second_derivative-ulysses", ranks)
    found = put_together(case, [{f"grad_{n}": t for n, t in part.items()} for part in parts])
    plain, truth = (second_derivative(case, d) for d in (torch.float32, torch.float64))
    for name, *two in zip(("query", "key", "value"), plain, truth, strict=True):
        assert_within_budget(found[f"grad_{name}"], *two)


def second_derivative(case: Case, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Of the sum of the squared gradients, in one process."""
    given = {name: tensor.to(dtype) for name, tensor in worker.inputs(case).items()}
    tensors = [given[name].requires_grad_() for name in ("query", "key", "value")]
    out, _ = whole_attention(*tensors, worker.call_of(case, given))
    grads = torch.autograd.grad(out, tensors, given["grad_out"], create_graph=True)
    return torch.autograd.grad(torch.stack([g.square().sum() for g in grads]).sum(), tensors)


# --- what goes wrong ------------------------------------------------------------------------------

WORDS = {
    "mistake:dtype": "query is torch.float32",
    "mistake:batch": "query is torch.float32",
    "mistake:heads": "query is torch.float32",
    "mistake:layout": "layout is 101 positions",
    "mistake:length": "101 positions",
    "mistake:mask": "mask is ('causal', 'bottom_right') on rank 0 and ('window', 3, 0, 0,",
    "mistake:mask_tensor": "mask is key_lengths(tensor([50,  0]))",
    "mistake:causal": "mask is ('causal', 'bottom_right') on rank 0 and None on rank 1",
    "mistake:scale": "scale is 0.353",
    "mistake:seed": "dropout_seed is 1 on rank 0 and 2 on rank 1",
    "mistake:requires_grad": "requires_grad",
    "mistake:own": "softcap must be positive and finite, not -1.0",
    "mistake:own_type": "a mask is one of causal",
    "mistake:own_backend": "backend 'sdpa' (chosen by argument) cannot serve this call",
    "mistake:backend": "no backend called 'nonsense'",
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_on_one_rank_is_an_error_on_every_rank(
    shared: Path, ranks: int, name: str
) -> None:
    texts = said(shared, name, ranks)
    kind = "BackendError" if name == "mistake:own_backend" else "ValueError"
    for rank, text in enumerate(texts):
        own = "TypeError" if (rank, name) == (1, "mistake:own_type") else kind
        assert text.startswith(f"{own}: "), text
        assert WORDS[name] in text
        assert "rank 1" in text or rank == 1


@pytest.mark.parametrize(
    "line",
    [
        "heads: ValueError: Ulysses deals 3 query heads out to {ranks} ranks",
        "key heads: ValueError: Ulysses deals 3 key heads out to {ranks} ranks",
        "ranks: ValueError: layout is for 1 ranks, and there are {ranks}",
        "local: ValueError: rank {rank} holds 5 positions of the layout, but query is (1, 3, 4, 4)",
        "mask: ValueError: a mask tensor (5, 5) does not broadcast to [B, H, T, S]",
        "bias: ValueError: bias must broadcast to [B, H, T, S]",
        "method: ValueError: method must be one of ring, ulysses, ring+ulysses, not 'rings'",
        "mesh: ValueError: method 'ring+ulysses' needs a DeviceMesh of two dimensions",
        "mesh type: TypeError: mesh must be a DeviceMesh or a group, not str",
        "layout type: TypeError: layout must be a SequenceLayout, not list",
        "seed: ValueError: dropout without a dropout_seed needs checked=True",
        "shard: ValueError: the layout is of {positions} positions, but the tensor (1, 3, 5, 4)",
        "unshard: ValueError: rank {rank} holds 5 positions of the layout, but the tensor",
        "sdpa: BackendError: segmented_attention: backend 'sdpa' (chosen by argument) cannot",
    ],
)
def test_mistakes_of_all_ranks(shared: Path, ranks: int, line: str) -> None:
    for rank, text in enumerate(said(shared, "everyones", ranks)):
        assert line.format(rank=rank, ranks=ranks, positions=5 * ranks) in text, text


def test_a_rank_that_is_gone_is_an_error_and_no_wait(tmp_path: Path) -> None:
    first, second = launch(WORKER, 2, str(tmp_path), "killed")
    assert second.code == -9
    assert first.code == 1
    assert re.search(r"context_parallel|ring\.py|distributed\.py", first.text)


def test_without_processes_it_says_what_to_do() -> None:
    tensor = torch.zeros(1, 1, 4, 2)
    with pytest.raises(ValueError, match="call init_process_group first"):
        context_parallel_attention(tensor, tensor, tensor, layout=SequenceLayout.contiguous(4, 1))
