"""The SARIF log against the parts of the standard that its readers rely on."""

import json
import re

from accel.convert.engine import convert_source
from accel.convert.options import Options
from accel.convert.pages import sarif
from accel.convert.pages.summary import summarize
from tests.convert_results import HOSTILE, entry, file, finding, rich, tree


def log_of(one):
    return json.loads(sarif.to_sarif(one, summarize(one)))


def results_of(one):
    return log_of(one)["runs"][0]["results"]


def test_the_log_has_what_the_standard_asks() -> None:
    log = log_of(rich())
    assert log["version"] == "2.1.0"
    assert log["$schema"].endswith("sarif-schema-2.1.0.json")
    (run,) = log["runs"]
    assert run["tool"]["driver"]["name"] == "accel convert"
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", run["tool"]["driver"]["semanticVersion"])
    rules = run["tool"]["driver"]["rules"]
    assert len({rule["id"] for rule in rules}) == len(rules)
    for result in run["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["level"] in {"none", "note", "warning", "error"}
        assert result["message"]["text"]
        (location,) = result["locations"]
        region = location["physicalLocation"]["region"]
        assert 1 <= region["startLine"] <= region["endLine"]
        assert region["startColumn"] >= 1
        assert re.fullmatch(r"[\w./%~-]+", location["physicalLocation"]["artifactLocation"]["uri"])


def test_levels_follow_the_action_and_kept_places_are_suppressed() -> None:
    by_rule = {one["ruleId"]: one for one in results_of(rich())}
    assert by_rule["ACC001"]["level"] == "note"
    assert by_rule["ACC110"]["level"] == "error"
    assert by_rule["ACC095"]["level"] == "warning"
    (suppression,) = by_rule["ACC140"]["suppressions"]
    assert suppression["kind"] == "external"
    assert suppression["justification"] == "a word of yours"
    assert "suppressions" not in by_rule["ACC001"]


def test_rules_are_described_and_link_to_nothing_that_is_not_there() -> None:
    rules = {one["id"]: one for one in log_of(rich())["runs"][0]["tool"]["driver"]["rules"]}
    assert "docs/convert-rules/ACC001.md" in rules["ACC001"]["help"]["text"]
    assert rules["ACC001"]["properties"]["tags"] == ["devices"]
    assert not any("helpUri" in one for one in rules.values())


def test_a_comment_in_the_source_is_a_suppression_in_the_source() -> None:
    for text in ("# accel: keep\nx.cuda()\n", "x.cuda()  # accel: keep[ACC001]\n"):
        data = f"import torch\nx = torch.ones(2)\n{text}".encode()
        one = tree(convert_source(data, "a.py", Options()))
        assert [one["suppressions"][0]["kind"] for one in results_of(one)] == ["inSource"]


def test_regions_are_in_characters_and_over_lines() -> None:
    first, second = (one["locations"][0]["physicalLocation"]["region"] for one in
                     results_of(rich())[:2])  # fmt: skip
    # `é` is two bytes and one column.
    assert (first["startLine"], first["startColumn"], first["endColumn"]) == (1, 5, 13)
    assert (second["startLine"], second["endLine"], second["endColumn"]) == (2, 3, 7)
    assert log_of(rich())["runs"][0]["columnKind"] == "unicodeCodePoints"


def test_a_byte_order_mark_moves_no_region() -> None:
    source = b"\xef\xbb\xbfx.cuda()\n"
    one = tree(file(before=source, findings=[finding(start=0, end=8)]))
    assert results_of(one)[0]["locations"][0]["physicalLocation"]["region"]["endColumn"] == 9


def test_names_are_uris() -> None:
    names = ["a b.py", "c:d.py", "é#?.py", f"{HOSTILE}.py", "\udcff.py"]
    one = tree(*(file(name, findings=[finding()]) for name in names))
    uris = [r["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
            for r in results_of(one)]  # fmt: skip
    assert uris[:3] == ["a%20b.py", "./c%3Ad.py", "%C3%A9%23%3F.py"]
    assert uris[4] == "%FF.py"


def test_fingerprints_tell_equal_lines_apart_and_survive_other_lines() -> None:
    def prints(*lines):
        found = [finding(line=line, snippet="x.cuda()") for line in lines]
        return [one["partialFingerprints"]["accelFinding/v1"] for one in
                results_of(tree(file(findings=found)))]  # fmt: skip

    assert len(set(prints(1, 2))) == 2
    assert prints(1, 2) == prints(5, 9)


def test_what_was_not_done_is_a_notification_of_the_tool() -> None:
    (invocation,) = log_of(rich())["runs"][0]["invocations"]
    assert invocation["executionSuccessful"] is False
    said = [one["message"]["text"] for one in invocation["toolExecutionNotifications"]]
    assert said[0].startswith("Not read or parsed")
    assert "no rule accounts for" in said[1]
    clean = tree(file(ledger=(entry(),)))
    assert log_of(clean)["runs"][0]["invocations"] == [{"executionSuccessful": True}]


def test_the_log_is_the_same_each_time() -> None:
    slower = tree(*rich().files, seconds=9.0)
    assert sarif.to_sarif(slower, summarize(slower)) == sarif.to_sarif(rich(), summarize(rich()))
