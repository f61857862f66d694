"""`accel: keep` in files that are not Python: what was flagged is settled, in every language."""

import json

import pytest

from accel.convert.keeping import Marks
from accel.convert.options import Options
from accel.convert.sweep import sweep

PLACES = [
    ("Dockerfile", "FROM nvidia/cuda:12\n", "#"),
    ("Dockerfile", "RUN nvidia-smi\n", "#"),
    ("ci.yml", "image: nvidia/cuda:12\n", "#"),
    ("requirements.txt", "nvidia-cublas-cu12==12.1\n", "#"),
    ("run.sh", "nvidia-smi -L\n", "#"),
    ("run.bat", "nvidia-smi\n", "REM"),
    ("kernel.cu", "__global__ void f() {}\n", "//"),
    ("Makefile", "all:\n\tnvcc a.cu\n", "#"),
]


def actions(name, text, **options):
    result = sweep(text.encode(), name, Options(**options))
    assert "missing" not in {entry.action for entry in result.ledger}
    return {(finding.action, finding.blocker) for finding in result.findings}


@pytest.mark.parametrize(("name", "text", "mark"), PLACES)
def test_a_comment_settles_a_flag(name, text, mark) -> None:
    assert "flag" in {action for action, _ in actions(name, text)}
    *above, last = text.splitlines()
    for comment in (f"{mark} accel: keep", f"{mark} because {mark} accel: keep"):
        assert actions(name, "\n".join([*above, comment, last, ""])) == {("keep", False)}
    if name != "Dockerfile":  # an instruction of it takes no comment behind it
        assert actions(name, "\n".join([*above, f"{last}  {comment}", ""])) == {("keep", False)}


@pytest.mark.parametrize(("name", "text", "mark"), PLACES)
def test_a_rule_that_is_switched_off_flags_all_the_same(name, text, mark) -> None:
    assert actions(name, text, ignore=("ACC",)) == actions(name, text)
    assert actions(name, f"{mark} accel: keep[ACC001]\n{text}") == actions(name, text)


def test_a_key_of_a_file_is_no_comment() -> None:
    assert ("flag", False) in actions("ci.yml", "accel: keep\nimage: nvidia/cuda:12\n")


def test_commands_of_a_notebook_are_kept_too() -> None:
    def book(line):
        cell = {"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": None,
                "source": [line]}  # fmt: skip
        return json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5})

    assert actions("a.ipynb", book("!nvidia-smi")) == {("flag", False)}
    assert actions("a.ipynb", book("!nvidia-smi  # accel: keep")) == {("keep", False)}


def test_lines_that_a_backslash_continues_are_one() -> None:
    text = b"a \\\n b \\\n c  # accel: keep\nd\n# accel: keep\ne \\\n f\n"
    text += b"g \\\n# accel: keep\n h \\\n i\n"
    marks = Marks(text)
    assert [line for line in range(1, 13) if marks.any([line])] == [1, 2, 3, 5, 6, 7, 9, 10]
    assert marks.keep("ACC001", [2])
    assert not Marks(b"# accel: keep[ACC001, ACC020]\n").keep("ACC002", [1])
    assert Marks(b"# accel: keep[ACC001, ACC020]\r\nx\r\n").keep("ACC020", [2])
