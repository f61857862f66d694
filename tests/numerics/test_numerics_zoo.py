"""The fault zoo in short: faults are named, right kernels are not, rules are what they say."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.fault_zoo import collectives, evidence, page, recorded, rules, summary
from benchmarks.fault_zoo.assessing_ranks import assess_collectives
from benchmarks.fault_zoo.changes import CHANGES
from benchmarks.fault_zoo.faults import KINDS, Altered, Injector
from benchmarks.fault_zoo.ours import judged
from benchmarks.fault_zoo.packing import packed, unpacked
from benchmarks.fault_zoo.roundings import to_bits
from benchmarks.fault_zoo.traces import Trace, places
from benchmarks.fault_zoo.variants import VARIANTS, prepared
from benchmarks.fault_zoo.workload import Workload, same_bits
from benchmarks.fault_zoo.zoo import FAULTS, Case, effect

pytestmark = pytest.mark.filterwarnings("ignore:TF32 acceleration")
BY_NAME = {fault.name: fault for fault in FAULTS}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --- what the zoo holds ---------------------------------------------------------------------------


def test_there_are_three_faults_of_each_class_and_twelve_right_variants() -> None:
    faults = (*FAULTS, *collectives.FAULTS, *CHANGES)
    kinds = Counter(fault.kind for fault in (*FAULTS, *collectives.FAULTS))
    assert len({fault.name for fault in faults}) == len(faults) >= 21
    assert all(kinds[kind] >= 3 for kind in KINDS)
    assert len(VARIANTS) >= 12
    assert len(rules.RULES) >= 6


def test_a_run_is_the_same_each_time() -> None:
    one, other = Workload("gpt", "float32"), Workload("gpt", "float32")
    for workload in (one, other):
        workload.step()
    assert same_bits(one.results(), other.results())


def test_what_changes_no_bit_is_not_effective() -> None:
    fault = BY_NAME["product operands"]  # bfloat16 has fewer bits than TF32
    assert not effect(Case(fault, fault.strengths[1], "bfloat16")).effective
    found = effect(Case(fault, fault.strengths[1], "float32"))
    assert found.effective
    assert found.altered[0] == Altered("aten::addmm", 0)


def test_rounding_to_few_bits_is_bfloat16() -> None:
    x = torch.randn(1000) * 100
    assert torch.equal(to_bits(7)(x), x.bfloat16().float())
    assert torch.equal(to_bits(10)(x), x.half().float())


# --- ours -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("scores scaled", "float32"),
        ("approximate gelu", "bfloat16"),
        ("batch norm divisor", "float32"),
        ("gelu backward form", "float32"),
        ("softmax backward scaled", "autocast"),
        ("batch norm backward", "float32"),
        ("product accumulator", "float32"),
        ("bias gradient accumulator", "float32"),
        ("convolution operands", "float32"),
        ("layer norm statistics", "autocast"),
        ("causal leak", "bfloat16"),
        ("embedding row", "float32"),
        ("pooling index", "float32"),
        ("layer norm eps", "float32"),
        ("batch norm eps", "float32"),
        ("gelu form", "float32"),
        ("bias correction", "float32"),
        ("second beta", "autocast"),
        ("narrow state", "float32"),
    ],
)
def test_the_faulty_operator_is_named_first_and_no_other(name: str, precision: str) -> None:
    fault = BY_NAME[name]
    strength = fault.strengths[2].value
    workload = Workload(fault.model, precision)  # type: ignore[arg-type]
    injector, trace = Injector(fault, strength), Trace()
    with injector, trace:
        workload.step()
    out = [place for place, one in judged(trace).items() if one.verdict == "out"]
    altered = places(tuple(injector.altered))
    assert altered
    assert out[0] in altered
    assert set(out) <= altered


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["again", "split-K", "all kernels"])
def test_right_kernels_are_not_accused(name: str, precision: str) -> None:
    (variant,) = (variant for variant in VARIANTS if variant.name == name)
    workload, trace = prepared(variant, "gpt", precision), Trace()  # type: ignore[arg-type]
    with variant.around(), trace:
        workload.step()
    found = judged(trace)
    assert [place for place, one in found.items() if one.verdict == "out"] == []
    assert Counter(one.verdict for one in found.values())["within"] > 100


def test_a_recording_names_what_was_altered(tmp_path: Path) -> None:
    fault = BY_NAME["batch norm divisor"]
    injector = Injector(fault, fault.strengths[2].value)
    recorded.record(Workload("cnn", "float32"), tmp_path / "run", "full", injector)
    found = recorded.replayed(tmp_path / "run")
    assert found.out[0] in places(tuple(injector.altered))


@pytest.mark.long  # its short form: test_numerics_distributed_faults
def test_a_collective_that_misses_a_rank_is_named() -> None:
    right, wrong = assess_collectives(("rank missing",), (2,), ("float32",), others=False)
    assert right["rules"][recorded.FULL]["flags"] == 0
    assert wrong["effective"]
    for rule in (recorded.FULL, recorded.SKETCH):
        assert wrong["rules"][rule] == {"flags": 1, "false": 0, "first": True}


# --- other tools' rules ---------------------------------------------------------------------------


def seen(out: Tensor, exact: Tensor, other: Tensor | None = None) -> rules.Evidence:
    """What rules are told of an output whose operands are equal on both machines."""
    given = torch.ones(4)
    return rules.Evidence(out, exact, other, exact, exact, ((given, given),))


X = torch.linspace(1, 2, 1000, dtype=torch.float64)


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: rule.name)
def test_no_rule_flags_what_is_rounded_once(rule: rules.Rule) -> None:
    assert not rule.flags(seen(X.float(), X, X.float()))


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: rule.name)
def test_every_rule_flags_what_is_grossly_wrong(rule: rules.Rule) -> None:
    wrong = X.flip(0).float().roll(3) * 3 - 4
    assert rule.flags(seen(wrong, X, X.float()))


@pytest.mark.parametrize(
    ("rule", "out", "exact", "other", "flagged"),
    [
        # An absolute tolerance accepts any small gradient.
        (rules.assert_close_alone, X.float() * 2e-6, X * 1e-6, None, False),
        (rules.ascend_mixed, X.float() * 2e-6, X * 1e-6, None, False),
        (rules.msprobe_acc_check, X.float() * 4e-4, X * 1e-6, None, False),
        (rules.kernel_bench, X.float() * 2e-5, X * 1e-6, None, False),
        (rules.ascend_relative, X.float() * 2e-6, X * 1e-6, None, True),
        (rules.dual_benchmark, X.float() * 1.001, X, X.float(), True),
        # A cosine does not see a factor.
        (rules.cosine_alone, X.float() * 5, X, None, False),
        (rules.msprobe_first_difference, X.float() * 1.4, X, X.float(), False),
        (rules.msprobe_first_difference, X.float() * 1.6, X, X.float(), True),
        (rules.msprobe_compare, X.float() * 1.002, X, X.float(), True),
        (rules.msprobe_compare, X.float() * 1.0005, X, X.float(), False),
        (rules.dynamo_same, X.float() + 5e-5, X, X.float(), False),
        (rules.dynamo_same, X.float() + 1e-2, X, X.float(), True),
        (rules.rms_ratio, X.float() + 5e-5, X, X.float(), True),
    ],
)
def test_rules_decide_as_their_documents_say(
    rule: object, out: Tensor, exact: Tensor, other: Tensor | None, flagged: bool
) -> None:
    assert callable(rule)
    assert rule(seen(out, exact, other)) is flagged


def test_rules_are_asked_about_every_operator_in_order() -> None:
    fault = BY_NAME["batch norm divisor"]
    workload, trace = Workload("cnn", "float32"), Trace()
    with Injector(fault, fault.strengths[2].value), trace:
        workload.step()
    found = evidence.flagged(trace, evidence.others("cnn", "float32"))
    assert found.keys() == {rule.name for rule in rules.RULES}
    order = list(trace.calls)
    for flags in found.values():
        assert flags == sorted(flags, key=order.index)
    assert found["assert_close, isolated"][0].operator == "aten::native_batch_norm"


# --- results and page -----------------------------------------------------------------------------


def test_the_page_shows_the_results() -> None:
    text = page.PAGE.read_text()
    assert page.written(text, page.load()) == text


def test_a_page_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="has no lines"):
        page.written("# Faults", {"faults": [], "variants": []})


def test_the_targets_are_met() -> None:
    document = page.load()
    fp32 = summary.tally(document, recorded.FULL, "float32")
    bf16 = summary.tally(document, recorded.FULL, "bf16")
    assert fp32.share == 1.0
    assert bf16.share >= 0.85
    assert (fp32.alarms, fp32.wrong) == (0, 0)
    assert (bf16.alarms, bf16.wrong) == (0, 0)


def test_results_are_packed_and_unpacked() -> None:
    document = page.load()
    again = unpacked(json.loads(json.dumps(packed(document))))
    assert [case["rules"] for case in again["faults"]] == [
        case["rules"] for case in document["faults"]
    ]
    with pytest.raises(ValueError, match="is no score"):
        unpacked({"summaries": {}, "faults": [], "variants": [{"rules": {"r": "many flags"}}]})


def test_counting() -> None:
    case = {"fault": "a", "kind": "attribute", "model": "gpt", "precision": "float32"}
    scores = {rule: {"flags": 2, "false": 1, "first": True} for rule in summary.RULE_NAMES}
    missed = {rule: {"flags": 0, "false": 0, "first": False} for rule in summary.RULE_NAMES}
    faults = [
        {**case, "rank": 0, "strength": "weak", "effective": False},
        {**case, "rank": 1, "strength": "some", "effective": True, "rules": missed},
        {**case, "rank": 2, "strength": "much", "effective": True, "rules": scores},
    ]
    runs = [
        {"variant": "v", "model": "gpt", "precision": "float32", "rules": rules_of}
        for rules_of in (missed, scores)
    ]
    document = json.loads(json.dumps({"faults": faults, "variants": runs}))
    found = summary.tally(document, recorded.FULL, "float32")
    assert found == summary.Tally(1, 2, 1, 1, 1, 1, 1, 2)
    assert found.share == 0.5
    assert summary.weakest(document["faults"], recorded.FULL) == "much"
    assert summary.weakest(document["faults"][:2], recorded.FULL) == "none"
    assert summary.weakest(document["faults"][:1], recorded.FULL) == "ineffective"
    assert [case["strength"] for case in summary.missed(document)] == ["some"]
    assert [case["strength"] for case in summary.ineffective(document)] == ["weak"]
