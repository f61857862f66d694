"""CONTRIBUTING's two recipes, executed as they stand."""

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^ *```\w+ (file|append)=(\S+)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)

# What a vendor's torch plugin does when torch is imported.
VENDOR = """
import torch
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend
_setup_privateuseone_for_python_backend("mychip")
"""


def blocks() -> dict[str, tuple[str, str]]:
    found = BLOCK.findall((ROOT / "CONTRIBUTING.md").read_text())
    return {name: (how, textwrap.dedent(code)) for how, name, code in found}


def run(*command: str, cwd: Path, path: list[Path]) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    return subprocess.run(
        [sys.executable, *command], cwd=cwd, env=env, capture_output=True, text=True
    )


def test_add_a_chip(tmp_path: Path) -> None:
    code = blocks()
    for name in ("my_chip.py", "check.py"):
        (tmp_path / name).write_text(code[name][1])
    info = tmp_path / "my_chip-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-chip\nVersion: 1.0\n")
    # pyproject.toml's table as the installer would write it.
    table = code["entry_points"][1].replace('project.entry-points."accel.devices"', "accel.devices")
    (info / "entry_points.txt").write_text(table.replace('"', ""))
    (tmp_path / "vendor.py").write_text(VENDOR)
    result = run(
        "-c", "import vendor, check", cwd=tmp_path, path=[tmp_path, ROOT, ROOT / "kernels"]
    )
    assert result.returncode == 0, result.stderr


def test_add_a_kernel(tmp_path: Path) -> None:
    for name in ("accel", "kernels", "tests", "pyproject.toml"):
        source, target = ROOT / name, tmp_path / name
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    for name, (how, code) in blocks().items():
        if name.startswith("kernels/"):
            with (tmp_path / name).open("a" if how == "append" else "x") as file:
                file.write("\n\n" + code if how == "append" else code)
    path = [tmp_path, tmp_path / "kernels"]
    result = run(
        "-m", "pytest", "-q", "-p", "no:cacheprovider",
        "tests/kernels/test_segmented_attention.py", "-k", "whole or signature",
        cwd=tmp_path, path=path,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-3000:]
    assert re.search(r"\b[1-9]\d* passed", result.stdout)
    probe = (
        "import torch, accel; t = torch.randn(1, 1, 4, 4);"
        "print(accel.explain('segmented_attention', t, t, t, backend='whole').chosen);"
        "accel.segmented_attention(t, t, t, backend='whole')"
    )
    assert run("-c", probe, cwd=tmp_path, path=path).stdout.strip() == "whole"
