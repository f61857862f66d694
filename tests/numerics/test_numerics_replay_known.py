"""What is excused as a known inaccuracy, whose kernels it is, and which limits judged."""

import json
import re

import pytest
import torch
from torch import nn

from accel.numerics import record, register_reference, replay
from accel.numerics.replaying import references
from accel.numerics.replaying.judged import Judged
from accel.numerics.replaying.judging import judge_call
from accel.numerics.replaying.known import kernels_of
from accel.numerics.replaying.limits import MOST_EXCESS, MOST_M, MOST_M_16, MOST_R, MOST_R_16
from accel.numerics.replaying.walk import Replay

ATEN = torch.ops.aten
BF16 = torch.bfloat16


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def norm_backward(rows):
    """The arguments of a layer norm's gradient in bfloat16, and what torch's CPU makes of them."""
    x, g, one = torch.randn(rows, 128).to(BF16), torch.randn(rows, 128).to(BF16), torch.ones(128)
    one = one.to(BF16)
    mean, rstd = ATEN.native_layer_norm.default(x, [128], one, one, 1e-5)[1:]
    args = (g, x, [128], mean, rstd, one, one, [True] * 3)
    return args, list(ATEN.native_layer_norm_backward.default(*args))


# --- bounds -------------------------------------------------------------------------------------


def test_lost_rows_of_a_gradient_that_is_added_in_16_bits() -> None:
    args, right = norm_backward(2048)
    op = ATEN.native_layer_norm_backward.default
    found = judge_call(op, args, {}, right)
    assert (found.verdict, found.output in ("1", "2")) == ("known", True)
    assert found.limit_R is not None
    assert found.R < found.limit_R < 30
    lost = args[0].clone()
    lost[:32] = 0
    wrong = op(lost, *args[1:])
    assert judge_call(op, args, {}, [right[0], *wrong[1:]]).verdict == "out"


def convolved(kernel, padding, noise):
    x, w = torch.randn(16, 16, 16, 16), torch.randn(32, 16, kernel, kernel)
    args = (x, w, None, [1, 1], [padding] * 2, [1, 1], False, [0, 0], 1)
    out = ATEN.convolution.default(*args)
    # The same relative to the whole, as transforms make it.
    out = out + noise * 2.0**-24 * out.std() * torch.randn_like(out)
    return judge_call(ATEN.convolution.default, args, {}, [out])


@pytest.mark.parametrize(("kernel", "padding"), [(1, 0), (3, 0), (5, 2)])
def test_only_convolutions_of_winograds_shape_are_excused(kernel, padding) -> None:
    assert convolved(kernel, padding, 0).verdict == "within"
    assert convolved(kernel, padding, 40).verdict == "out"
    known = convolved(3, 1, 40)
    assert (known.verdict, known.limit_R) == ("known", 46.0)
    assert convolved(3, 1, 300).verdict == "out"


# --- whose kernels ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device_type", "verdict"), [(None, "known"), ("cpu", "known"), ("npu", "out"), ("cuda", "out")]
)
def test_only_the_cpus_kernels_are_excused(device_type, verdict) -> None:
    args, right = norm_backward(504)
    op = ATEN.native_layer_norm_backward.default
    assert judge_call(op, args, {}, right, device_type=device_type).verdict == verdict


def test_16_bits_inside_on_the_cpu_and_everywhere() -> None:
    x = torch.randn(64, 50).to(BF16)
    logs = torch.log_softmax(x.double(), -1)
    sums = torch.logsumexp(x.double(), -1, keepdim=True).to(BF16)
    coarse = (x.double() - sums.double()).to(BF16)
    assert not torch.equal(coarse, logs.to(BF16))
    op, args = ATEN._log_softmax.default, (x, -1, False)
    assert judge_call(op, args, {}, [coarse]).verdict == "within"
    assert judge_call(op, args, {}, [coarse], device_type="npu").verdict == "out"
    q = torch.randn(1, 2, 33, 16).to(BF16)
    weights = torch.softmax(q.double() @ q.double().mT / 4, -1)
    out = (weights.to(BF16).double() @ q.double()).to(BF16)
    lse = torch.logsumexp(q.double() @ q.double().mT / 4, -1).float()
    attention = ATEN._scaled_dot_product_flash_attention_for_cpu.default
    found = judge_call(attention, (q, q, q), {}, [out, lse], device_type="cuda")
    assert (found.verdict, found.limit_R, found.limit_M) == ("within", MOST_R_16, MOST_M_16)


def test_the_kernels_of_a_simulated_chip_are_the_cpus() -> None:
    assert kernels_of({"family": "cpu"}) == "cpu"
    assert kernels_of({"family": "npu"}, {"HCCL_ALGO": "x"}) == "npu"
    assert kernels_of({"family": "npu"}, {"ACCEL_SIMULATE": "on"}) == "cpu"
    assert kernels_of({}, None) == "unknown"


def trained(path, level="full"):
    model = nn.Sequential(nn.Linear(16, 32), nn.LayerNorm(32), nn.LayerNorm(32)).to(BF16)
    with record(model, path, level=level):
        out = model(torch.randn(700, 16).to(BF16))
        out.backward(torch.randn_like(out))
    return path


def test_a_recording_is_judged_by_the_chip_that_made_it(tmp_path) -> None:
    found = replay(trained(tmp_path / "run"))
    known = found.counts["known"]
    assert found.ok
    assert known >= 1
    assert f"but {known} known inaccurate kernel" in found.sentence
    file = tmp_path / "run" / "rank-0" / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["device"]["family"] = "cuda"
    file.write_text(json.dumps(manifest))
    elsewhere = replay(tmp_path / "run")
    assert (elsewhere.counts["known"], len(elsewhere.out)) == (0, known)
    manifest["numerics_mode"]["environment"]["ACCEL_SIMULATE"] = "on"
    file.write_text(json.dumps(manifest))
    assert replay(tmp_path / "run").counts["known"] == known


# --- no reference -------------------------------------------------------------------------------


def test_a_librarys_operator_is_not_its_own_reference(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(references, "_REGISTERED", {})

    @torch.library.custom_op("replayknown::gelu", mutates_args=())
    def gelu(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.gelu(x) * 1.5 + 0.1

    model = nn.Linear(8, 8)
    with record(model, tmp_path / "run", level="full"):
        gelu(model(torch.randn(4, 8))).sum()
    found = replay(tmp_path / "run")
    (one,) = (o for o in found.operators if o.judged.name == "replayknown::gelu")
    assert one.judged.verdict == "unchecked"
    reason = "no reference is registered for replayknown::gelu; accel.numerics.register_reference"
    assert str(one.judged.reason).startswith(reason)
    assert found.not_checked == 1
    assert found.sentence.endswith(", 1 not checked.")
    register_reference("replayknown::gelu", lambda x: torch.nn.functional.gelu(x))
    again = replay(tmp_path / "run")
    assert [o.judged.name for o in again.out] == ["replayknown::gelu"]
    assert again.sentence.startswith("1 operator is out of its limits, forward:")


# --- the limits that judged ---------------------------------------------------------------------


def test_a_verdict_says_which_limits_it_is_by() -> None:
    x, w = torch.randn(33, 64), torch.randn(64, 17)
    wide = judge_call(ATEN.mm.default, (x, w), {}, [x @ w])
    assert (wide.limit_R, wide.limit_M) == (MOST_R, MOST_M)
    assert (wide.limit_excess, wide.limit_misrounding) == (None, None)
    assert wide.share == max(wide.R / MOST_R, wide.M / MOST_M)
    a, b = x.to(BF16), w.to(BF16)
    narrow = judge_call(ATEN.mm.default, (a, b), {}, [(a.float() @ b.float()).to(BF16)])
    assert narrow.verdict == "within"
    assert narrow.limit_R == pytest.approx(MOST_R_16, rel=0.01)
    assert (narrow.limit_M, narrow.limit_excess) == (None, MOST_EXCESS)
    assert narrow.limit_misrounding is not None
    assert narrow.misrounding <= narrow.limit_misrounding
    exact = judge_call(ATEN.relu.default, (x,), {}, [x.relu()])
    assert (exact.verdict, exact.limit_R, exact.share) == ("exact", None, None)
    for found in (wide, narrow, exact):
        assert Judged.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    old = {k: v for k, v in wide.to_dict().items() if not k.startswith("limit_")}
    assert Judged.from_dict(old).limit_R is None


# --- what was checked ---------------------------------------------------------------------------


def test_level_check_counts_what_another_was_judged_for(tmp_path) -> None:
    found = replay(trained(tmp_path / "run", level="check"))
    assert found.replayed > 3
    assert found.by_signature >= 1
    same = [one for one in found.operators if one.judged_by is not None]
    assert len(same) == found.by_signature
    for one in same:
        (judge,) = (o for o in found.operators if o.key == one.judged_by)
        assert judge.judged.verdict != "unchecked"
        assert judge.judged.name == one.judged.name
        assert one.judged.verdict == "unchecked"
    assert f"{found.by_signature} judged by another of the same signature" in found.sentence
    document = found.to_dict()
    named = ("replayed", "by_signature", "not_checked", "nothing_to_check")
    assert sum(document[name] for name in named) == len(found.operators)


def test_what_is_not_determined_is_not_counted_as_unchecked(tmp_path) -> None:
    model = nn.Linear(8, 8)
    with record(model, tmp_path / "run", level="full"):
        model(torch.rand(4, 8) + torch.empty(4, 8).zero_()).t().sum()
    found = replay(tmp_path / "run")
    assert (found.not_checked, found.by_signature) == (0, 0)
    assert found.nothing_to_check == sum(not one.is_checkable for one in found.operators) > 1
    assert re.search(rf"{found.replayed} of {found.replayed} operators", found.sentence)
    assert Replay("x", ()).not_checked == 0
