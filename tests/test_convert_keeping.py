"""`accel: keep` and rules switched off, in Python and in every other kind of file."""

import json

import pytest

from accel.convert.engine import convert_source
from accel.convert.keeping import Marks, is_switched_off
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


# --- Python ------------------------------------------------------------------------------------

SYNC = "import torch\n\ntorch.cuda.synchronize()\n"


def convert(data: bytes, **options):
    return convert_source(data, "program.py", Options(**options))


def test_comments_keep_a_line() -> None:
    for comment in ("# accel: keep", "#accel:keep[ACC020]", "# why # accel: keep[ACC001, ACC020]"):
        text = f"import torch\ntorch.cuda.synchronize()  {comment}\n"
        result = convert(text.encode())
        assert result.after.decode() == text
        assert {entry.action for entry in result.ledger} == {"keep"}
    other = b"import torch\ntorch.cuda.synchronize()  # accel: keep[ACC001]\n"
    assert convert(other).is_changed


@pytest.mark.parametrize(
    "body",
    [
        "# accel: keep\ntorch.cuda.synchronize()\n",
        "    \n# why # accel: keep[ACC020]\ntorch.cuda.synchronize()\n",
        "x = torch.cuda.current_device() + \\\n    1  # accel: keep\n",
        "x = torch.ones(2)\nx.cuda(\n    non_blocking=True,\n)  # accel: keep[ACC001]\n",
    ],
)
def test_a_comment_may_stand_above_or_at_the_end_of_a_line_that_goes_on(body) -> None:
    text = f"import torch\n{body}"
    result = convert(text.encode())
    assert result.after.decode() == text
    assert {f.message for f in result.findings} == {"a comment says to keep it"}


@pytest.mark.parametrize(
    "body",
    [
        "# accel: keep\n\ntorch.cuda.synchronize()\n",
        "# accel: keep[ACC001]\ntorch.cuda.synchronize()\n",
        "x = 1  # accel: keep\ntorch.cuda.synchronize()\n",
        "# accel: keeping\ntorch.cuda.synchronize()\n",
        "# accel: keep\nx = 1\ntorch.cuda.synchronize()\n",
        "if x:\n    torch.cuda.synchronize()\n    y = 1  # accel: keep\n",
    ],
)
def test_a_comment_speaks_for_no_other_line(body) -> None:
    assert b"accel.synchronize()" in convert(f"import torch\n{body}".encode()).after


def test_a_rule_that_is_switched_off_flags_in_python_too() -> None:
    text = "import torch\nm = torch.nn.DataParallel(m)\ntorch.cuda.nothing_known()\n"
    plain = convert(text.encode()).findings
    assert {f.action for f in plain} == {"flag"}
    for options in ({"ignore": ("ACC",)}, {"select": ("ACC001",)}):
        assert convert(text.encode(), **options).findings == plain
    off = convert(SYNC.encode(), ignore=("ACC020",)).findings
    assert [is_switched_off(f) for f in off] == [True]


def test_a_comment_settles_what_was_flagged() -> None:
    text = "import torch\ntorch.cuda.nothing_known()  # accel: keep\n"
    assert {finding.action for finding in convert(text.encode()).findings} == {"keep"}
    assert "flag" in {f.action for f in convert(text.replace("accel", "a").encode()).findings}
