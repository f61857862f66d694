"""A tracing log beside the findings."""

from accel.convert.pages.runs import Unseen, merge
from accel.convert.traced import TracedCall
from tests.convert_results import file, finding, made, tree


def call(path, line, api="torch.Tensor.cuda", *, count=1, end_line=0, package=""):
    return TracedCall(path, line, api, count, "cpu", package, end_line=end_line)


def two_files(root):
    made(root, {"a.py": "", "sub/b.py": ""})
    first = [finding(line=3), finding("ACC095", "flag", 9), finding("ACC140", "keep", 12)]
    return tree(
        file("a.py", findings=first), file("sub/b.py", findings=[finding(line=2)]),
        roots=(str(root),),
    )  # fmt: skip


def test_a_call_at_a_finding_is_shown_and_one_elsewhere_is_not(tmp_path) -> None:
    one = two_files(tmp_path)
    trace = merge(one, [call(str(tmp_path / "a.py"), 3), call(str(tmp_path / "a.py"), 5, count=4)])
    assert trace.unseen == (Unseen("a.py", 5, "torch.Tensor.cuda", "", "", 4),)
    assert (trace.calls, trace.places) == (5, 2)
    assert "At 1 place of the program's own the line itself names no CUDA:" in trace.sentence


def test_sites_without_a_call_are_idle_in_files_that_ran(tmp_path) -> None:
    trace = merge(two_files(tmp_path), [call(str(tmp_path / "a.py"), 3)])
    assert [(one.path, one.finding.line) for one in trace.idle] == [("a.py", 9)]
    assert trace.sites == 2
    assert trace.unseen == ()
    assert trace.sentence.endswith("The source names CUDA at each of them.")


def test_a_call_over_several_lines_runs_all_of_them(tmp_path) -> None:
    trace = merge(two_files(tmp_path), [call(str(tmp_path / "a.py"), 8, end_line=10)])
    assert [one.finding.line for one in trace.idle] == [3]
    assert trace.unseen == ()


def test_packages_and_strings_come_after_the_programs_own(tmp_path) -> None:
    trace = merge(
        two_files(tmp_path),
        [
            call("/elsewhere/site-packages/apex/x.py", 1, package="apex"),
            call("<string>", 1, count=2),
            call("<string>", 1, count=3),
        ],
    )
    assert [(one.path, one.package, one.times) for one in trace.unseen] == [
        ("<string>", "", 5), ("/elsewhere/site-packages/apex/x.py", "apex", 1),
    ]  # fmt: skip
    assert "At 1 place of the program's own and at 1 place in 1 package the" in trace.sentence


def test_a_log_of_another_place_is_matched_by_the_end_of_the_path(tmp_path, monkeypatch) -> None:
    one = two_files(tmp_path)
    for path in ("sub/b.py", "/other/machine/sub/b.py", "b.py"):
        assert merge(one, [call(path, 2)]).unseen == ()
    monkeypatch.chdir(tmp_path / "sub")
    assert merge(one, [call("b.py", 2)]).unseen == ()
    assert merge(one, [call("/other/ab.py", 2)]).unseen != ()


def test_a_call_that_was_given_its_device_comes_after_one_that_means_cuda_itself(tmp_path) -> None:
    given = TracedCall(str(tmp_path / "a.py"), 1, "torch.ones", 1, "cpu", given="cuda:1")
    dynamic = call(str(tmp_path / "a.py"), 5, "torch.cuda.synchronize")
    trace = merge(two_files(tmp_path), [given, dynamic])
    assert [(one.line, one.given) for one in trace.unseen] == [(5, ""), (1, "cuda:1")]
