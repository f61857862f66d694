"""torch's float32 precision state, saved and restored.

torch keeps it twice: two older flags (`set_float32_matmul_precision`, `cudnn.allow_tf32`) and a
newer table of nine entries that inherit from each other (generic, a backend's, an operator's).
A reader tells what an entry resolves to, not whether it inherits that, and the older flags refuse
to be read while the two disagree. So writing back what was read would pin entries that inherited,
and a later `torch.backends.fp32_precision = "ieee"` would pass them by in silence. Here each entry
is asked by moving its parents for a moment.

One state cannot be restored: until first written, cuDNN's entries are tf32 and yet inherit
(torch 2.13); no setter says that again. They get the value that computes the same now.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch

_BACKENDS = ("cuda", "mkldnn")
_OPERATORS = ("matmul", "conv", "rnn")
_GENERIC = ("generic", "all")
_LEAVES = tuple(itertools.product(_BACKENDS, _OPERATORS))


# torch.backends wraps this pair incompletely: mkldnn's setter writes the generic entry.
def read(backend: str, operator: str) -> str:
    """What an entry resolves to: ieee, tf32, bf16 or none."""
    return str(torch._C._get_fp32_precision_getter(backend, operator))


def write(backend: str, operator: str, value: str) -> None:
    """Set an entry; `none` makes it inherit."""
    torch._C._set_fp32_precision_setter(backend, operator, value)


@dataclass(frozen=True)
class Float32State:
    """The whole state.

    Attributes:
        entries: Each entry's own value: ieee, tf32, bf16, none if it inherits, or untouched if it
            inherits and is tf32 where there is nothing to inherit.
        matmul_precision: highest, high or medium.
        cudnn_allow_tf32: The flag, also where torch refuses to tell it.
    """

    entries: dict[tuple[str, str], str]
    matmul_precision: str
    cudnn_allow_tf32: bool

    @classmethod
    def capture(cls) -> Float32State:
        """Read it; entries are moved for a moment and put back."""
        parents = _parents_values()
        for key in parents:
            write(*key, "none")
        leaves = {key: _own_value(key) for key in _LEAVES}
        state = cls({**parents, **leaves}, _matmul_flag(), _cudnn_flag(leaves))
        state._write_entries()
        return state

    def restore(self) -> None:
        """Make torch's state this one."""
        now = Float32State.capture()
        if now == self:
            return
        if now.matmul_precision != self.matmul_precision:
            torch.set_float32_matmul_precision(self.matmul_precision)
        if now.cudnn_allow_tf32 != self.cudnn_allow_tf32:
            torch._C._set_cudnn_allow_tf32(self.cudnn_allow_tf32)
        self._write_entries()
        for key in _LEAVES:
            if self.entries[key] == "untouched" != now.entries[key]:
                bare = all(self.entries[parent] == "none" for parent in ((key[0], "all"), _GENERIC))
                write(*key, "tf32" if bare else "none")

    def _write_entries(self) -> None:
        for key, value in self.entries.items():
            if value != "untouched":
                write(*key, value)


def _parents_values() -> dict[tuple[str, str], str]:
    values = {_GENERIC: read(*_GENERIC)}
    write(*_GENERIC, "none")
    for backend in _BACKENDS:
        values[backend, "all"] = read(backend, "all")
    return values


def _own_value(key: tuple[str, str]) -> str:
    """A leaf's own value, while its parents are none."""
    alone = read(*key)
    if alone == "none":
        return "none"
    seen = set()
    for probe in ("tf32", "ieee"):
        write(key[0], "all", probe)
        seen.add(read(*key))
    write(key[0], "all", "none")
    return "untouched" if len(seen) > 1 else alone


def _matmul_flag() -> str:
    for backend in _BACKENDS:  # any flag may be read while neither product is reduced
        write(backend, "matmul", "ieee")
    return str(torch.get_float32_matmul_precision())


def _cudnn_flag(leaves: dict[tuple[str, str], str]) -> bool:
    for key in (("cuda", "conv"), ("cuda", "rnn")):
        if leaves[key] != "untouched":  # which is tf32 by itself now
            write(*key, "tf32")
    try:
        return bool(torch._C._get_cudnn_allow_tf32())
    except RuntimeError:  # so it disagrees with tf32
        return False


def contradictions(
    matmul_precision: str | None,
    matmul_entries: tuple[str | None, str | None],
    cudnn_allow_tf32: bool | None,
    cudnn_entries: tuple[str | None, str | None],
) -> list[str]:
    """Older flags that the newer entries beside them would undo, in words.

    Args:
        matmul_precision: highest, high, medium; None asks for nothing.
        matmul_entries: Of CUDA's and oneDNN's products.
        cudnn_allow_tf32: The flag; None asks for nothing.
        cudnn_entries: Of cuDNN's convolutions and recurrent layers.
    """
    full = frozenset({"ieee", "none"})
    implied = {
        "highest": (full, full),
        "high": (frozenset({"tf32"}), frozenset({"tf32"})),
        "medium": (frozenset({"tf32"}), frozenset({"bf16"})),
    }
    wanted = implied.get(matmul_precision or "", ())
    found = []
    if wanted and _all_against(matmul_entries, wanted):
        found.append(
            f"float32_matmul_precision={matmul_precision!r} against "
            f"cuda_matmul_fp32={matmul_entries[0]!r} and mkldnn_matmul_fp32={matmul_entries[1]!r}"
        )
    if cudnn_allow_tf32 is not None:
        tf32 = frozenset({"tf32"}) if cudnn_allow_tf32 else full
        if _all_against(cudnn_entries, (tf32, tf32)):
            found.append(
                f"cudnn_allow_tf32={cudnn_allow_tf32} against cudnn_conv_fp32="
                f"{cudnn_entries[0]!r} and cudnn_rnn_fp32={cudnn_entries[1]!r}"
            )
    return found


def _all_against(entries: tuple[str | None, ...], wanted: tuple[frozenset[str], ...]) -> bool:
    pairs = itertools.zip_longest(entries, wanted)
    return all(entry is not None and entry not in allowed for entry, allowed in pairs)
