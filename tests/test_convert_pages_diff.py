"""The diff: what applies gives the new text, however long and repetitive the old one is."""

import random
import subprocess

import pytest

from accel.convert.pages.diff import coloured, unified
from accel.convert.pages.matching import groups
from tests.convert_results import file


def applied(diff, before, directory, name="a.py"):
    (directory / name).write_bytes(before)
    subprocess.run(["git", "apply", "--unidiff-zero", "-"], input=diff, cwd=directory, check=True)
    return (directory / name).read_bytes()


def mutated(lines, generator):
    out = []
    for line in lines:
        chance = generator.random()
        if chance < 0.1:
            continue
        out.append(b"new %d\n" % generator.randint(0, 3) if chance < 0.2 else line)
        if chance > 0.9:
            out.append(generator.choice([b"\n", b"x = 1\n", b"more\n"]))
    return out


@pytest.mark.parametrize("seed", range(30))
def test_the_diff_applies(tmp_path, seed) -> None:
    """Few different lines, so that almost none is an anchor, or many."""
    generator = random.Random(seed)
    kinds = generator.choice([2, 5, 1000])
    lines = [b"line %d\n" % generator.randint(0, kinds) for _ in range(generator.randint(0, 60))]
    before, after = b"".join(lines), b"".join(mutated(lines, generator))
    if seed % 3 == 0:
        before, after = before.rstrip(b"\n"), after.rstrip(b"\n")
    if before in (after, b"") or not after:
        before, after = b"x\n", b"y"
    diff = unified(file("a.py", before, after), "a.py")
    assert applied(diff, before, tmp_path) == after


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"", b"x\n"),
        (b"x\n", b"x"),
        (b"x", b"y"),
        (b"a\r\nb\x0c\n", b"a\r\nc\x0c\n"),
        (b"a\n" * 50, b"a\n" * 20 + b"b\n" + b"a\n" * 30),
    ],
)
def test_the_ends_of_a_text_are_right(tmp_path, before, after) -> None:
    diff = unified(file("a.py", before, after), "a.py")
    assert applied(diff, before, tmp_path) == after


def test_only_what_changed_is_in_it() -> None:
    before = [b"line %d\n" % n for n in range(100)]
    after = [*before[:10], b"new\n", *before[10:50], b"other\n", *before[51:]]
    found = [[code for code in group if code[0] != "equal"] for group in groups(before, after)]
    assert found == [[("insert", 10, 10, 10, 11)], [("replace", 50, 51, 51, 52)]]


@pytest.mark.parametrize("kinds", [50, 10**9])
def test_a_long_file_of_many_changes(kinds) -> None:
    generator = random.Random(0)
    # difflib alone takes minutes here.
    before = [b"x = t.cuda()\n" if n % 7 == 0 else b"y = %d\n" % generator.randint(0, kinds)
              for n in range(30_000)]  # fmt: skip
    after = [line.replace(b"cuda", b"to") for line in before]
    opcodes = [code for group in groups(before, after) for code in group if code[0] != "equal"]
    assert {code[0] for code in opcodes} == {"replace"}
    assert sum(code[2] - code[1] for code in opcodes) == before.count(b"x = t.cuda()\n")


def test_odd_names_are_quoted_as_git_does() -> None:
    def head(name):
        return unified(file(name, b"x\n", b"y\n"), name).split(b"\n")[0]

    assert head("a b.py") == b"--- a/a b.py\t"
    assert head('a"\n\t\\.py') == b'--- "a/a\\"\\n\\t\\\\.py"'
    assert head("\udcff.py") == b"--- a/\xff.py"


def test_colours_do_not_let_the_text_steer_the_terminal() -> None:
    shown = coloured(unified(file("a.py", b"\x1b]0;x\x07\n", b"y\r\n"), "a.py"))
    assert b"\x1b[31m-?]0;x?\x1b[0m\n" in shown
    assert b"\x1b[32m+y\x1b[0m\n" in shown
    assert b"\x07" not in shown
