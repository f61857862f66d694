"""`accel.attention_plan`: what it tells is what a call does; a call that cannot fit is refused."""

import json
import subprocess
import sys
import time
from subprocess import PIPE

import pytest
import torch

import accel
from accel.attention import alibi, causal, documents, prefix, window
from accel.attention.plan import AttentionPlan, attention_plan
from accel_kernels.masks import Sizes, Visibility, visibility, visible, visible_pairs
from accel_kernels.segmented_attention import reference
from accel_kernels.segmented_attention.cpu import fused
from accel_kernels.segmented_attention.cpu import tiles as cpu_tiles
from accel_kernels.segmented_attention.operators import call_operator
from accel_kernels.segmented_attention.tiles import tile_kinds
from accel_kernels.segmented_attention.workspace import grid_tiles

CPU = torch.device("cpu")

# --- memory ------------------------------------------------------------------------------------

# The call is made by what `case` says, in a fresh process, and so is the plan: by shapes alone.
MEASURE = """
import ctypes, json, sys
import torch
import accel
from accel.attention import alibi, causal, documents, prefix, window
from accel.attention.plan import attention_plan

case = json.loads(sys.argv[1])
dtype, grad = getattr(torch, case.get("dtype", "float32")), case.get("grad", True)
heads, key_heads, length = case["heads"], case.get("key_heads", case["heads"]), case["length"]

def options(length):
    return {**eval(case["options"], globals(), {"length": length}), "backend": case["backend"]}

def shapes(length):
    return [(1, h, length, 64) for h in (heads, key_heads, key_heads)]

def run(length):
    leaves = [torch.randn(s, dtype=dtype, requires_grad=grad) for s in shapes(length)]
    of_out = torch.randn(shapes(length)[0], dtype=dtype)
    device = accel.current_device()
    ctypes.CDLL(None).malloc_trim(0)  # what made the inputs is not to serve the call
    device.reset_peak_memory()
    before = device.memory().used
    out = accel.segmented_attention(*leaves, **options(length))
    if grad:
        out.backward(of_out)
    return device.memory().peak - before

asked = {"dtype": dtype, "device": "cpu", "needs_grad": grad, **options(length)}
plan = attention_plan(*shapes(length), **asked)
run(256)  # libraries load their kernels on first use
print(json.dumps([plan.peak_bytes, run(length)]))
"""
CASES = [
    {"backend": "cpu", "heads": 1, "length": 8192, "options": "{'mask': causal()}"},
    {
        "backend": "cpu", "heads": 8, "key_heads": 2, "length": 4096, "dtype": "bfloat16",
        "options": "{'mask': window(511, 0)}",
    },
    {
        "backend": "cpu", "heads": 2, "length": 4096,
        "options": "{'mask': documents([0, 100, length // 2, length], within=window(255, 0)),"
        " 'dropout_p': 0.1}",
    },
    {
        "backend": "cpu", "heads": 2, "length": 8192, "dtype": "bfloat16", "grad": False,
        "options": "{'mask': window(255, 0), 'softcap': 20.0}",
    },
    {
        "backend": "reference", "heads": 2, "length": 4096,
        "options": "{'mask': window(511, 0), 'segment_size': 512}",
    },
]  # fmt: skip


@pytest.fixture(scope="module")
def measurements() -> list[subprocess.Popen[str]]:
    """All at once, since most of their time is the import of torch."""
    command = [sys.executable, "-c", MEASURE]
    return [
        subprocess.Popen([*command, json.dumps(case)], stdout=PIPE, stderr=PIPE, text=True)
        for case in CASES
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's high-water mark is Linux's")
@pytest.mark.parametrize("number", range(len(CASES)))
def test_the_measured_peak_is_at_most_the_predicted_and_not_far_below(number, measurements) -> None:
    out, error = measurements[number].communicate()
    assert out, error
    predicted, measured = json.loads(out)
    assert measured <= predicted <= 2 * measured + 16e6


def test_results_and_inputs_are_their_sizes() -> None:
    plan = attention_plan((2, 4, 100, 16), (2, 2, 60, 16), (2, 2, 60, 8), device="cpu")
    queries, keys = 2 * 4 * 100, 2 * 2 * 60
    assert plan.input_bytes == 4 * (queries * 16 + keys * 24)
    gradients = queries * 16 + keys * 24
    assert plan.result_bytes == 4 * (queries * (8 + 1) + gradients)
    forward = attention_plan(
        (2, 4, 100, 16), (2, 2, 60, 16), (2, 2, 60, 8), device="cpu", needs_grad=False
    )
    assert forward.result_bytes == 4 * queries * (8 + 1)
    assert forward.backward_flops == 0
    assert forward.backward_tiles is None


# --- what is touched ----------------------------------------------------------------------------

MASKS = [
    None,
    causal(),
    window(70, 0, sinks=3),
    documents([0, 30, 31, 150, 200], within=causal()),
    causal() | prefix(90),
]


@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_the_reference_touches_the_tiles_that_are_planned(mask, monkeypatch) -> None:
    touched = []
    scores = reference._Work.scores

    def counting(self, query, key, tile):
        touched.append(tile)
        return scores(self, query, key, tile)

    monkeypatch.setattr(reference._Work, "scores", counting)
    leaves = [torch.randn(1, 2, 200, 8, requires_grad=True) for _ in range(3)]
    options = {"mask": mask, "segment_size": 64, "backend": "reference"}
    plan = attention_plan(*leaves, **options)
    accel.segmented_attention(*leaves, **options).sum().backward()
    forward, backward = touched[: len(touched) // 2], touched[len(touched) // 2 :]
    for tiles, planned in ((forward, plan.tiles), (backward, plan.backward_tiles)):
        assert sum(tile.partial for tile in tiles) == planned.partial
        assert sum(not tile.partial for tile in tiles) == planned.full
        area = sum((t.q1 - t.q0) * (t.k1 - t.k0) for t in tiles)
        assert 2 * area == planned.scores
        assert planned.full + planned.partial + planned.empty == 16


@pytest.mark.parametrize("softcap", [None, 10.0])
@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_the_cpu_kernel_touches_what_is_planned(mask, softcap, monkeypatch) -> None:
    areas = []
    part, tile_scores = fused._attend_part, cpu_tiles._Work.scores

    def counting_part(problem, one, added):
        entries = 2 if one.batch is None else 1
        areas.append(one.tiles * one.run.rows * one.run.keys * entries * 2)
        return part(problem, one, added)

    def counting_scores(self, rows, key, tile):
        areas.append((tile.q1 - tile.q0) * (tile.k1 - tile.k0) * 2)
        return tile_scores(self, rows, key, tile)

    monkeypatch.setattr(fused, "_attend_part", counting_part)
    monkeypatch.setattr(cpu_tiles._Work, "scores", counting_scores)
    query, key, value = torch.randn(3, 2, 2, 200, 8).unbind(0)
    options = {"mask": mask, "softcap": softcap, "segment_size": 64, "backend": "cpu"}
    plan = attention_plan(query, key, value, needs_grad=False, **options)
    accel.segmented_attention(query, key, value, **options)
    assert sum(areas) == plan.tiles.scores


def test_counted_tiles_and_scores_are_those_of_the_dense_mask() -> None:
    """Random intervals, also adjacent, unsorted and empty ones, per entry of the batch or not."""
    generator = torch.Generator().manual_seed(0)

    def number(least: int, most: int) -> int:
        return int(torch.randint(least, most, (), generator=generator))

    for n in range(60):
        sizes = Sizes(number(1, 4), 2, number(1, 90), number(1, 90))
        count, entries = number(1, 4), sizes.batch if n % 2 else 1
        ends = torch.randint(
            0, sizes.key_length + 1, (2 * count, entries, sizes.query_length), generator=generator
        )
        bounds = ends.sort(0).values.to(torch.int32).view(count, 2, entries, -1)
        if n % 4 == 0 and count > 1:
            bounds[1, 0] = bounds[0, 1]  # one interval begins where the other ends
        dense = None
        if n % 3 == 0:
            shape = (sizes.batch, 1, sizes.query_length, sizes.key_length)
            dense = torch.rand(shape, generator=generator) < 0.8
        seen = Visibility(bounds.flip(0), dense)
        rows, keys = number(1, 40), number(1, 40)
        found = grid_tiles(seen, sizes, rows, keys)
        kinds = tile_kinds(seen, sizes, rows, keys)
        counted = tuple(int((kinds == kind).sum()) for kind in (2, 1, 0))
        assert (found.full, found.partial, found.empty) == counted
        shown = visible(seen, sizes, CPU).expand(*sizes)
        assert visible_pairs(seen, sizes) == int(shown.sum())


@pytest.mark.parametrize("lengths", [(70, 70), (30, 70), (70, 30), (0, 5), (5, 0)])
def test_flops_are_those_that_torch_counts(lengths) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    assert callable(call_operator)  # its module registers the FLOP formula
    queries, keys = lengths
    query = torch.randn(2, 4, queries, 8, requires_grad=True)
    key = torch.randn(2, 2, keys, 8, requires_grad=True)
    plan = attention_plan(query, key, is_causal=True, backend="reference")
    with FlopCounterMode(display=False) as counter:
        out = accel.segmented_attention(query, key, key, is_causal=True, backend="reference")
        out.sum().backward()
    assert counter.get_total_flops() == plan.forward_flops + plan.backward_flops
    shown = visible(visibility(causal(), Sizes(2, 4, *lengths), CPU), Sizes(2, 4, *lengths), CPU)
    assert plan.seen_scores == 8 * int(shown.sum())
    assert 0.0 <= plan.skipped <= 1.0


# --- choices -----------------------------------------------------------------------------------


def test_a_million_tokens_are_planned_in_seconds_without_their_memory() -> None:
    length = 1_000_000
    device = accel.current_device()
    start = time.process_time()
    plan = attention_plan((1, 1, length, 64), is_causal=True, device="cpu", backend="cpu")
    assert time.process_time() - start < 2.0
    assert plan.seen_scores == length * (length + 1) // 2
    # Linear: less than a kilobyte and a half a token and head, against 4 terabytes of scores.
    assert plan.peak_bytes < 1500 * length
    assert plan.score_matrix_bytes == 4 * 4 * length**2
    device.reset_peak_memory()
    before = device.memory().used
    attention_plan((1, 64, length, 128), backend="cpu", device="cpu")
    assert device.memory().peak - before < 64e6


@pytest.mark.parametrize("device", ["cpu", "cuda", "npu"])
def test_the_backend_is_the_one_that_dispatch_gives_a_call_there(device) -> None:
    plan = attention_plan((1, 2, 64, 16), is_causal=True, device=device)
    assert plan.device == device
    assert plan.how == "automatic"
    assert plan.measured == (device == "cpu")
    assert ("not measured on this device" in str(plan)) == (device != "cpu")
    if device == "cpu":
        tensor = torch.randn(1, 2, 64, 16, requires_grad=True)
        found = accel.explain("segmented_attention", tensor, tensor, tensor, is_causal=True)
        assert plan.backend == found.chosen
    named = attention_plan((1, 2, 64, 16), device=device, backend="reference")
    assert (named.backend, named.how) == ("reference", "argument")


def test_the_whole_of_a_plan_is_printed() -> None:
    plan = attention_plan((1, 2, 4096, 64), is_causal=True, memory_budget=10**9, device="cpu")
    text = str(plan)
    assert isinstance(plan, AttentionPlan)
    for piece in ("segmented_attention on cpu in float32", "50.0% skipped", "fits,", "FLOPs"):
        assert piece in text
    assert max(map(len, text.splitlines())) < 120


# --- budgets -----------------------------------------------------------------------------------


def test_a_budget_chooses_the_largest_segments_that_fit() -> None:
    shape, options = (1, 8, 4096, 64), {"is_causal": True, "backend": "reference", "device": "cpu"}
    sizes = (None, 512, 256, 128)
    needs = [
        plan.input_bytes + plan.peak_bytes
        for plan in (attention_plan(shape, segment_size=size, **options) for size in sizes)
    ]
    assert needs == sorted(needs, reverse=True)
    for size, need in zip(sizes, needs, strict=True):
        plan = attention_plan(shape, memory_budget=need, **options)
        assert plan.segment_size == size
        assert plan.input_bytes + plan.peak_bytes <= need
    with pytest.raises(accel.DeviceError, match="segments of 128 needs"):
        attention_plan(shape, memory_budget=needs[-1] - 1, **options)


def test_what_cannot_fit_says_what_it_needs_and_what_to_do() -> None:
    with pytest.raises(accel.DeviceError) as error:
        attention_plan((1, 8, 65536, 64), is_causal=True, memory_budget=400 * 10**6, device="cpu")
    text = str(error.value)
    for piece in ("400 MB", "heads a call", "bfloat16", "context parallelism over"):
        assert piece in text


def test_free_memory_is_the_budget_of_auto() -> None:
    plan = attention_plan((1, 1, 64, 16), memory_budget="auto", device="cpu")
    assert plan.memory_budget > 0
    with pytest.raises(accel.DeviceError, match="needs"):
        attention_plan(
            (100_000, 1024, 4096, 512), memory_budget="auto", device="cpu", backend="cpu"
        )


@pytest.mark.without_npu
def test_free_memory_of_a_device_elsewhere_is_not_known() -> None:
    with pytest.raises(accel.DeviceError, match="pass memory_budget in bytes"):
        attention_plan((1, 1, 64, 16), memory_budget="auto", device="npu")


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"query": (1, 2, 3)}, ValueError, "four sizes"),
        ({"query": (1, 2, 3, 4.0)}, TypeError, "a tensor or a shape"),
        ({"query": (1, 2, -3, 4)}, ValueError, "four sizes"),
        ({"memory_budget": 1.5}, TypeError, "number of bytes or 'auto'"),
        ({"memory_budget": -1}, ValueError, "at least 0"),
        ({"segment_size": 0}, ValueError, "segment_size"),
        ({"dropout_p": 1.0}, ValueError, "dropout_p"),
        ({"key": (1, 2, 64, 8)}, ValueError, "head size"),
        ({"backend": "nonsense"}, ValueError, "no backend"),
        ({"device": "cdua"}, accel.DeviceError, "unknown"),
        ({"dtype": torch.int64}, TypeError, "floating"),
        ({"bias": alibi(torch.ones(3))}, ValueError, "slopes"),
    ],
)
def test_mistakes_are_those_of_the_call(given, error, text) -> None:
    with pytest.raises(error, match=text):
        attention_plan(**{"query": (1, 2, 64, 16), "device": "cpu", **given})
