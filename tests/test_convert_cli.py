"""`accel convert` as its users type it: modes, exit statuses, what goes where."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from accel.cli import main
from tests.convert_results import CONVERTED, SOURCE, made
from tests.test_convert_tree_writing import in_git

ROOT = Path(__file__).parents[1]
HUMAN = "import torch\n\ntorch.cuda.temperature()\n"  # no other device has it
NPU = "import torch\nimport torch_npu\n\ntorch.npu.synchronize()\n"
KEPT = "import torch\n\ntorch.cuda.synchronize()  # accel: keep[ACC020]\n"


@pytest.fixture
def ran(capsys):
    """Runs the command: its status, standard output and standard error."""

    def run(*arguments):
        try:
            status = main(["convert", *map(str, arguments)])
        except SystemExit as left:
            status = left.code
        return status, *capsys.readouterr()

    return run


def environment():
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    return {**os.environ, "PYTHONPATH": path, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}


def command(*arguments):
    return [sys.executable, "-m", "accel", "convert", *map(str, arguments)]


# --- the diff ----------------------------------------------------------------------------------


def test_without_a_mode_it_prints_a_patch_that_applies(tmp_path, ran, monkeypatch) -> None:
    names = {"a.py": SOURCE, "sub dir/b.py": SOURCE.replace("\n", "\r\n"), "c.py": SOURCE.rstrip(),
             "d.py": SOURCE.encode() + 'x = "\x0c\u2028"\n'.encode()}  # fmt: skip
    made(tmp_path, names)
    monkeypatch.chdir(tmp_path)
    status, patch, said = ran(".")
    assert status == 0
    assert patch.startswith("--- a/a.py\n+++ b/a.py\n@@ ")
    assert "\x1b" not in patch
    assert (
        "4 of 4 files would change; --write writes them; 4 sites converted, 0 for a human" in said
    )
    assert (tmp_path / "a.py").read_text() == SOURCE
    applied = subprocess.run(["git", "apply", "-"], input=patch.encode(), cwd=tmp_path)
    assert applied.returncode == 0
    assert (tmp_path / "a.py").read_text() == CONVERTED
    assert (tmp_path / "c.py").read_text() == CONVERTED.rstrip()
    assert (tmp_path / "sub dir/b.py").read_bytes() == CONVERTED.replace("\n", "\r\n").encode()
    assert ran(".")[:2] == (0, "")


def test_a_patch_has_names_from_where_the_command_runs(tmp_path, ran, monkeypatch) -> None:
    made(tmp_path, {"src/a.py": SOURCE, "tests/a.py": SOURCE})
    monkeypatch.chdir(tmp_path)
    for paths in (["src"], [tmp_path / "src"], ["src/a.py"], ["./src"]):
        assert ran(*paths)[1].startswith("--- a/src/a.py\n")
    assert [line for line in ran("src", "tests")[1].splitlines() if line.startswith("---")] == [
        "--- a/src/a.py", "--- a/tests/a.py",
    ]  # fmt: skip


def test_what_is_for_a_human_is_said_beside_the_patch(tmp_path, ran) -> None:
    made(tmp_path, {"a.py": HUMAN})
    status, patch, said = ran(tmp_path)
    assert (status, patch) == (3, "")
    assert f"{tmp_path}/a.py:3:" in said
    assert "for a human" in said


def test_a_file_that_nobody_reads_is_named(tmp_path, ran) -> None:
    made(tmp_path, {"notes.text": "cuda"})
    assert "notes.text: not a kind of file that is read" in ran(tmp_path / "notes.text")[2]
    assert ran(tmp_path / "notes.text", "--quiet") == (0, "", "")


def test_standard_input_is_a_file_of_its_own(ran, monkeypatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(SOURCE.encode())))
    assert ran("-")[1].startswith("--- a/<stdin>\n")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(SOURCE.encode())))
    assert ran("-", "--write")[:2] == (0, CONVERTED)
    assert ran("-", "a.py")[0] == 2


# --- check -------------------------------------------------------------------------------------


def test_check_lists_what_is_pending(tmp_path, ran) -> None:
    made(tmp_path, {"a.py": SOURCE})
    status, listed, said = ran(tmp_path, "--check")
    assert status == 1
    assert listed.startswith(f"{tmp_path}/a.py:3:")
    assert "ACC020 would be converted" in listed
    assert "1 of 1 file would change" in said
    assert ran(tmp_path, "--check", "--quiet") == (1, "", "")


@pytest.mark.parametrize(
    ("files", "arguments", "expected"),
    [
        ({"a.py": "x = 1\n"}, ["--check"], 0),
        ({"a.py": SOURCE}, [], 0),
        ({"a.py": SOURCE}, ["--check"], 1),
        ({"a.py": KEPT}, ["--check"], 0),
        ({"a.py": SOURCE}, ["--check", "--ignore", "ACC020"], 0),
        ({"a.py": SOURCE}, ["--check", "--select", "ACC02"], 1),
        # What is flagged is no less true when its rule converts nothing.
        ({"a.py": HUMAN}, ["--check", "--ignore", "ACC"], 3),
        ({"a.py": HUMAN}, ["--check", "--select", "ACC001"], 3),
        ({"Dockerfile": "FROM nvidia/cuda:12\n"}, ["--check", "--ignore", "ACC12"], 3),
        ({"Dockerfile": "# accel: keep\nFROM nvidia/cuda:12\n"}, ["--check"], 0),
        ({"a.py": NPU}, ["--check"], 3),
        ({"a.py": NPU}, ["--check", "--from", "npu"], 1),
        ({"a.py": HUMAN}, ["--check"], 3),
        ({"a.py": HUMAN, "b.py": SOURCE}, ["--check"], 1),
        ({"a.py": HUMAN, "b.py": SOURCE}, ["--report"], 3),
        ({"a.py": HUMAN, "b.py": SOURCE, "c.py": "import torch\nprint 1\n"}, ["--check"], 4),
        ({"a.py": SOURCE, "c.py": "import torch\nprint 1\n"}, ["--write"], 4),
        ({"a.py": HUMAN, "b.py": SOURCE}, ["--write"], 3),
        ({"a.py": SOURCE, "accel.py": ""}, ["--report"], 3),
        ({"a.py": SOURCE, "accel.py": ""}, ["--write"], 2),
    ],
)
def test_the_exit_status(tmp_path, ran, files, arguments, expected) -> None:
    assert ran(made(tmp_path, files), *arguments)[0] == expected


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "no path is given"),
        (["nowhere"], "nowhere does not exist"),
        ([".", "--check", "--write"], "not allowed with"),
        ([".", "--write", "--report"], "leave out --write"),
        ([".", "--trace-log", "x"], "give --report too"),
        ([".", "--report", "--trace-log", "nowhere.json"], "nowhere.json"),
        ([".", "--select", "ACC02,ACX020"], "near are ACC02"),
        ([".", "--ignore", ","], "no rule's id begins with ''"),
        ([".", "--select", "USR1"], "no rule's id begins with 'USR1'"),
        ([".", "--chip", "H100"], "give one of"),
        ([".", "--target", "tpu"], "invalid choice"),
        ([".", "--jobs", "-1"], "got -1"),
        ([".", "--rules", "nowhere.json"], "nowhere.json"),
        ([".", "--output", "no/where"], "cannot write no/where"),
        (["rules", "ACC999"], "no rule is called 'ACC999'"),
        (["trace"], "no program is given"),
    ],
)
def test_wrong_usage_is_2_and_says_why(tmp_path, ran, monkeypatch, arguments, word) -> None:
    monkeypatch.chdir(made(tmp_path, {"a.py": SOURCE}))
    status, out, said = ran(*arguments)
    assert status == 2
    assert word in said
    assert out == ""
    assert (tmp_path / "a.py").read_text() == SOURCE


# --- writing -----------------------------------------------------------------------------------


def test_a_second_run_has_nothing_to_do(tmp_path, ran) -> None:
    made(tmp_path, {"a.py": SOURCE, "sub/b.py": SOURCE})
    status, _, said = ran(tmp_path, "--write")
    assert status == 0
    assert "2 of 2 files are written" in said
    assert "git has no copy of 2 files" in said
    assert (tmp_path / "sub/b.py").read_text() == CONVERTED
    assert ran(tmp_path, "--check")[:2] == (0, "")
    assert "0 of 2 files" in ran(tmp_path, "--write")[2]


def test_changes_that_are_not_committed_are_not_written_over(tmp_path, ran) -> None:
    in_git(tmp_path, {"a.py": SOURCE, "notes.txt": "x"})
    (tmp_path / "a.py").write_text(SOURCE + "x = 1\n")
    status, _, said = ran(tmp_path, "--write")
    assert status == 2
    assert f"changes are not committed in {tmp_path}/a.py" in said
    assert (tmp_path / "a.py").read_text() == SOURCE + "x = 1\n"
    assert ran(tmp_path)[0] == 0
    assert ran(tmp_path, "--write", "--force")[0] == 0
    assert (tmp_path / "a.py").read_text() == CONVERTED + "x = 1\n"
    # Nothing is left to write, so there is nothing to protect.
    assert ran(tmp_path, "--write")[0] == 0


def test_a_clean_tree_is_written(tmp_path, ran) -> None:
    in_git(tmp_path, {"a.py": SOURCE})
    assert ran(tmp_path, "--write")[0] == 0
    assert (tmp_path / "a.py").read_text() == CONVERTED


@pytest.mark.parametrize("own", ["pkg/accel/__init__.py", "pkg/accel.py", "src/accel/__init__.py"])
def test_a_file_beside_a_package_of_this_librarys_name_is_not_written(tmp_path, ran, own) -> None:
    made(tmp_path, {"pyproject.toml": "", "pkg/t.py": SOURCE, own: ""})
    status, _, said = ran(tmp_path / "pkg/t.py", "--write")
    assert status == 2
    assert own in said
    assert "would be imported in the place of this library" in said
    assert (tmp_path / "pkg/t.py").read_text() == SOURCE
    assert ran(tmp_path / "pkg/t.py", "--write", "--exclude", "accel*")[0] == 0


def test_a_partial_failure_says_which_files_are_which(tmp_path, ran) -> None:
    made(tmp_path, {"a.py": SOURCE, "b.py": SOURCE})
    (tmp_path / "a.py").chmod(0o444)
    status, _, said = ran(tmp_path, "--write")
    assert status == 2
    assert "accel convert: written: b.py" in said
    assert "accel convert: not written: a.py: the file is read-only" in said
    assert (tmp_path / "a.py").read_text() == SOURCE
    assert (tmp_path / "b.py").read_text() == CONVERTED


# --- rules and paths -------------------------------------------------------------------------


def test_rules_of_ones_own_convert_and_wrong_ones_are_an_error(tmp_path, ran) -> None:
    made(tmp_path, {"src/a.py": "from mylib import sync_gpu as s\n\ns()\n"})
    rule = {"id": "USR001", "match": "mylib.sync_gpu", "replace": "accel.synchronize",
            "imports": ["accel"], "message": "ours"}  # fmt: skip
    rules = made(tmp_path, {"rules.json": json.dumps([rule])}) / "rules.json"
    assert "+accel.synchronize()" in ran(tmp_path / "src", "--rules", rules)[1]
    assert ran(tmp_path / "src", "--rules", rules, "--ignore", "USR001", "--check")[0] == 0
    for wrong in ("[{}]", "{", '"x"'):
        made(tmp_path, {"rules.json": wrong})
        status, out, said = ran(tmp_path / "src", "--rules", rules)
        assert (status, out) == (2, "")
        assert said.startswith("accel convert: ")
        assert said.count("\n") == 1


def test_rules_are_listed_and_shown(ran) -> None:
    status, table, _ = ran("rules")
    assert status == 0
    assert "ACC020" in table
    assert "torch.cuda.empty_cache()" in ran("rules", "acc020")[1]


def test_options_may_stand_among_the_paths(tmp_path, ran, monkeypatch) -> None:
    made(tmp_path, {"one/a.py": SOURCE, "two/b.py": SOURCE, "-odd/c.py": SOURCE})
    monkeypatch.chdir(tmp_path)
    assert "2 of 2 files" in ran("one", "--check", "two")[2]
    assert "1 of 1 file" in ran("--check", "--", "-odd")[2]


# --- processes ---------------------------------------------------------------------------------


def test_a_reader_that_leaves_is_no_error(tmp_path) -> None:
    made(tmp_path, {f"m{n}.py": SOURCE * 200 for n in range(20)})
    process = subprocess.Popen(
        command(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    )
    assert process.stdout.read(10)
    process.stdout.close()
    said = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait() == 0
    assert "Traceback" not in said
    assert "Exception" not in said


def children_of(pid):
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for_the_end_of(processes):
    deadline = time.monotonic() + 20
    while any(map(is_running, processes)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
def test_ctrl_c_leaves_nothing(tmp_path) -> None:
    source = SOURCE + "x = torch.cuda.is_available()\n" * 100
    made(tmp_path, {f"m{n}.py": source for n in range(100)})
    process = subprocess.Popen(
        command(tmp_path, "--write", "--jobs", "2"), stderr=subprocess.PIPE, env=environment(),
        start_new_session=True,
    )  # fmt: skip
    # Its helper, and two that work.
    while len(children := children_of(process.pid)) < 3:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    said = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait() == 130, said
    assert "interrupted; nothing is written" in said
    assert "Traceback" not in said
    assert all((tmp_path / f"m{n}.py").read_text() == source for n in range(100))
    wait_for_the_end_of(children)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
def test_workers_end_with_a_killed_process(tmp_path) -> None:
    made(tmp_path, {f"m{n}.py": SOURCE * 500 for n in range(100)})
    process = subprocess.Popen(command(tmp_path, "--quiet", "--jobs", "2"), env=environment())
    while len(children := children_of(process.pid)) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(0.5)  # until they listen
    process.kill()
    assert process.wait() == -signal.SIGKILL
    wait_for_the_end_of(children)
