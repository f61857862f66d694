"""The README and the pages of docs/, executed as they stand."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.preloaded import start

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
BLOCKS = {
    f"{page.name}-{i}": block
    for page in PAGES
    for i, block in enumerate(
        re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    )
}


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS.keys())
def test_python_blocks_run(block: str, tmp_path: Path) -> None:
    script, output, empty = tmp_path / "block.py", tmp_path / "output", tmp_path / "empty"
    script.write_text(block)
    empty.mkdir()
    process = start(script, output, cwd=empty, strict=True)
    process.join()
    assert process.exitcode == 0, output.read_text()
    assert not list(empty.iterdir()), "a block left files behind"


def test_the_first_example_comes_within_20_lines() -> None:
    lines = README.splitlines()
    start = lines.index("```python")
    assert lines.index("```", start + 1) <= 20


def test_there_are_two_commands_and_make_has_them() -> None:
    shell = re.search(r"```shell\n(.*?)```", README, re.DOTALL).group(1)
    commands = [line.split("#")[0].split() for line in shell.splitlines()]
    assert commands == [["make", "demo"], ["make", "test"]]
    makefile = (ROOT / "Makefile").read_text()
    assert all(f"\n{target}:" in makefile for _, target in commands)
    assert "make test" in (ROOT / ".ci/run").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for name in re.findall(r"\]\(([\w./-]+)\)", page.read_text()):
        assert (page.parent / name).exists(), name


def test_commands_named_in_the_readme_exist() -> None:
    for command in set(re.findall(r"`accel (\w+)", README)):
        result = subprocess.run(
            [sys.executable, "-m", "accel", command, "--help"],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])},
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr


def test_workflows_only_call_scripts() -> None:
    for workflow in ROOT.glob(".github/workflows/*.yml"):
        commands = re.findall(r"- run: (.*)", workflow.read_text())
        assert commands
        for command in commands:
            assert re.fullmatch(r"(bash \.ci/run|ci/\w+|make \.venv/\.installed)", command), command


def test_figures_in_the_readme_are_those_measured() -> None:
    rows = json.loads((ROOT / "benchmarks/results/attention_memory.json").read_text())["rows"]
    size = {r["form"]: r["extra_bytes"] for r in rows if r["length"] == 40960}
    assert f"take {size['segmented'] / 1e6:.0f} MB" in README
    assert f"would take {size['formula'] / 1e9:.0f} GB" in README


def test_files_named_by_the_scripts_exist() -> None:
    for script in (ROOT / "ci").iterdir():
        for name in re.findall(r"(?:tests|benchmarks|examples)/[\w./*]+", script.read_text()):
            assert list(ROOT.glob(name.rstrip("."))) or "results/" in name, f"{script.name}: {name}"
