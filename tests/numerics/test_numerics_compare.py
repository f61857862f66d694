"""The verdict of a comparison: one cause each, in programs made operator by operator."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from accel.numerics import Comparison, compare
from accel.numerics.storage.entries import Key
from tests.numerics.compared_steps import Change, Made, Program, normal, run
from tests.numerics.numerics_zoo import one_thread  # noqa: F401


def scaled(by: float) -> Change:
    return lambda tensor: tensor * by


class Mlp:
    """Two linear layers with layer norm and GELU between, a loss, and a gradient."""

    def __init__(self, *, keep: bool = True, index: int = 0) -> None:
        self.keep, self.index = keep, index
        self.x, self.mask = normal(16, 32), normal(16, 24, seed=1)
        self.weights = [normal(48, 32, seed=2) / 6, normal(24, 48, seed=3) / 7]
        self.eps, self.approximate = 1e-5, "none"
        self.faults: dict[str, Change] = {}
        self.in_other_dtype: dict[str, torch.dtype] = {}
        self.call: dict[str, Any] = {}
        self.autocast: str | None = None

    def step(self, *, ended: bool = True) -> Any:
        p = Program(keep=self.keep, index=self.index)
        p.call(**self.call)
        x = p.source("input", "0", self.x)
        first, second = (
            p.source("parameter", f"{i}.weight", weight) for i, weight in enumerate(self.weights)
        )
        hidden = self.linear(p, "0", x, first)
        normed = self.made(
            p, "native_layer_norm", "1", input=hidden, normalized_shape=[48], weight=None,
            bias=None, eps=self.eps,
        )  # fmt: skip
        active = self.made(p, "gelu", "2", self=normed, approximate=self.approximate)
        out = self.linear(p, "3", active, second)
        mask = p.source("other", "", self.mask)
        product = self.made(p, "mul", "", "Tensor", self=out, other=mask)
        loss = self.made(p, "mean", "", self=product)
        one = p.op("ones_like", self=loss)
        p.adjoint(loss, one)
        gradient = self.made(
            p, "div", "", "Scalar", phase="backward", origin="mean#0",
            self=p.view(one, one.tensor.expand(16, 24)), other=float(16 * 24),
        )  # fmt: skip
        p.adjoint(product, gradient)
        other = self.made(
            p, "mul", "", "Tensor", phase="backward", origin="mul#0", self=gradient, other=mask
        )
        p.adjoint(out, other)
        p.module("", "Sequential", [x], [out])
        return p.step(ended=ended)

    def linear(self, p: Program, module: str, x: Made, weight: Made) -> Made:
        turned = p.view(weight, weight.tensor.t())
        dtype = self.in_other_dtype.get(module)
        if dtype is not None:
            x = p.op("_to_copy", module=module, self=x, dtype=dtype, autocast=self.autocast)
            turned = p.op(
                "_to_copy", module=module, self=turned, dtype=dtype, autocast=self.autocast
            )
        return self.made(p, "mm", module, self=x, mat2=turned)

    def made(
        self, p: Program, name: str, module: str, overload: str = "default", /, **arguments: Any
    ) -> Made:
        place = f"{arguments.get('phase', 'forward')}:{module}/{name}"
        change = self.faults.get(place)
        return p.op(
            name, module=module, overload=overload, change=change, autocast=self.autocast,
            **arguments,
        )  # fmt: skip


def compared(a: Mlp, b: Mlp, **options: Any) -> Comparison:
    levels = ["full" if one.keep else "sketch" for one in (a, b)]
    return compare(
        run(a.step(), name="a", level=levels[0]),
        run(b.step(), name="b", level=levels[1]),
        **options,
    )


def noisy(seed: int) -> Change:
    """Another right kernel: results that are one unit in the last place off, here and there."""

    def change(tensor: Tensor) -> Tensor:
        noise = torch.randint(-1, 2, tensor.shape, generator=torch.Generator().manual_seed(seed))
        return tensor * (1 + noise * torch.finfo(tensor.dtype).eps)

    return change


def key(text: str) -> Key:
    phase, _, rest = text.partition(":")
    module, _, op = rest.partition("/")
    name, _, k = op.partition("#")
    return Key(phase, module, 0, "", name, int(k))  # type: ignore[arg-type]


@pytest.mark.parametrize("keep", [True, False])
def test_equal_runs_are_the_same(keep: bool) -> None:
    found = compared(Mlp(keep=keep), Mlp(keep=keep))
    assert found.verdict.kind == "same"
    assert found.ok
    assert found.exit_status == 0
    assert {row.status for row in found.rows} == {"equal"}
    assert found.zoom == ()
    assert found.divergence is None


@pytest.mark.parametrize("keep", [True, False])
def test_other_right_kernels_are_rounding_only(keep: bool) -> None:
    b = Mlp(keep=keep)
    b.faults = {f"forward:{name}": noisy(i) for i, name in enumerate(("0/mm", "1/gelu", "3/mm"))}
    found = compared(Mlp(keep=keep), b)
    assert found.verdict.kind == "rounding only"
    assert found.count("diverges") == 0
    assert found.count("rounding") > 3
    if keep:
        assert "replayed in float64 and right" in found.verdict.evidence[-1]


FAULTS: dict[str, tuple[str, Change]] = {
    "a scale": ("forward:2/gelu", scaled(1.0001)),
    "one element": ("forward:0/mm", lambda t: t.index_put((torch.tensor(3), torch.tensor(5)),
                                                          t[3, 5] * 1.01)),
    "a gradient": ("backward:/mul", scaled(1.001)),
    "a statistic": ("forward:1/native_layer_norm", lambda t: t + 1e-4),
    "NaN": ("forward:3/mm", lambda t: t.index_put((torch.tensor(0), torch.tensor(0)),
                                                  torch.tensor(math.nan))),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_faulty_operator_is_named_by_replay(name: str) -> None:
    place, change = FAULTS[name]
    b = Mlp()
    b.faults[place] = change
    found = compared(Mlp(), b)
    assert found.verdict.kind == "faulty operator"
    assert found.verdict.run == "candidate"
    assert str(found.verdict.operator).startswith(place.replace("backward:/", "backward:/mul#0/"))
    assert found.exit_status == 1
    assert not found.ok
    row = next(row for row in found.rows if row.key == found.verdict.operator)
    assert row.candidate is not None
    assert row.candidate.verdict == "faulty"
    assert row.reference is not None
    assert row.reference.verdict == "right"
    assert found.verdict.place == row.place
    assert found.divergence == row.name
    assert row.elements
    # Nothing else is called faulty.
    assert [r.key for r in found.rows if r.candidate and r.candidate.verdict == "faulty"] == [
        row.key
    ] or name == "a statistic"


@pytest.mark.parametrize("name", FAULTS)
def test_sketches_alone_find_the_place_and_call_nothing_faulty(name: str) -> None:
    place, change = FAULTS[name]
    b = Mlp(keep=False)
    b.faults[place] = change
    found = compared(Mlp(keep=False), b)
    assert found.verdict.kind == "cannot decide"
    assert found.exit_status == 3
    assert str(found.verdict.operator).startswith(place.replace("backward:/", "backward:/mul#0/"))
    assert len(found.zoom) == 2  # both runs' elements are needed
    assert found.zoom[0].startswith("accel record --level full --only ")
    assert found.zoom[0].endswith("--steps 0 --out b-zoom -- python train.py --lr 0.1")
    assert "faulty" not in found.to_text()


def test_a_fault_of_the_reference_is_told_from_one_of_the_candidate() -> None:
    a = Mlp()
    a.faults["forward:2/gelu"] = scaled(1.0001)
    found = compared(a, Mlp())
    assert found.verdict.kind == "faulty operator"
    assert found.verdict.run == "reference"


def test_only_the_candidate_needs_its_elements_for_a_fault() -> None:
    b = Mlp()
    b.faults["forward:2/gelu"] = scaled(1.0001)
    found = compared(Mlp(keep=False), b)
    assert found.verdict.kind == "faulty operator"
    assert found.levels == ("sketch", "full")


def test_if_the_candidate_is_right_the_reference_is_needed() -> None:
    a = Mlp(keep=False)
    a.faults["forward:2/gelu"] = scaled(1.0001)
    found = compared(a, Mlp())
    assert found.verdict.kind == "cannot decide"
    assert "the reference's elements are needed" in found.verdict.sentence
    assert len(found.zoom) == 1
    assert "--out a-zoom" in found.zoom[0]


def test_without_replay_nothing_is_called_faulty() -> None:
    b = Mlp()
    b.faults["forward:2/gelu"] = scaled(1.0001)
    found = compared(Mlp(), b, replay=False)
    assert found.verdict.kind == "cannot decide"
    assert found.coverage == ()


def test_a_kernel_that_is_wrong_on_both_sides_makes_no_difference() -> None:
    a, b = Mlp(), Mlp()
    a.faults["forward:2/gelu"] = b.faults["forward:2/gelu"] = scaled(1.0001)
    found = compared(a, b)
    assert found.verdict.kind == "same"
    assert any("inaccurate in both runs" in note for note in found.notes)


# --- what the runs begin with ---------------------------------------------------------------------


def test_another_weight() -> None:
    b = Mlp()
    b.weights[1] = b.weights[1] * 1.001
    found = compared(Mlp(), b)
    assert found.verdict.kind == "different weight/input"
    assert found.verdict.sentence == "the parameter 1.weight is scaled by 1.001"


def test_another_batch() -> None:
    b = Mlp(keep=False)
    b.x = b.x[torch.randperm(16, generator=torch.Generator().manual_seed(1))]
    found = compared(Mlp(keep=False), b)
    assert found.verdict.kind == "different weight/input"
    assert "the input 0 has the same elements in another order" in found.verdict.sentence


def test_a_tensor_that_no_one_named() -> None:
    b = Mlp(keep=False)
    b.mask = b.mask.clone()
    b.mask[3, 4] += 1
    found = compared(Mlp(keep=False), b)
    assert found.verdict.kind == "different weight/input"
    assert (
        "a tensor that was made before the step, other of mul in the model itself"
        in found.verdict.sentence
    )
    assert "only about 1 of 384 elements differ" in found.verdict.sentence


@pytest.mark.parametrize(
    ("changes", "kind", "said"),
    [
        (
            {"training": False},
            "different switch",
            "the model runs in evaluation mode, in the reference in training mode",
        ),
        (
            {"autocast": "bfloat16"},
            "different switch",
            "runs under autocast to bfloat16, in the reference without autocast",
        ),
        (
            {"gradients": False},
            "different switch",
            "the model runs without gradients, in the reference with gradients",
        ),
        (
            {"arguments": {"causal": True}},
            "different program",
            "the model's argument causal is True, in the reference not given",
        ),
    ],
)
def test_another_mode(changes: dict[str, Any], kind: str, said: str) -> None:
    b = Mlp()
    b.call = changes
    found = compared(Mlp(), b)
    assert found.verdict.kind == kind
    assert said in found.verdict.sentence


def test_another_state_of_the_generator_matters_only_if_numbers_are_drawn() -> None:
    b = Mlp()
    b.call = {"generators": {"cpu": "cd"}}
    found = compared(Mlp(), b)
    assert found.verdict.kind == "same"
    assert [one.subject for one in found.preconditions] == ["random"]
    assert not found.preconditions[0].decisive


def test_other_random_numbers() -> None:
    def drawn(seed: int) -> Any:
        p = Program()
        x = p.source("input", "0", normal(8, 8))
        mask = p.value((normal(8, 8, seed=seed) > 0).float())
        p.note("bernoulli", [mask.id], module="drop", self=x, generator=None)
        p.op("mul", module="drop", overload="Tensor", self=x, other=mask)
        return run(p.step())

    assert compare(drawn(1), drawn(1)).verdict.kind == "same"
    found = compare(drawn(1), drawn(2))
    assert found.verdict.kind == "different weight/input"
    assert found.preconditions[0].subject == "random"
    assert "bernoulli" in found.verdict.sentence


# --- programs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [True, False])
def test_another_eps(keep: bool) -> None:
    b = Mlp(keep=keep)
    b.eps = 1e-3
    found = compared(Mlp(keep=keep), b)
    assert found.verdict.kind == "different program"
    assert "another argument: eps is 0.001 where the reference has 1e-05" in found.verdict.sentence
    assert found.verdict.operator == key("forward:1/native_layer_norm#0")
    assert len(found.findings) == 1  # the values follow from it


def test_an_argument_without_effect_is_no_difference() -> None:
    b = Mlp()
    b.eps = 1.0000001e-5  # the same float32
    assert compared(Mlp(), b).verdict.kind == "same"


def test_one_autocast_rule_missing() -> None:
    a, b = Mlp(), Mlp()
    a.autocast = b.autocast = "bfloat16"
    a.in_other_dtype = {"0": torch.bfloat16, "3": torch.bfloat16}
    b.in_other_dtype = {"3": torch.bfloat16}
    found = compared(a, b)
    assert found.verdict.kind == "different switch"
    assert found.verdict.operator == key("forward:0/mm#0")
    assert (
        "computes in float32 where the reference computes in bfloat16: a rule of autocast "
        "(bfloat16) is missing or different" in found.verdict.sentence
    )
    assert "casts there: 2 missing in the candidate, 0 extra" in found.verdict.evidence


def test_another_dtype_without_autocast_is_another_program() -> None:
    b = Mlp()
    b.in_other_dtype = {"3": torch.float64}
    found = compared(Mlp(), b)
    assert found.verdict.kind == "different program"
    assert "computes in float64" in found.verdict.sentence


def hf32(tensor: Tensor, bits: int = 11) -> Tensor:
    dropped = 23 - bits
    raw = tensor.contiguous().view(torch.int32)
    odd = (raw >> dropped) & 1
    return ((raw + (1 << (dropped - 1)) - 1 + odd) & -(1 << dropped)).view(torch.float32)


@pytest.mark.parametrize(("bits", "name"), [(11, "HF32"), (10, "TF32"), (7, "bfloat16")])
def test_narrowed_products_are_a_switch(bits: int, name: str) -> None:
    b = Mlp()
    weight, x = hf32(b.weights[0], bits), hf32(b.x, bits)
    b.faults["forward:0/mm"] = lambda _: x @ weight.t()
    found = compared(Mlp(), b)
    assert found.verdict.kind == "different switch"
    assert found.verdict.operator == key("forward:0/mm#0")
    assert f"computes in {name}: from its inputs rounded to {bits} bits" in found.verdict.sentence


def test_a_switch_that_differs_explains_small_differences_of_products() -> None:
    a, b = Mlp(keep=False), Mlp(keep=False)
    weight, x = hf32(b.weights[0]), hf32(b.x)
    b.faults["forward:0/mm"] = lambda _: x @ weight.t()
    switches = {"npu_matmul_hf32": True, "num_threads": 1}
    found = compare(run(a.step()), run(b.step(), numerics_mode=switches))
    assert found.verdict.kind == "different switch"
    assert "npu_matmul_hf32 is True where the reference has False" in found.verdict.sentence
    b.faults["forward:0/mm"] = scaled(1.5)  # more than any switch does
    found = compare(run(a.step()), run(b.step(), numerics_mode=switches))
    assert found.verdict.kind == "cannot decide"
    assert any("npu_matmul_hf32" in fact for fact in found.verdict.evidence)


# --- attribution ----------------------------------------------------------------------------------


def test_the_loss_difference_is_attributed() -> None:
    b = Mlp()
    b.faults["forward:3/mm"] = scaled(1.001)
    found = compared(Mlp(), b)
    assert found.attribution is not None
    assert found.attribution.of == "candidate - reference"
    assert found.attribution.linear is True
    assert found.attribution.actual == pytest.approx(found.attribution.predicted, rel=1e-3)
    assert found.attribution.contributions[0][0] == key("forward:3/mm#0")
    assert found.row("forward:3/mm#0").contribution == found.attribution.contributions[0][1]


def test_a_difference_that_comes_from_elsewhere_is_not_attributed() -> None:
    b = Mlp()
    b.weights[1] = b.weights[1] * 1.5
    found = compared(Mlp(), b)
    assert found.attribution is not None
    assert found.attribution.linear is False
    assert "so it is not attributed" in found.to_text()


def test_a_difference_is_decomposed() -> None:
    b = Mlp()
    b.faults["forward:0/mm"] = scaled(1.001)
    found = compared(Mlp(), b)
    own, after = found.row("forward:0/mm#0"), found.row("forward:3/mm#0")
    assert own.decomposition is not None
    assert own.decomposition.candidate == pytest.approx(1e-3, rel=0.01)
    assert own.decomposition.inputs == 0.0
    assert own.decomposition.reference < 1e-6
    assert after.decomposition is not None
    assert after.decomposition.candidate < 1e-6
    assert after.decomposition.inputs == pytest.approx(after.distance, rel=0.5)


# --- forms ----------------------------------------------------------------------------------------


def test_json_is_the_comparison() -> None:
    b = Mlp()
    b.faults["forward:3/mm"] = FAULTS["NaN"][1]
    found = compared(Mlp(), b)
    document = json.loads(found.to_json())
    assert document["ok"] is False
    assert document["exit_status"] == 1
    assert document["verdict"]["kind"] == "faulty operator"
    assert document["verdict"]["operator"] == "forward:3/mm#0"
    assert len(document["rows"]) == len(found.rows)
    assert document["counts"]["equal"] == found.count("equal")
    row = next(row for row in document["rows"] if row["name"] == "forward:3/mm#0")
    assert row["distance"] == "inf"
    assert row["masks"] == ["all finite", "1 NaN"]
    assert document["coverage"][0]["run"] == "reference"


def test_the_text_lists_the_worst_values() -> None:
    b = Mlp()
    b.faults["forward:3/mm"] = scaled(1.001)
    lines = compared(Mlp(), b).to_text(worst=2).splitlines()
    assert lines[0].startswith("Faulty operator: the candidate's mm in 3 (model.py:")
    table = [line for line in lines if line.startswith(("faulty ", "carried ", "equal "))]
    assert len(table) == 2
    assert table[0].split()[:2] == ["faulty", "forward:3/mm#0"]
    assert len(compared(Mlp(), b).to_text(worst=0).splitlines()) < len(lines)


# --- several steps --------------------------------------------------------------------------------


def test_the_first_step_that_differs_decides() -> None:
    a = [Mlp(index=i) for i in range(3)]
    b = [Mlp(index=i) for i in range(3)]
    b[1].faults["forward:2/gelu"] = scaled(1.0001)
    b[2].faults["forward:0/mm"] = scaled(1.0001)
    left, right = run(*(one.step() for one in a)), run(*(one.step() for one in b))
    found = compare(left, right)
    assert found.step == 1
    assert [one.kind for one in found.steps] == ["same", "faulty operator", "faulty operator"]
    assert found.verdict.operator == key("forward:2/gelu#0")
    assert compare(left, right, step=0).verdict.kind == "same"


def test_no_step_in_common() -> None:
    with pytest.raises(ValueError, match=r"no step in common: run has 0, run has 1; record the"):
        compare(run(Mlp().step()), run(Mlp(index=1).step()))
    with pytest.raises(ValueError, match="no step 7 in common"):
        compare(run(Mlp().step()), run(Mlp().step()), step=7)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan])
def test_a_scale_is_a_positive_number(scale: float) -> None:
    with pytest.raises(ValueError, match="scale must be a positive number"):
        compare(run(Mlp().step()), run(Mlp().step()), scale=scale)


def test_a_loss_scale_is_divided_out() -> None:
    b = Mlp(keep=False)
    b.faults = {"backward:/div": scaled(1024.0)}
    found = compared(Mlp(keep=False), b)
    assert found.verdict.kind == "cannot decide"
    found = compared(Mlp(keep=False), b, scale=1024.0)
    assert {row.status for row in found.rows if row.phase == "backward"} <= {"equal", "rounding"}


def test_a_killed_run_is_compared_as_far_as_it_got() -> None:
    found = compare(
        run(Mlp().step()), run(Mlp().step(ended=False), complete=False, error=None), replay=False
    )
    assert found.verdict.kind in ("same", "rounding only")
    assert any("was cut short" in note for note in found.notes)
    assert any("incomplete" in note for note in found.notes)


def test_runs_with_nothing_in_common_cannot_be_judged() -> None:
    p = Program()
    x = p.source("input", "0", normal(4, 4))
    p.op("relu", module="other", self=x)
    found = compare(run(Mlp().step()), run(p.step()), replay=False)
    assert found.verdict.kind in ("cannot decide", "different weight/input")
    assert not found.ok
