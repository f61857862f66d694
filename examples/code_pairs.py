"""Functions of Python's standard library and what their docstrings say of them: 5,700 pairs.

The source is what `ast` writes of a function without its docstring, so that no comment is left in
it. All functions of a module are held out or none: neighbours share names and habits.
"""

import ast
import re
import sys
import sysconfig
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

LEAST_WORDS, LEAST_NODES = 4, 20  # of a docstring and of a function's syntax tree
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")  # readXMLFile: read, XML, File


class Functions(NamedTuple):
    """What `read_functions` returns; row i of everything is one function.

    Attributes:
        names: Where each is, such as `json.decoder.py_scanstring`.
        sources: Without docstring and comments.
        docstrings: Without indentation.
        modules: `[N]` int64, equal for functions of one top-level module.
        groups: `[N]` int64, equal where docstrings are: any of these functions is right.
    """

    names: list[str]
    sources: list[str]
    docstrings: list[str]
    modules: Tensor
    groups: Tensor


def read_functions() -> Functions:
    """Every function of this Python's standard library that says what it does."""
    root = Path(sysconfig.get_path("stdlib"))
    names, sources, docstrings, modules = [], [], [], []
    for number, module in enumerate(sorted(sys.stdlib_module_names)):
        files = [root / f"{module}.py", *sorted((root / module).rglob("*.py"))]
        for path in (path for path in files if path.exists()):
            parts = path.relative_to(root).with_suffix("").parts
            if {"test", "tests"} & set(parts):  # files that are wrong on purpose
                continue
            for name, source, docstring in _documented(path.read_bytes()):
                names.append(".".join([*parts, name]))
                sources.append(source)
                docstrings.append(docstring)
                modules.append(number)
    known: dict[str, int] = {}
    groups = [known.setdefault(text, len(known)) for text in docstrings]
    return Functions(names, sources, docstrings, torch.tensor(modules), torch.tensor(groups))


def split(modules: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Rows to train with, and rows held out: whole modules, about that share of all rows."""
    sizes = torch.bincount(modules)
    order = torch.randperm(len(sizes), generator=torch.Generator().manual_seed(seed))
    chosen = order[sizes[order].cumsum(0) <= share * len(modules)]
    is_out = torch.isin(modules, chosen)
    return (~is_out).nonzero().flatten(), is_out.nonzero().flatten()


def hashed_words(texts: Iterable[str], buckets: int, longest: int = 256) -> Tensor:
    """Numbers of the words of a text and of the parts of its identifiers.

    Args:
        texts: English or Python.
        buckets: Numbers are from 1 to `buckets - 1`; two words may share one.
        longest: How many different words count, the first ones.

    Returns:
        `[N, F]` int64, filled up with 0.
    """
    rows = []
    for text in texts:
        words = list(dict.fromkeys(_stem(word.lower()) for word in _WORD.findall(text)))[:longest]
        rows.append(torch.tensor([zlib.crc32(word.encode()) % (buckets - 1) + 1 for word in words]))
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).long()


def _documented(file: bytes) -> Iterator[tuple[str, str, str]]:
    """Name, source and docstring of a file's functions."""
    for node in ast.walk(ast.parse(file)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node) or ""
            nodes = sum(1 for _ in ast.walk(node))
            if len(docstring.split()) >= LEAST_WORDS and nodes >= LEAST_NODES:
                node.body = node.body[1:] or [ast.Pass()]
                yield node.name, ast.unparse(node), docstring


def _stem(word: str) -> str:
    """Without an English ending: returns, returned and returning are one word."""
    return re.sub(r"(?<=\w{3})(ing|ed|es|s|e)$", "", word)
