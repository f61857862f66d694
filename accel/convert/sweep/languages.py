"""Which files besides Python are looked into, and what each is."""

from __future__ import annotations

import posixpath
import re

_SUFFIXES = {
    ".ipynb": "notebook",
    **dict.fromkeys(
        (".sh", ".bash", ".zsh", ".ksh", ".slurm", ".sbatch", ".pbs", ".envrc"), "shell"
    ),
    **dict.fromkeys((".csh", ".tcsh", ".fish", ".bat", ".cmd", ".ps1"), "script"),
    ".dockerfile": "docker",
    **dict.fromkeys((".yaml", ".yml"), "yaml"),
    **dict.fromkeys((".json", ".jsonc", ".json5"), "json"),
    **dict.fromkeys((".toml", ".ini", ".cfg", ".conf", ".env"), "config"),
    **dict.fromkeys((".cu", ".cuh"), "cuda"),
    **dict.fromkeys((".c", ".cc", ".cpp", ".cxx", ".h", ".hh", ".hpp", ".hxx", ".inl"), "c++"),
    **dict.fromkeys((".pyx", ".pxd", ".pxi"), "cython"),
    **dict.fromkeys((".cmake", ".mk", ".bzl"), "build"),
    **dict.fromkeys((".md", ".rst", ".markdown"), "prose"),
}
_NAMES = {
    "dockerfile": "docker",
    "containerfile": "docker",
    "makefile": "build",
    "gnumakefile": "build",
    "cmakelists.txt": "build",
    "meson.build": "build",
    "build.bazel": "build",
    "workspace": "build",
    "pyproject.toml": "requirements",
    "setup.cfg": "requirements",
    "pipfile": "requirements",
    ".env": "shell",
    ".envrc": "shell",
}
# Written by tools from other files, where the choice is made.
_GENERATED = frozenset(
    {"package-lock.json", "pipfile.lock", "poetry.lock", "uv.lock", "conda-lock.yml"}
)
_REQUIREMENTS = re.compile(
    r"(?:[\w.-]*requirements?[\w.-]*|[\w.-]*constraints?[\w.-]*)\.(?:txt|in)"
)
_CONDA = re.compile(r"(?:[\w.-]*environment[\w.-]*|conda[\w.-]*|env)\.ya?ml")
_PROSE = re.compile(r"(?:readme|install|changelog|licen[cs]e|notice|contributing)[\w.-]*\.txt")


def language_of(path: str) -> str | None:
    """Say what a file is by its name; None for files that are not looked into.

    Python files are the engine's, and None here.

    Args:
        path: With forward slashes; only names count, the file is not opened.
    """
    name = posixpath.basename(path).lower()
    if name in _GENERATED:
        return None
    if name in _NAMES:
        return _NAMES[name]
    if _REQUIREMENTS.fullmatch(name) or _CONDA.fullmatch(name):
        return "requirements"
    folder = posixpath.basename(posixpath.dirname(path)).lower()
    if folder == "requirements" and name.endswith((".txt", ".in")):
        return "requirements"
    if name.startswith(("dockerfile.", "containerfile.")):
        return "docker"
    if _PROSE.fullmatch(name):
        return "prose"
    return _SUFFIXES.get(posixpath.splitext(name)[1])
