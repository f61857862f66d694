"""The report of a conversion as text and as JSON, and the sums both are made from."""

import json
import unicodedata

import pytest

from accel.convert.keeping import SWITCHED_OFF
from accel.convert.pages import lines, structured, text
from accel.convert.pages.runs import Trace, Unseen
from accel.convert.pages.summary import Place, groups, status, summarize
from accel.convert.pages.words import cut, family_of, percent
from accel.convert.rules import RULES
from accel.convert.walking import Omitted
from tests.convert_results import HOSTILE, entry, file, finding, rich, tree


def width(line):
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in line)


def test_the_verdict_is_go_where_everything_converts() -> None:
    found = summarize(tree(file(after=b"y\n", findings=[finding()])))
    assert text.verdict(found) == "GO: the tool converts the 1 site."
    assert found.share == "100 %"
    nothing = summarize(tree(file()))
    assert text.verdict(nothing) == "GO: nothing here is bound to a device."


def test_what_is_for_a_human_is_work() -> None:
    found = summarize(tree(file(findings=[finding(), finding("ACC095", "flag", 2)])))
    assert text.verdict(found) == (
        "GO WITH WORK: 1 of 2 sites (50.0 %) convert by themselves, 1 is for a human."
    )


def test_blockers_come_first_and_by_name() -> None:
    found = summarize(rich())
    assert found.verdict == "no-go"
    assert text.verdict(found) == ("NO-GO until 1 blocker is resolved: DataParallel (1 place).")
    report = text.to_text(rich(), found)
    assert report.startswith("NO-GO until")
    order = ["Blockers", "Work", "Files not read", "Operators", "Other files", "Ledger", "Every"]
    assert sorted(order, key=lambda name: report.index(f"\n{name}")) == order
    assert "Use DistributedDataParallel." in report


def test_a_conflict_stands_against_it() -> None:
    found = summarize(tree(file(), conflicts=("accel.py would be imported",)))
    assert found.verdict == "no-go"
    assert status(tree(file(), conflicts=("accel.py",)), check=False) == 3


def test_effort_classes_count_sites_lines_and_files() -> None:
    one = file("a.py", findings=[finding(line=1), finding(line=1), finding(line=2)])
    two = file("b.py", findings=[
        finding("ACC110", "flag", 4, effort="rewrite"), finding("ACC140", "keep", 5),
    ])  # fmt: skip
    work = {row.effort: row[1:] for row in summarize(tree(one, two)).work}
    assert work == {"auto": (3, 2, 1), "review": (0, 0, 0), "rewrite": (1, 1, 1)}


def test_findings_are_grouped_by_subject_the_largest_first() -> None:
    places = [
        Place("a.py", finding(subject="apex", advice="Use torch.")),
        Place("a.py", finding(subject="flash_attn")),
        Place("b.py", finding("ACC101", subject="flash_attn", advice="Use ours.")),
    ]
    first, second = groups(places)
    assert (first.subject, len(first.places), first.advice) == ("flash_attn", 2, ("Use ours.",))
    assert first.rules == ("ACC001", "ACC101")
    assert second.subject == "apex"


def test_missing_tokens_are_said_loudly_at_the_top() -> None:
    report = text.to_text(rich(), summarize(rich()))
    assert "!! 1 TOKEN THAT NO RULE ACCOUNTS FOR" in report
    assert report.index("!! 1 TOKEN") < report.index("Blockers")
    assert "report them with the version" in " ".join(report.split())
    clean = tree(file(ledger=(entry(),)))
    assert "!!" not in text.to_text(clean, summarize(clean))


def test_the_text_fits_a_terminal_and_cannot_steer_it() -> None:
    odd = file(
        "\x1b]0;title\x07.py",
        findings=[
            finding(
                "ACC095", "flag", 123456, snippet="变" * 200 + "\x1b[31m", message="word " * 80,
                advice="x" * 300, subject="s" * 120,
            )
        ],
    )  # fmt: skip
    for one in (rich(), tree(odd)):
        report = text.to_text(one, summarize(one, [Omitted("build/" * 30, "made by a build")]))
        assert "\x1b" not in report
        assert "\x07" not in report
        assert max(map(width, report.splitlines())) <= 100


def test_every_finding_is_in_the_text() -> None:
    whole = text.to_text(rich(), summarize(rich()), has_kept=True)
    short = text.to_text(rich(), summarize(rich()))
    for one in (one for each in rich().files for one in each.findings):
        assert f"{one.line:>6}  {one.rule}" in whole
        assert (f"{one.line:>6}  {one.rule}" in short) == (one.action != "keep")
    assert "ACC140 kept: a word of yours" in whole


def test_what_is_switched_off_is_a_site_that_is_not_converted() -> None:
    off = finding("ACC020", "keep", 2, message=SWITCHED_OFF)
    one = tree(file(findings=[finding(), off, finding("ACC140", "keep", 3)]))
    found = summarize(one)
    assert (found.sites, found.switched_off, found.share) == (2, 1, "50.0 %")
    assert text.verdict(found) == (
        "GO WITH WORK: 1 of 2 sites (50.0 %) convert by themselves, 1 is switched off in this run."
    )
    report = text.to_text(one, found)
    assert "switched off in this run: 1; right as they are, and kept: 1 place." in " ".join(
        report.split()
    )
    assert "     2  ACC020 kept: the rule that converts it is switched off in this run" in report
    document = json.loads(structured.to_json(one, found))
    assert document["summary"]["switched_off"] == 1
    assert document["summary"]["findings"] == {"convert": 1, "flag": 0, "keep": 2}


def test_a_go_names_what_needs_a_look() -> None:
    lines = [finding(line=line, effort="review") for line in (3, 4, 4, 5, 6, 7)]
    found = summarize(tree(file(after=b"y\n", findings=[finding(), *lines])))
    assert text.verdict(found) == (
        "GO: the tool converts all 7 sites; 6 of them need a look (class review): "
        "a.py:3, a.py:4, a.py:5, a.py:6 and 1 more lines."
    )


def test_a_blocker_is_printed_once() -> None:
    one = tree(file(findings=[
        finding(rule, "flag", line, blocker=True, subject=f"thing {rule}")
        for line, rule in enumerate(("ACC090", "ACC100", "ACC030"), 1)
    ]))  # fmt: skip
    found = summarize(one)
    assert len(found.blockers) == 3
    assert found.operators == found.packages == found.human == ()
    head = text.to_text(one, found).partition("Every site")[0]
    assert head.count("\nthing ACC090: 1 place") == 1


def test_a_conflict_is_among_the_blockers() -> None:
    one = tree(file(), conflicts=("accel.py would be imported",))
    report = text.to_text(one, summarize(one))
    assert "Blockers\n--------\n! accel.py would be imported.\n" in report
    assert "None." not in report


def test_no_sites_have_no_share() -> None:
    one = tree(file(findings=[finding("ACC140", "keep")]))
    report = text.to_text(one, summarize(one))
    assert "right as they are, and kept: 1 place." in report
    assert "of 0" not in report
    assert "100 %" not in report.partition("Ledger")[0]


def test_the_json_holds_everything_and_is_the_same_each_time() -> None:
    first = structured.to_json(rich(), summarize(rich()))
    slower = tree(*rich().files, seconds=9.0)
    assert structured.to_json(slower, summarize(slower)) == first
    document = json.loads(first)
    assert (document["schema"], document["schema_version"]) == ("accel.convert", 1)
    assert document["verdict"]["kind"] == "no-go"
    assert document["summary"]["findings"] == {"convert": 1, "flag": 3, "keep": 1}
    assert document["summary"]["tokens"] == {"convert": 1, "flag": 1, "keep": 1, "missing": 1}
    assert document["summary"]["missing"][0]["token"] == HOSTILE
    assert [one["path"] for one in document["files"]] == [one.path for one in rich().files]
    train = document["files"][0]
    assert [one["rule"] for one in train["findings"]] == ["ACC001", "ACC110", "ACC095", "ACC140"]
    assert len(train["ledger"]) == 3
    assert document["files"][2]["error"] == "line 1: not Python 3"


def test_a_trace_is_in_both() -> None:
    place = Place("a.py", finding("ACC095", "flag", 7, snippet="x.double()"))
    trace = Trace(9, 3, (Unseen("b.py", 3, "torch.cuda.synchronize", "", "", 8),), (place,), 4)
    report = text.to_text(rich(), summarize(rich()), trace)
    assert "9 calls of CUDA at 3 places were logged." in report
    assert "b.py:3: torch.cuda.synchronize (8 calls)" in report
    assert "a.py:7: x.double()" in report
    document = json.loads(structured.to_json(rich(), summarize(rich()), trace))["trace"]
    assert document["unseen"][0]["name"] == "torch.cuda.synchronize"
    assert document["idle"] == [{"path": "a.py", "line": 7, "rule": "ACC095"}]


@pytest.mark.parametrize(
    ("files", "check", "expected"),
    [
        ([file()], False, 0),
        ([file(findings=[finding()], after=b"y\n")], False, 0),
        ([file(findings=[finding()], after=b"y\n")], True, 1),
        ([file(findings=[finding("ACC140", "keep")])], True, 0),
        ([file(findings=[finding("ACC095", "flag")])], False, 3),
        ([file(findings=[finding("ACC095", "flag")])], True, 3),
        ([file(ledger=(entry("missing"),))], False, 3),
        ([file(findings=[finding(), finding("ACC095", "flag")], after=b"y\n")], True, 1),
        ([file(findings=[finding("ACC095", "flag")]), file("b.py", error="no")], True, 4),
        ([file(findings=[finding()], after=b"y\n"), file("b.py", error="no")], True, 4),
    ],
)
def test_the_status_is_the_first_that_holds(files, check, expected) -> None:
    assert status(tree(*files), check=check) == expected


def test_lines_name_the_place_first() -> None:
    found = list(lines.finding_lines(rich(), {"flag"}))
    assert found[0] == (
        "src/train.py:2:5: ACC110 for a human: ACC110 says so. Use DistributedDataParallel."
    )
    assert any("no rule accounts for" in line for line in found)
    assert found[-1] == "src/old.py:1:1: not read or parsed: line 1: not Python 3"


def test_every_rule_can_be_shown() -> None:
    table = lines.rule_table()
    for rule in RULES:
        assert rule.id in table
        shown = lines.rule_text(rule.id)
        assert rule.title in shown
        assert rule.examples[0].before.strip().splitlines()[0] in shown
    with pytest.raises(ValueError, match="no rule is called 'ACC999'"):
        lines.rule_text("ACC999")


def test_small_words() -> None:
    assert [percent(*pair) for pair in ((0, 0), (5, 5), (9999, 10000), (1, 10000), (0, 5))] == [
        "-", "100 %", "99.9 %", "0.1 %", "0.0 %",
    ]  # fmt: skip
    assert cut("变量", 4) == "变量"
    assert width(cut("变" * 10, 7)) <= 7
    assert [family_of(one) for one in ("ACC001", "ACC020", "ACC139", "ACC150", "USR1")] == [
        "devices", "torch.cuda functions", "files that are not Python", "vendor code",
        "your own rules",
    ]  # fmt: skip


def test_a_kernel_says_who_names_it() -> None:
    kernel = file("ops/nms_kernel.cu", language="cuda", findings=[
        finding("ACC130", "flag", blocker=True, subject="CUDA kernel nms"),
    ])  # fmt: skip
    other = file("ops/roi.cuh", language="cuda", findings=[
        finding("ACC130", "flag", blocker=True, subject="CUDA kernel roi"),
    ])  # fmt: skip
    common = file("ops/x.cu", language="cuda", findings=[
        finding("ACC130", "flag", blocker=True, subject="CUDA kernel x"),
    ])  # fmt: skip
    build = file("build.py", b"a\nb = ['src/nms_kernel.cu.o', 'my_nms_kernel.cu']\n" + b"x\n" * 30)
    use = file("net.py", b"import roi\nnms_kernel\n\nroi.pool(t), roi.pool(u)\nheroi = 1\n")
    found = summarize(tree(kernel, other, common, build, use)).blockers
    assert {one.subject: one.named_at for one in found} == {
        "CUDA kernel nms": ("build.py:2",),
        "CUDA kernel roi": ("net.py:1", "net.py:4"),
        "CUDA kernel x": (),
    }
    report = text.to_text(tree(kernel, build), summarize(tree(kernel, build)))
    assert "  < named at build.py:2\n" in report
