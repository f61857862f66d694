"""`accel convert --report` as its users type it: forms, names, verdicts."""

import json

import pytest

from tests.convert_results import SOURCE, made
from tests.test_convert_cli import HUMAN, NPU, ran

__all__ = ["ran"]  # a fixture


def test_the_report_is_text_on_standard_output(tmp_path, ran) -> None:
    status, report, said = ran(made(tmp_path, {"a.py": SOURCE}), "--report")
    assert (status, said) == (0, "")
    assert report.startswith("GO: the tool converts the 1 site.")


def test_the_text_lists_what_is_kept_only_if_asked(tmp_path, ran) -> None:
    made(tmp_path, {"a.py": SOURCE + "use_cuda = 1\n"})
    short, whole = ran(tmp_path, "--report")[1], ran(tmp_path, "--all")[1]
    assert "ACC020 converted" in short
    assert " kept:" not in short.partition("Every site")[2]
    assert "--all lists them" in short
    assert " kept: " in whole.partition("Every finding")[2]


def test_text_and_page_name_files_from_here_and_the_json_as_the_tree_does(
    tmp_path, ran, monkeypatch
) -> None:
    made(tmp_path, {"src/net/a.py": HUMAN, "src/node_modules/x.py": ""})
    monkeypatch.chdir(tmp_path)
    for root in ("src", tmp_path / "src", "./src/"):
        text = ran(root, "--report")[1]
        assert "\n    src/net/a.py:3: torch.cuda.temperature()\n" in text
        assert "\nsrc/net/a.py (python, 3 lines)\n" in text
        assert "src/node_modules/: made by a tool" in text
        assert "src/net/a.py:3" in ran(root, "--format", "html")[1]
    assert [one["path"] for one in json.loads(ran("src", "--format", "json")[1])["files"]] == [
        "net/a.py"
    ]


def test_its_own_reports_and_logs_are_not_read_again(tmp_path, ran, monkeypatch) -> None:
    monkeypatch.chdir(made(tmp_path, {"a.py": SOURCE, "own.json": '{"device": "cuda"}\n'}))
    (tmp_path / "accel-trace.json").write_text(
        json.dumps({"schema": "accel.trace", "calls": [{"api": "torch.cuda.synchronize"}]})
    )
    for kind in ("json", "sarif"):
        assert ran(".", "--format", kind, "--output", f"{kind}.json")[0] == 0
    report = json.loads(ran(".", "--format", "json")[1])
    assert [one["path"] for one in report["files"]] == ["a.py", "own.json"]
    assert [one["path"] for one in report["summary"]["omitted"]] == [
        "accel-trace.json", "json.json", "sarif.json",
    ]  # fmt: skip


def test_rules_that_are_switched_off_make_no_verdict_better(tmp_path, ran) -> None:
    made(tmp_path, {"a.py": SOURCE + "x = torch.ones(2).cuda()\n"})
    assert ran(tmp_path, "--report", "--select", "ACC02")[1].startswith(
        "GO WITH WORK: 1 of 2 sites (50.0 %) convert by themselves, 1 is switched off in this run."
    )
    made(tmp_path, {"a.py": "import torch\n\nm = torch.nn.DataParallel(m)\n"})
    assert ran(tmp_path, "--report", "--ignore", "ACC094") == ran(tmp_path, "--report")


def test_code_for_another_vendor_is_no_go(tmp_path, ran) -> None:
    report = ran(made(tmp_path, {"a.py": NPU}), "--report")[1]
    assert report.startswith(
        "GO WITH WORK: there is code that is bound to npu: run again with --from npu; "
    )
    assert "2 places of this file" in report
    assert ran(tmp_path, "--report", "--from", "npu")[1].startswith("GO: the tool converts all")


def test_a_target_with_cautions_names_what_needs_a_look(tmp_path, ran, monkeypatch) -> None:
    monkeypatch.chdir(made(tmp_path, {"a.py": "import torch\n\nx = torch.ones(2).cuda(1)\n"}))
    verdict = " ".join(ran(".", "--report", "--target", "torch")[1].split("\n\n")[0].split())
    assert verdict == (
        "GO: the tool converts the 1 site; 1 of them needs a look (class review): a.py:3."
    )


@pytest.mark.parametrize("kind", ["text", "json", "sarif", "html"])
def test_a_report_goes_into_a_file(tmp_path, ran, kind) -> None:
    made(tmp_path, {"src/a.py": HUMAN})
    output = tmp_path / "out"
    status, out, said = ran(tmp_path / "src", "--format", kind, "--output", output)
    assert (status, out) == (3, "")
    assert said.startswith("GO WITH WORK: ")
    assert f"report: {output}" in said
    text = output.read_text()
    if kind in ("json", "sarif"):
        json.loads(text)
    assert text.startswith({"text": "GO", "html": "<!doctype"}.get(kind, "{"))


def test_a_report_may_be_part_of_a_check(tmp_path, ran) -> None:
    made(tmp_path, {"src/a.py": SOURCE})
    assert ran(tmp_path / "src", "--check", "--format", "sarif")[0] == 1


def test_hostile_names_reach_the_page_as_text(tmp_path, ran) -> None:
    name = "<img src=x onerror=alert(1)>.py"
    made(tmp_path, {f"src/{name}": HUMAN + "x = '</script><script>alert(2)</script> cuda'\n"})
    page = ran(tmp_path / "src", "--format", "html")[1]
    assert "<img" not in page.partition("<script type=")[0]
    assert page.count("<script") == 3
    assert "alert(2)</script>" not in page


def test_a_log_of_a_run_is_part_of_the_report(tmp_path, ran, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    made(tmp_path, {"src/a.py": SOURCE + "getattr(torch, name)()\n"})
    call = {
        "path": str(tmp_path / "src/a.py"),
        "line": 4,
        "end_line": 4,
        "count": 7,
        "note": "",
        "api": "torch.cuda.synchronize",
        "given": "",
        "redirected_to": "",
        "package": "",
    }
    log = {"schema": "accel.trace", "schema_version": 1, "calls": [call]}
    made(tmp_path, {"log.json": json.dumps(log)})
    report = ran(tmp_path / "src", "--report", "--trace-log", tmp_path / "log.json")[1]
    assert "Seen as the program ran" in report
    assert "    src/a.py:4: torch.cuda.synchronize (7 calls)" in report
    made(tmp_path, {"log.json": "{}"})
    assert ran(tmp_path / "src", "--report", "--trace-log", tmp_path / "log.json")[0] == 2
