"""The parts of a comparison: relations, arguments, alignment, environments, commands, overrides."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from accel.numerics import compare, overrides
from accel.numerics.comparing import alignment, arguments, environment, wording, zoom
from accel.numerics.comparing.content import by_content
from accel.numerics.comparing.contents import Contents, distance, rounding, scaled
from accel.numerics.comparing.relations import Related, relation
from accel.numerics.storage.entries import OUTSIDE, Argument, Key, Operator, Place, Ref, Special
from accel_kernels.sketch import sketch
from tests.numerics.compared_steps import MANIFEST, Program, normal, run

# --- relations ------------------------------------------------------------------------------------


def related(tensor: Tensor, *, kept: bool) -> Related:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return Related(dtype, tuple(tensor.shape), sketch(tensor), tensor if kept else None)


W = normal(48, 48)
ORDER = torch.randperm(48, generator=torch.Generator().manual_seed(0))
REORDERED = "same elements in another order (transposed or permuted?)"
ONE = W.clone()
ONE[3, 7] += 0.5


@pytest.mark.parametrize(
    ("other", "with_elements", "by_sketch"),
    [
        (W.t(), "transposed", REORDERED),
        (W[ORDER], "permuted along dimension 0", REORDERED),
        (W[:, ORDER], "permuted along dimension 1", REORDERED),
        (W.roll(1, 0), "rolled by 1 along dimension 0", REORDERED),
        (W.flip(1), "reversed along dimension 1", REORDERED),
        (W * 1.001, "scaled by 1.001", "scaled by 1.001"),
        (-W, "scaled by -1", "scaled by -1"),
        (ONE, "only about 1 of 2304 elements differ", "only about 1 of 2304 elements differ"),
        (W.bfloat16(), "rounded to bfloat16", "rounded to bfloat16"),
        (W.bfloat16().float(), "rounded to bfloat16",
         "differs by as much as rounding to bfloat16 would change it"),
        (W * (1 + torch.finfo(torch.float32).eps * (ORDER % 2)), "differs by rounding",
         "differs by rounding"),
        (normal(48, 48, seed=1), "", ""),
        (W.reshape(24, 96), "reshaped", "reshaped"),
        (W[:24], "of another shape", "of another shape"),
        (torch.where(W > 3.0, torch.inf, W), "non-finite elements differ: all finite against 2 inf",
         "non-finite elements differ: all finite against 2 inf"),
        (W.clone(), "", ""),
    ],
)  # fmt: skip
def test_how_one_tensor_follows_from_another(
    other: Tensor, with_elements: str, by_sketch: str
) -> None:
    if "inf" in with_elements:
        count = int((W > 3.0).sum())
        with_elements = by_sketch = f"non-finite elements differ: all finite against {count} inf"
    assert relation(related(W, kept=True), related(other, kept=True)) == with_elements
    assert relation(related(W, kept=False), related(other, kept=False)) == by_sketch


def test_one_side_s_elements_tell_a_transpose() -> None:
    for kept in ((True, False), (False, True)):
        left, right = related(W, kept=kept[0]), related(W.t(), kept=kept[1])
        assert relation(left, right) == "transposed"


def test_a_transpose_that_is_not_square() -> None:
    a = normal(8, 24)
    assert relation(related(a, kept=True), related(a.t(), kept=True)) == "transposed"
    by_shape = relation(related(a, kept=False), related(a.t(), kept=False))
    assert by_shape == "transposed (as its shape says; the elements are the same)"
    other = normal(24, 8, seed=4)
    assert relation(related(a, kept=False), related(other, kept=False)) == "of another shape"


# --- sketches -------------------------------------------------------------------------------------


def test_distances() -> None:
    a, b = sketch(W), sketch(W + 1e-3 * normal(48, 48, seed=2))
    true = float((1e-3 * normal(48, 48, seed=2)).norm() / W.norm())
    apart = distance(a, b)
    assert apart is not None
    assert 0.6 * true < apart < 1.6 * true
    assert distance(a, sketch(W.clone())) == 0.0
    assert distance(a, None) is None
    assert distance(a, sketch(W[:4])) is None
    assert distance(sketch(torch.zeros(4)), sketch(torch.ones(4))) == float("inf")
    assert distance(a, sketch(torch.where(W > 2, torch.nan, W))) == float("inf")


def test_a_scaled_sketch_is_that_of_the_scaled_tensor() -> None:
    assert scaled(sketch(W), 0.25).raw == sketch(W * 0.25).raw


@pytest.mark.parametrize(
    ("dtype", "unit"),
    [("float32", 2.0**-24), ("bfloat16", 2.0**-8), ("complex64", 2.0**-24), ("int64", 0.0),
     ("nonsense", 0.0), ("nn", 0.0)],
)  # fmt: skip
def test_rounding_by_name(dtype: str, unit: float) -> None:
    assert rounding(dtype) == unit


def test_a_damaged_step_is_refused() -> None:
    p = Program()
    p.source("input", "0", W)
    with pytest.raises(ValueError, match="refers to value 9, which it does not describe"):
        Contents(p.step()).sketch(9)


# --- arguments ------------------------------------------------------------------------------------


def operator(name: str, overload: str = "default", **given: Argument) -> Operator:
    return Operator(0, Key("forward", "", 0, "", name, 0), f"aten::{name}", overload, given)


def differing(a: Operator, b: Operator, rank: int = 4) -> list[tuple[str, str]]:
    return [(one.name, one.kind) for one in arguments.changed(a, b, rank)]


def test_numbers_are_compared_exactly_but_for_float32() -> None:
    a = operator("native_layer_norm", eps=1e-5)
    assert differing(a, operator("native_layer_norm", eps=1e-6)) == [("eps", "number")]
    as_float32 = float(torch.tensor(1e-5))
    assert differing(a, operator("native_layer_norm", eps=as_float32)) == []


def test_what_is_left_at_its_default_counts_as_it() -> None:
    assert differing(operator("gelu"), operator("gelu", approximate="none")) == []
    assert differing(operator("gelu"), operator("gelu", approximate="tanh")) == [
        ("approximate", "value")
    ]
    # An argument that no installed operator knows and only one run has: nobody can tell.
    assert differing(operator("gelu"), operator("gelu", new_flag=True)) == []


def test_dimensions_are_counted_from_the_front() -> None:
    assert differing(operator("_softmax", dim=-1), operator("_softmax", dim=3)) == []
    assert differing(operator("_softmax", dim=-1), operator("_softmax", dim=2)) == [
        ("dim", "value")
    ]
    assert differing(operator("sum", "dim_IntList", dim=[-1, 0]),
                     operator("sum", "dim_IntList", dim=[3, 0])) == []  # fmt: skip


@pytest.mark.parametrize(
    ("left", "right", "kind"),
    [
        (Special("dtype", "float32"), Special("dtype", "bfloat16"), "dtype"),
        (Special("dtype", "float32"), None, "dtype"),
        (Special("device", "cpu"), Special("device", "npu:0"), None),
        (Special("layout", "strided"), None, None),
        (Special("float", "inf"), Special("float", "inf"), None),
        (Special("float", "inf"), Special("float", "-inf"), "value"),
        (Special("float", "nan"), Special("float", "nan"), None),
        (True, False, "value"),
        (1, True, None),
        (2, 3, "value"),
        ([1, 2], [1, 3], "value"),
        ([1, 2], [1, 2, 3], "value"),
        ("mean", "sum", "value"),
        (None, 0.5, "value"),
        (0.5, 0.25, "number"),
    ],
)
def test_arguments_of_every_kind(left: Argument, right: Argument, kind: str | None) -> None:
    found = arguments.changed(operator("op", what=left), operator("op", what=right), 2)
    assert [one.kind for one in found] == ([] if kind is None else [kind])


def test_a_mask_that_only_one_run_passes() -> None:
    p = Program()
    mask = p.source("other", "", W)
    a, b = operator("op", mask=Ref(mask.id)), operator("op", mask=None)
    (found,) = arguments.changed(a, b, 2)
    assert str(found) == "mask is None where the reference has a tensor"
    assert arguments.changed(a, operator("op", mask=Ref(mask.id)), 2) == []


# --- alignment ------------------------------------------------------------------------------------


def attention(fused: bool, *, extra: bool = False, wrapped: bool = False) -> Program:
    """Attention in one operator or in several, with a backward's product for each."""
    prefix = "module." if wrapped else ""
    p = Program()
    root = p.source("input", "0", normal(2, 4, 16, 8))
    q, k, v = (p.op("mul", module=f"{prefix}qkv", overload="Scalar", self=root, other=x)
               for x in (0.5, 0.25, 2.0))  # fmt: skip
    if extra:
        p.op("neg", module=f"{prefix}attention", self=q)
    where = f"{prefix}attention"
    if fused:
        name = "_scaled_dot_product_flash_attention_for_cpu"
        out = p.op(name, module=where, query=q, key=k, value=v)
    else:
        scores = p.op("matmul", module=where, self=q, other=p.view(k, k.tensor.mT))
        scores = p.op("mul", module=where, overload="Scalar", self=scores, other=8**-0.5)
        weights = p.op("_softmax", module=where, self=scores, dim=-1, half_to_float=False)
        out = p.op("matmul", module=where, self=weights, other=v)
    last = p.op("mul", module=where, overload="Scalar", self=out, other=3.0)
    p.module(where, "Attention", [q, k, v], [last])
    p.module(f"{prefix}qkv", "Split", [root], [q])
    p.module(prefix.rstrip("."), "Net", [root], [last])
    return p


def paired(a: Program, b: Program) -> list[tuple[str, str, str]]:
    found = alignment.aligned(a.step(), b.step())
    return [(str(p.a.key), str(p.b.key), p.how) for p in found.operators]


def test_the_same_program_is_aligned_by_name() -> None:
    pairs = paired(attention(False), attention(False))
    assert all(a == b and how == "name" for a, b, how in pairs)
    assert len(pairs) == 8


def test_one_operator_more_moves_no_name() -> None:
    pairs = paired(attention(False), attention(False, extra=True))
    assert [a for a, b, _ in pairs] == [b for a, b, _ in pairs]
    assert len(pairs) == 8
    only_b = alignment.aligned(attention(False).step(), attention(False, extra=True).step()).only_b
    assert [one.key.op for one in only_b] == ["neg"]


def test_a_repeated_operator_more_shifts_the_count_only() -> None:
    def program(extra: bool) -> Program:
        p = Program()
        x = p.source("input", "0", W)
        if extra:
            x = p.op("neg", self=x)
        x = p.op("relu", self=x)
        x = p.op("neg", self=x)
        p.op("exp", self=x)
        return p

    pairs = paired(program(False), program(True))
    assert ("forward:/neg#0", "forward:/neg#1", "order") in pairs
    assert len(pairs) == 3


def test_backward_operators_follow_their_forward_s_count() -> None:
    def program(extra: bool) -> Program:
        p = Program()
        x = p.source("input", "0", W)
        if extra:
            x = p.op("neg", self=x)
        x = p.op("relu", self=x)
        p.op("neg", self=x)
        p.op("neg", phase="backward", origin=f"neg#{int(extra)}", self=x)
        return p

    pairs = paired(program(False), program(True))
    assert ("backward:/neg#0/neg#0", "backward:/neg#1/neg#0", "name") in pairs


def test_fused_and_unfused_meet_at_content_and_at_the_module() -> None:
    a, b = attention(True).step(), attention(False).step()
    found = alignment.aligned(a, b)
    assert [one.key.op for one in found.only_a] == ["_scaled_dot_product_flash_attention_for_cpu"]
    assert sorted(one.key.op for one in found.only_b) == ["_softmax", "matmul", "matmul", "mul"]
    content = by_content(Contents(a), Contents(b), found)
    assert [pair.op for pair in content] == ["_scaled_dot_product_flash_attention_for_cpu"]
    made = b.producers[content[0].b]
    assert str(b.operators[made].key) == "forward:attention/matmul#1"
    assert [pair.name for pair in found.boundaries] == [
        "output 0 of attention", "output 0 of qkv", "output 0 of (the model)",
    ]  # fmt: skip


def test_ddp_s_wrapper_is_looked_through() -> None:
    found = alignment.aligned(attention(False).step(), attention(False, wrapped=True).step())
    assert not found.only_a
    assert not found.only_b


# --- the first divergence -------------------------------------------------------------------------

EXPLAINED = ("rounding", "carried")
NOISE = 1 + 1e-5 * normal(64, 32, seed=8)


def statuses(op: str, other: Tensor, **arguments: Any) -> dict[str, str]:
    """How a comparison sees an operator of an input and of another input, and a wrong result."""
    found = {}
    for name, change in (("right", None), ("wrong", lambda t: t + t.abs().max() * 0.01)):
        steps = []
        for tensor, way in ((arguments["x"], None), (other, change)):
            p = Program(keep=False)
            x = p.source("other", "", tensor)
            y = p.op("mul", module="a", overload="Scalar", self=x, other=1.0)
            rest = {k: v for k, v in arguments.items() if k not in ("x", "overload")}
            overload = arguments.get("overload", "default")
            p.op(op, module="b", overload=overload, change=way, self=y, **rest)
            steps.append(p.step())
        rows = compare(run(steps[0]), run(steps[1])).rows
        found[name] = next(row.status for row in rows if row.op == op)
    return found


def test_a_sum_that_cancels_is_only_rounding() -> None:
    x = normal(64, 32)
    x -= x.mean(0)  # what is left of each column's sum is rounding
    found = statuses("sum", x * NOISE, x=x, overload="dim_IntList", dim=[0])
    assert found["right"] in EXPLAINED
    x = normal(64, 32) + 1
    found = statuses("sum", x * NOISE, x=x, overload="dim_IntList", dim=[0])
    assert found["right"] in EXPLAINED
    assert found["wrong"] == "diverges"


def test_a_quotient_by_next_to_nothing_is_not_held_to_its_norm() -> None:
    tiny = torch.ones(64, 32)
    tiny[0, 0] = 1e-12
    other = tiny.clone()
    other[0, 0] = 3e-12
    assert statuses("reciprocal", other, x=tiny)["right"] in EXPLAINED
    x = normal(64, 32).abs() + 1
    found = statuses("reciprocal", x * NOISE, x=x)
    assert found["right"] in EXPLAINED
    assert found["wrong"] == "diverges"


def test_a_root_of_next_to_nothing_neither() -> None:
    x = normal(64, 32).square()
    x[0] = 1e-14
    assert statuses("sqrt", x + 1e-10, x=x)["right"] in EXPLAINED
    x = normal(64, 32).square() + 1
    found = statuses("sqrt", x * NOISE, x=x)
    assert found["right"] in EXPLAINED
    assert found["wrong"] == "diverges"


# --- environments ---------------------------------------------------------------------------------


def test_only_what_differs_and_matters_is_listed() -> None:
    other = replace(
        MANIFEST,
        versions={"torch": "2.12.0", "torch_npu": "2.12"},
        numerics_mode={"npu_matmul_hf32": True, "num_threads": 1},
        level="sketch",
        arguments=("train.py",),
    )
    found = environment.differences(MANIFEST, other)
    assert found == {
        "versions.torch": ("2.13.0", "2.12.0"),
        "versions.torch_npu": ("(not there)", "2.12"),
        "numerics_mode.npu_matmul_hf32": ("False", "True"),
        "arguments": ("train.py --lr 0.1", "train.py"),
    }
    assert environment.explaining(found, "addmm") == {"npu_matmul_hf32": ("False", "True")}
    assert environment.explaining(found, "convolution") == {}
    assert environment.explaining(found, "gelu") == {}


# --- commands -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "pattern"),
    [
        (Key("forward", "blocks.1.mlp", 0, "", "gelu", 0), "blocks.1.mlp"),
        (Key("backward", "blocks.1.mlp", 0, "gelu#0", "gelu_backward", 0), "blocks.1.mlp"),
        (Key("forward", "", 0, "", "add", 0), "forward:/*"),
        (Key("backward", OUTSIDE, 0, "mean#0", "div", 0), "backward:(outside)*"),
        (Key("optimizer", "AdamW", 0, "", "addcdiv_", 3), "optimizer:AdamW*"),
    ],
)
def test_the_window_of_an_operator(key: Key, pattern: str) -> None:
    from accel.numerics.capture.selection import Selection

    assert zoom.pattern_of(key) == pattern
    assert Selection([pattern]).takes(key)  # the recorder understands it
    assert not Selection([pattern]).takes(Key("forward", "other", 0, "", "add", 0))


@pytest.mark.parametrize(
    ("given", "world", "program"),
    [
        (("train.py", "-x", "a b"), 1, "python train.py -x 'a b'"),
        (("train.py",), 4, "torchrun --nproc-per-node=4 train.py"),
        (("bin/train", "x"), 1, "bin/train x"),
        (("-c",), 1, "YOUR_PROGRAM"),
        ((), 1, "YOUR_PROGRAM"),
    ],
)
def test_the_command_of_a_zoom(given: tuple[str, ...], world: int, program: str) -> None:
    manifest = replace(MANIFEST, arguments=given, world=world)
    command = zoom.command("runs/b/", manifest, 3, ["blocks.1", "optimizer:*"])
    assert command == (
        "accel record --level full --only blocks.1 --only 'optimizer:*' --steps 3 "
        f"--out runs/b-zoom -- {program}"
    )


# --- overrides ------------------------------------------------------------------------------------


def test_overrides_round_trip() -> None:
    asked = overrides.Overrides("out", "full", ("blocks.1.*",), (0, 5))
    assert overrides.parse_overrides(asked.to_text()) == asked
    assert json.loads(overrides.Overrides().to_text()) == {}
    assert overrides.parse_overrides("{}") == overrides.Overrides()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "it is no JSON"),
        ("[" * 100_000, "it is no JSON"),
        ("[]", "it holds a list and not an object"),
        ('{"levels": 1}', "unknown field 'levels'"),
        ('{"path": ""}', "its path must be the name of a directory"),
        ('{"path": 1}', "its path must be the name of a directory"),
        ('{"level": "all"}', "its level must be one of sketch, full, check"),
        ('{"only": "blocks"}', "its only must be a list of patterns"),
        ('{"only": [1]}', "its only must be a list of patterns"),
        ('{"steps": [-1]}', "its steps must be a list of numbers from 0"),
        ('{"steps": [true]}', "its steps must be a list of numbers from 0"),
        ('{"steps": 3}', "its steps must be a list of numbers from 0"),
    ],
)
def test_wrong_overrides_are_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as error:
        overrides.parse_overrides(text)
    assert str(error.value).startswith("the environment variable ACCEL_RECORD is wrong: ")
    assert "unset it" in str(error.value)


def chosen(text: str) -> overrides.Chosen:
    return overrides.overridden(
        path="p", level="sketch", only=["a"], steps=[3], environment={overrides.VARIABLE: text}
    )


def test_only_what_is_asked_for_is_overridden() -> None:
    assert chosen("") == overrides.Chosen("p", "sketch", ("a",), frozenset({3}))
    assert chosen('{"path": "q"}') == overrides.Chosen("q", "sketch", ("a",), frozenset({3}))
    assert chosen('{"level": "full"}').only is None  # the program's belongs to its own level
    assert chosen('{"level": "full", "only": ["b"]}').only == ("b",)
    assert chosen('{"steps": []}').steps == frozenset()


@pytest.mark.parametrize(
    ("text", "steps"), [("0", (0,)), ("3,1", (1, 3)), ("2-4,3", (2, 3, 4)), (" 1 , 2 ", (1, 2))]
)
def test_steps_as_a_command_line_has_them(text: str, steps: tuple[int, ...]) -> None:
    assert overrides.parse_steps(text) == steps
    assert overrides.parse_steps(overrides.steps_text(steps)) == steps


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "4-2", "0-9999999", "1,,2", "1.5"])
def test_other_steps_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"steps are written as 0,200,400-402|is no range"):
        overrides.parse_steps(text)


# --- words ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "words"),
    [
        (Key("forward", "blocks.0.mlp", 0, "", "addmm", 0), "addmm in blocks.0.mlp"),
        (Key("forward", "", 0, "", "npu::npu_rms_norm", 0), "npu_rms_norm in the model itself"),
        (Key("forward", OUTSIDE, 0, "", "nll_loss", 0), "nll_loss in no module"),
        (Key("forward", "block", 2, "", "addmm", 0), "addmm in block, in its 3rd call"),
        (Key("recompute", "block", 0, "", "addmm", 1), "the 2nd addmm recomputed in block"),
        (Key("backward", "up", 0, "addmm#0", "mm", 0), "mm in the backward of addmm in up"),
        (Key("backward", "up", 0, "addmm#10/x", "mm", 3),
         "the 4th mm in the backward of the 11th addmm in up"),
        (Key("optimizer", "AdamW", 0, "", "_foreach_add_", 21),
         "the 22nd _foreach_add_ of the optimizer AdamW"),
        (Key("collective", "", 0, "", "c10d::allreduce_", 0), "allreduce_ between ranks"),
    ],
)  # fmt: skip
def test_operators_have_short_names(key: Key, words: str) -> None:
    assert wording.operator_in_words(key) == words
    with_line = wording.operator_in_words(key, Place("model.py", 12, "forward"))
    assert with_line == f"{words} (model.py:12)"


def test_numbers_have_nouns() -> None:
    assert [wording.number_of(n, "value") for n in (0, 1, 2)] == ["0 values", "1 value", "2 values"]
    assert wording.number_of(2, "batch", "batches") == "2 batches"
    assert wording.listed(["a"]) == "a"
    assert wording.listed(["a", "b", "c"]) == "a, b and c"
    assert wording.listed(list("abcdefg")) == "a, b, c, d, e, … (7 in all)"
