"""Replay of hostile recordings, of results without a fixed shape, of jumps and factorisations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from accel.numerics.recorder import record
from accel.numerics.replaying.judged import Judged
from accel.numerics.replaying.judging import judge_call
from accel.numerics.replaying.walk import replay

aten = torch.ops.aten


def judged(op: Any, *args: Any, change: Any = None, output: int = 0, **kwargs: Any) -> Judged:
    returned = op(*args, **kwargs)
    outputs = list(returned) if isinstance(returned, tuple) else [returned]
    if change is not None:
        outputs[output] = outputs[output].clone()
        change(outputs[output])
    return judge_call(op, args, kwargs, outputs)


def scale_one(by: float) -> Any:
    def change(tensor: Tensor) -> None:
        tensor.view(-1)[int(tensor.abs().argmax())] *= by

    return change


def tampered(path: Path, **change: Any) -> str:
    model = nn.Linear(4, 4)
    with record(model, path, level="full"):
        model(torch.ones(2, 4)).sum().backward()
    index = next(path.glob("rank-0/step-*/index.jsonl"))
    lines = index.read_text().split("\n")
    at = next(i for i, line in enumerate(lines) if "aten::addmm" in line)
    lines[at] = json.dumps({**json.loads(lines[at]), **change})
    index.write_text("\n".join(lines))
    return str(path)


def reason_of_the_tampered(path: str) -> str:
    [one] = [o for o in replay(path).operators if "addmm" in str(o.key) and o.key.op == "addmm"]
    assert one.judged.verdict == "unchecked"
    assert one.judged.reason is not None
    return one.judged.reason


def test_a_recording_cannot_make_replay_touch_a_file(tmp_path: Path) -> None:
    there, new = tmp_path / "there", tmp_path / "new"
    there.write_text("short")
    for number, target in enumerate((there, new)):
        given = {"filename": str(target), "shared": True, "size": 1000}
        path = tampered(tmp_path / f"run{number}", name="aten::from_file", arguments=given)
        assert "not run" in reason_of_the_tampered(path)
    assert there.read_text() == "short"
    assert not new.exists()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("aten::zeros", {"size": [10**12]}),
        ("aten::repeat", {"self": {"v": 1}, "repeats": [10**6, 10**6]}),
        ("aten::arange", {"end": 10**12}),
        ("aten::eye", {"n": 10**6}),
        ("aten::bincount", {"self": {"v": 1}, "minlength": 10**12}),
    ],
)
def test_a_recording_cannot_ask_for_much_memory(
    tmp_path: Path, name: str, arguments: dict[str, Any]
) -> None:
    reason = reason_of_the_tampered(tampered(tmp_path / "run", name=name, arguments=arguments))
    assert "not run" in reason


@pytest.mark.parametrize("name", ["inductor::_alloc_from_pool", "prims::device_put", "aten::warn"])
def test_what_is_no_plain_operator_is_not_run(tmp_path: Path, name: str) -> None:
    assert reason_of_the_tampered(tampered(tmp_path / "run", name=name, arguments={}))


def test_indices_are_checked_though_the_call_says_not_to() -> None:
    value, far = torch.zeros(4), torch.tensor([10**6])
    args = (value, [far], torch.ones(1), False, True)
    found = judge_call(aten._index_put_impl_.default, args, {}, [], {"self": [value]})
    assert found.verdict == "unchecked"
    assert "out of" in str(found.reason)


def test_large_right_calls_are_not_refused() -> None:
    big = torch.zeros(3, 1)
    assert judged(aten.expand_copy.default, big, [3, 500_000]).verdict == "exact"
    assert judged(aten.masked_fill.Scalar, big, big == 0, -1e30).verdict == "exact"
    assert judged(aten.arange.start_step, 0, 2_000_000, 1).verdict == "exact"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_distinct_elements(dtype: torch.dtype) -> None:
    value = (torch.randn(40, generator=torch.Generator().manual_seed(0)) * 3).round().to(dtype)
    assert judged(aten._unique2.default, value, True, True, True).verdict == "exact"
    assert judged(aten.unique_consecutive.default, value, True, True).verdict == "exact"
    wrong = judged(aten._unique2.default, value, True, True, True, change=scale_one(2.0))
    assert wrong.verdict == "out"
    assert judged(aten._unique2.default, value, False).verdict == "unchecked"


@pytest.mark.parametrize(
    "call",
    [
        lambda h: torch.unique(h.detach()),
        lambda h: torch.unique_consecutive(h.detach().flatten()),
        lambda h: h.relu().to_sparse(),
        lambda h: torch.quantize_per_tensor(h, 0.1, 0, torch.qint8).dequantize(),
    ],
)
@pytest.mark.parametrize("level", ["check", "full"])
@pytest.mark.filterwarnings("ignore:.*quantized tensor creation:UserWarning")
def test_a_check_never_fails_the_program(tmp_path: Path, call: Any, level: str) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, value: Tensor) -> Tensor:
            hidden = self.linear(value)
            call(hidden)
            return hidden.sum()

    model = Model()
    with record(model, tmp_path / "run", level=level):
        model(torch.randn(5, 8)).backward()
    assert replay(str(tmp_path / "run")).ok


class StrangeError(Exception):
    pass


def test_any_failure_of_the_replay_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise StrangeError("something odd\nand more")

    monkeypatch.setattr("accel.numerics.replaying.judging.mean_squares", fails)
    found = judged(aten.exp.default, torch.ones(3))
    assert (found.verdict, found.reason) == ("unchecked", "its replay failed: something odd")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weight_gradients_of_a_norm_under_autocast(dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(1)
    value = torch.randn(1024, 64, generator=draw).to(dtype)
    grad = torch.randn(1024, 64, generator=draw).to(dtype)
    weight, bias = torch.ones(64), torch.zeros(64)
    _, mean, scale = aten.native_layer_norm.default(value, [64], weight, bias, 1e-5)
    args = (grad, value, [64], mean, scale, weight, bias, [True] * 3)
    op = aten.native_layer_norm_backward.default
    assert judged(op, *args).verdict == "known"
    assert judged(op, *args, change=lambda t: t.mul_(2.0), output=1).verdict == "out"
    found = judge_call(op, args, {}, op(*args), device_type="cuda")
    assert found.verdict == "out"


@pytest.mark.parametrize(
    ("op", "more", "by"),
    [
        (aten.round.default, (), 1.5), (aten.mode.default, (-1,), 1.5),
        (aten.frac.default, (), 1.05),
        (aten.median.dim, (-1,), 1.05), (aten.remainder.Scalar, (0.75,), 1.05),
        (aten.fmod.Scalar, (0.75,), 1.05), (aten.kthvalue.default, (2,), 1.05),
    ],
)  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_one_wrong_element_among_jumps(op: Any, more: Any, by: float, dtype: torch.dtype) -> None:
    value = (torch.randn(32, 64, generator=torch.Generator().manual_seed(2)) * 4).to(dtype)
    assert judged(op, value, *more).verdict in ("exact", "within")
    assert judged(op, value, *more, change=scale_one(by)).verdict == "out"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_infinities_become_the_largest_of_their_dtype(dtype: torch.dtype) -> None:
    value = torch.tensor([1.0, -torch.inf, torch.inf, torch.nan]).to(dtype)
    assert judged(aten.nan_to_num.default, value).verdict == "exact"
    wrong = judged(aten.nan_to_num.default, value, change=lambda t: t[2].mul_(0.5))
    assert wrong.verdict == "out"
    assert judged(aten.nextafter.default, value, torch.zeros(4, dtype=dtype)).verdict == "exact"


def test_rows_that_see_no_key() -> None:
    query = torch.randn(1, 2, 6, 16, generator=torch.Generator().manual_seed(3))
    seen = torch.tensor([1, 1, 1, 1, 0, 0]).bool()
    mask = torch.zeros(6, 6).masked_fill(~(seen[None] & seen[:, None]), -torch.inf)
    op = aten._scaled_dot_product_flash_attention_for_cpu.default
    assert judged(op, query, query, query, 0.0, False, attn_mask=mask).verdict == "within"
    wrong = judged(op, query, query, query, 0.0, False, attn_mask=mask, change=scale_one(1.01))
    assert wrong.verdict == "out"


@pytest.mark.parametrize(("before", "after"), [(16, 7), (64, 33), (256, 100)])
def test_interpolation_is_as_good_as_its_coordinates(before: int, after: int) -> None:
    value = torch.randn(1, 2, before, before, generator=torch.Generator().manual_seed(4))
    op = aten.upsample_bicubic2d.default
    assert judged(op, value, [after, after], False).verdict == "within"
    assert judged(op, value, [after, after], False, change=scale_one(1.01)).verdict == "out"


@pytest.mark.parametrize("op", ["linalg_qr", "_linalg_svd", "linalg_eig", "_linalg_eigh"])
def test_factorisations_by_what_they_multiply_to(op: str) -> None:
    draw = torch.Generator().manual_seed(5)
    matrix = torch.randn(3, 8, 8, generator=draw)
    if op == "_linalg_eigh":
        matrix = matrix + matrix.mT
    call = getattr(aten, op).default
    assert judged(call, matrix).verdict == "within"
    for output in (0, 1):
        wrong = judged(call, matrix, change=lambda t: t[0].mul_(1.001), output=output)
        assert wrong.verdict == "out"


def test_ctc_loss_beyond_the_ends_of_sequences() -> None:
    draw = torch.Generator().manual_seed(6)
    scores = torch.randn(10, 2, 5, generator=draw).log_softmax(-1)
    targets = torch.randint(1, 5, (2, 3), generator=draw)
    args = (scores, targets, [10, 7], [3, 2])
    assert judged(aten._ctc_loss.default, *args).verdict == "within"
    assert judged(aten._ctc_loss.default, *args, change=scale_one(1.01)).verdict == "out"


def test_bags_of_fast_kernels_have_no_tables() -> None:
    weight = torch.randn(24, 8, generator=torch.Generator().manual_seed(7))
    indices, offsets = torch.arange(24), torch.tensor([0, 10])
    args = (weight, indices, offsets, False, 0, True)
    assert judged(aten._embedding_bag.default, *args).verdict == "within"
    assert judged(aten._embedding_bag.default, *args, change=scale_one(1.01)).verdict == "out"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_kernels_of_the_cpu_that_add_in_16_bits(dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(8)
    value = torch.randn(16, 32, generator=draw).to(dtype)
    rows = torch.randint(0, 32, (16, 5), generator=draw)
    one = torch.ones_like(value)
    calls = [
        (aten.prod.dim_int, (value, -1)),
        (aten.floor_divide.default, (value, value.flip(0))),
        (aten.scatter_reduce.two, (one, 1, rows, value[:, :5], "mean")),
    ]
    for op, args in calls:
        assert judged(op, *args).verdict in ("within", "exact", "known")
        assert judged(op, *args, change=scale_one(1.25)).verdict == "out"
    grid = torch.rand(1, 16, 16, 2, generator=draw).to(dtype)
    sampled = judged(aten.grid_sampler_2d.default, value.view(1, 2, 16, 16), grid, 0, 0, False)
    assert sampled.verdict in ("within", "unchecked")


def test_a_running_maximum_lies_in_what_it_ran_over() -> None:
    value = torch.tensor([[1.0, 1.0, 0.0], [2.0, 2.0, 2.0]])

    def look_ahead(indices: Tensor) -> None:
        indices[0, 0] = 1  # as large, but not reached yet

    assert judged(aten.cummax.default, value, 1).verdict == "exact"
    assert judged(aten.cummax.default, value, 1, change=look_ahead, output=1).verdict == "out"
