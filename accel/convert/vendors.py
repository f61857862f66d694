"""What each vendor's PyTorch calls the things that `torch.cuda` has, so that one table serves all.

The rules are written for CUDA. For another source the syntax tree is read in CUDA's words: where
the text has `torch.npu.amp`, `.npu()`, `"npu:0"` and `"hccl"`, the tree has `torch.cuda.amp`,
`.cuda()`, `"cuda:0"` and `"nccl"`, and the other way round, so that a program with branches for
both keeps the one that is not asked about. Places and text stay those of the file.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass

from accel.convert.options import SourceName

# A string may name a device only if it has no blanks and is no path.
_MAY_NAME = re.compile(r"[\w.:,{}%-]+")
# In a message: what the program is bound to, and words of code. A plain `CUDA` is CUDA itself.
_BOUND = re.compile(r"<(CUDA|NCCL)>")
_CODE = re.compile(r"(?<![\w/])[A-Za-z_]\w*(?:\.\w+)*(?![\w/])")


@dataclass(frozen=True)
class Vendor:
    """One vendor's names.

    Attributes:
        name: As on the command line.
        words: Its names of attributes, functions and devices, and CUDA's for them.
        renames: Dotted names as they are after that, and CUDA's; longest first.
        package: What a program imports to have the module; "" where torch brings it.
    """

    name: SourceName
    words: tuple[tuple[str, str], ...] = ()
    renames: tuple[tuple[str, str], ...] = ()
    package: str = ""

    def canonical(self, dotted: str) -> str:
        """A dotted name of the exchanged tree as the tables have it."""
        for name, known in self.renames:
            if dotted == name or dotted.startswith(f"{name}."):
                return known + dotted[len(name) :]
        return dotted

    def known(self, dotted: str) -> str:
        """A dotted name of the file as the tables have it."""
        return self.canonical(_dotted(dotted, self._table)) if self.words else dotted

    def exchange(self, tree: ast.AST) -> None:
        """Put CUDA's words in the place of the vendor's in a tree, and the other way round."""
        if not self.words:
            return
        table = self._table
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                node.attr = table.get(node.attr, node.attr)
            elif isinstance(node, ast.ClassDef):
                for item in node.body:  # a method of that name, as `is_cuda` is an attribute
                    if isinstance(item, (ast.FunctionDef, ast.AsyncFunctionDef)):
                        item.name = table.get(item.name, item.name)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                node.value = _exchanged(node.value, table)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                node.module = self.canonical(_dotted(node.module, table))
                for alias in node.names:
                    _rename(alias, table)
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    # `import torch.npu` binds torch; a root of its own stays what it is.
                    if alias.asname or alias.name.startswith("torch."):
                        alias.name = self.canonical(_dotted(alias.name, table))

    def read(self, text: str) -> str:
        """A string of another file as the exchanged tree would have it."""
        return _exchanged(text, self._table) if self.words else text

    def own(self, word: str) -> str:
        """The vendor's word for one of CUDA's, as other files of the tree have it."""
        return self._table.get(word, word)

    @property
    def _table(self) -> dict[str, str]:
        return {**dict(self.words), **{theirs: own for own, theirs in self.words}}

    def spoken(self, message: str) -> str:
        """A rule's message in the words of the program.

        A rule writes `<CUDA>` or `<NCCL>` where it means what the program is bound to, and `CUDA`
        where it means CUDA, whatever the program is. Words of code, as `torch.cuda.Stream`,
        `cuda()` and `'cuda:0'`, are the exchanged tree's, and become the file's again.
        """
        if self.words:
            # One way only: a rule may quote the file's text, which has the vendor's words.
            table = {theirs: own for own, theirs in self.words}
            message = _CODE.sub(lambda match: _coded(match.group(), table), message)
        return _BOUND.sub(lambda match: self.own(match[1]), message)


def _coded(name: str, table: dict[str, str]) -> str:
    return name if name in table and name.isupper() else _dotted(name, table)


def _dotted(name: str, table: dict[str, str]) -> str:
    return ".".join(table.get(part, part) for part in name.split("."))


def _rename(alias: ast.alias, table: dict[str, str]) -> None:
    """An imported name, which the file goes on calling as before."""
    name = table.get(alias.name)
    if name is not None:
        alias.asname = alias.asname or alias.name
        alias.name = name


def _exchanged(text: str, table: dict[str, str]) -> str:
    if not _MAY_NAME.fullmatch(text):
        return text
    return re.sub(r"[A-Za-z_]+", lambda match: table.get(match.group(), match.group()), text)


def _vendor(name: SourceName, package: str, backend: str, **renames: str) -> Vendor:
    upper = name.upper()
    words = (
        (f"is_{name}", "is_cuda"),
        (f"{name}_stream", "cuda_stream"),
        (name, "cuda"),
        (upper, "CUDA"),
        (f"{upper}Graph", "CUDAGraph"),
        (backend, "nccl"),
        (backend.upper(), "NCCL"),
        (f"is_{backend}_available", "is_nccl_available"),
        (f"ProcessGroup{backend.upper()}", "ProcessGroupNCCL"),
    )
    known = {
        f"{package}.cuda": "torch.cuda",
        f"{package}.profiler.ProfilerActivity": "torch.profiler.ProfilerActivity",
        **{key.replace("__", "."): value for key, value in renames.items()},
    }
    return Vendor(name, words, tuple(sorted(known.items(), key=lambda p: -len(p[0]))), package)


_VENDORS = {
    "cuda": Vendor("cuda"),
    "npu": _vendor(
        "npu", "torch_npu", "hccl",
        torch__cuda__mstx="torch.cuda.nvtx",
        torch_npu__cuda__mstx="torch.cuda.nvtx",
        torch__cuda__matmul__allow_hf32="torch.backends.cuda.matmul.allow_tf32",
        torch_npu__cuda__matmul__allow_hf32="torch.backends.cuda.matmul.allow_tf32",
        torch__cuda__conv__allow_hf32="torch.backends.cudnn.allow_tf32",
        torch_npu__cuda__conv__allow_hf32="torch.backends.cudnn.allow_tf32",
    ),
    "musa": _vendor(
        "musa", "torch_musa", "mccl",
        torch_musa__core__amp="torch.cuda.amp", torch_musa__amp="torch.cuda.amp",
    ),
    "mlu": _vendor("mlu", "torch_mlu", "cncl", torch_mlu__core__mlu_model="torch.cuda"),
}  # fmt: skip


def vendor_of(source: SourceName) -> Vendor:
    """The vendor that a run's input is bound to."""
    return _VENDORS[source]
