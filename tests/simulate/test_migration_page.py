"""docs/migration.md, word for word: its commands are run, and print what it says.

A block ```console holds commands after `$ ` and what they print, standard output before standard
error; `…` stands for anything. A block ```python file=NAME is a file. Losses may be as far from
those of the page as another processor's kernels round.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.convert.trainer_cases import ROOT, plain_environment

PAGE = (ROOT / "docs" / "migration.md").read_text()
_BLOCK = re.compile(r"^```(console|python file=(\S+))\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LOSS = re.compile(r"(?<=  loss )\d+\.\d+")
# What torch and torch_npu remark depends on their release.
_REMARK = re.compile(r"^(\[W.*|.*Warning: .*|  [\w.]+\(.*)\n", re.MULTILINE)


class Step(NamedTuple):
    """A file to write, or a command and what it prints."""

    file: str
    command: str
    text: str


def steps(page: str) -> list[Step]:
    found = []
    for kind, file, body in _BLOCK.findall(page):
        if kind != "console":
            found.append(Step(file, "", body))
            continue
        for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
            command, _, printed = part.partition("\n")
            found.append(Step("", command, printed))
    return found


def pattern(text: str) -> re.Pattern[str]:
    parts = [re.escape(part) for part in re.split(r"(?:^…\n)|…", text, flags=re.MULTILINE)]
    return re.compile("(?s)" + ".*?".join(parts) + r"\s*")


@pytest.fixture
def shell(tmp_path):
    """Runs a command as in a checkout's parent, with this Python, away from the checkout."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, words in {"python": "", "accel": "-m accel"}.items():
        (programs / name).write_text(
            f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {words} "$@"\n'
        )
        (programs / name).chmod(0o755)
    path = os.pathsep.join([str(programs), os.environ["PATH"]])
    work = tmp_path / "work"
    work.mkdir()

    def run(command: str) -> str:
        result = subprocess.run(
            ["sh", "-c", command], cwd=work, capture_output=True, text=True, timeout=120,
            env={**plain_environment(), "OMP_NUM_THREADS": "1", "PATH": path, "ACCEL": str(ROOT)},
        )  # fmt: skip
        return _REMARK.sub("", result.stdout + result.stderr)

    run.work = work
    return run


@pytest.mark.parametrize(
    "page", [PAGE.split("\n## 6.")[0], pytest.param(PAGE, marks=pytest.mark.long)],
    ids=["without the comparison", "whole"],
)  # fmt: skip
def test_the_commands_print_what_the_page_says(page, shell) -> None:
    ran = 0
    for step in steps(page):
        if step.file:
            Path(shell.work, step.file).write_text(step.text)
            continue
        printed = shell(step.command)
        said = pattern(_LOSS.sub("#", step.text))
        assert said.fullmatch(_LOSS.sub("#", printed)), f"$ {step.command}\n{printed}"
        losses = [[float(loss) for loss in _LOSS.findall(text)] for text in (step.text, printed)]
        assert losses[1] == pytest.approx(losses[0], abs=0.01), step.command
        ran += 1
    assert ran >= 8
    assert page != PAGE or ran >= 13
