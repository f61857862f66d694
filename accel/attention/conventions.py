"""Attention states of other libraries, to and from ours.

Every library that hands out a log-sum-exp has its own layout, base and mark for a row that saw no
key, and merging two of them as they come gives plausible, wrong numbers. `CONVENTIONS` holds what
each does; a `Convention` of one's own serves for a kernel that is not in it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from accel.attention.layouts import from_axes, groups_of, to_axes
from accel.attention.state import LSE_DTYPES, AttentionState, check_state

Empty: TypeAlias = "Tensor | Literal[False] | None"
_NO_MAXIMUM = torch.finfo(torch.float32).min


@dataclass(frozen=True)
class Convention:
    """How a library lays out an attention state; layouts as in `"b t (h d)"`.

    Attributes:
        out: Layout of the output: `b` batch, `t` queries, `h` heads, `d` head size; axes in
            parentheses are merged; without `b` the documents are packed along `t`.
        statistics: Layout of the log-sum-exp, or of both maximum and sum. A number is a repetition.
        base: Of the logarithm: `math.e` or 2.
        empty: What the log-sum-exp of a row that saw no key holds; the first is what we write. None
            where nobody says: then the caller must.
        max_and_sum: Two statistics, of which `max + log(sum)` is the log-sum-exp; an empty row has
            the sum 0.
        rows_multiple: Rows of the statistics are padded with +inf to a multiple of it.
        by_document: The statistics, of the shape `statistics`, lie in memory by document, head and
            row instead.
    """

    out: str
    statistics: str
    base: float = math.e
    empty: tuple[float, ...] | None = (-math.inf,)
    max_and_sum: bool = False
    rows_multiple: int = 1
    by_document: bool = False

    def __post_init__(self) -> None:
        for layout, allowed in ((self.out, "bhtd"), (self.statistics, "bht")):
            axes = [a for group in groups_of(layout) for a in group if not a.isdigit()]
            if len(set(axes)) != len(axes) or set(axes) | {"b"} != set(allowed):
                raise ValueError(f"a layout has the axes {', '.join(allowed)} once, not [{layout}]")
        if self.base not in (math.e, 2):
            raise ValueError(f"the base of a log-sum-exp is e or 2, not {self.base}")

    @property
    def ambiguous(self) -> bool:
        """Whether an empty row cannot be told from its log-sum-exp alone."""
        return self.empty is None or any(math.isfinite(mark) for mark in self.empty)


def _npu(out: str, statistics: str, by_document: bool = False) -> Convention:
    return Convention(out, statistics, max_and_sum=True, by_document=by_document)


_DENSE, _ROWS = "b h t d", "b h t"
_FLASH = (math.inf, -math.inf)  # +inf, and -inf from a call that splits the keys

CONVENTIONS: Mapping[str, Convention] = MappingProxyType(
    {
        "accel": Convention(_DENSE, _ROWS),
        "base2": Convention(_DENSE, _ROWS, base=2),
        # _scaled_dot_product_flash_attention_for_cpu: 0.0 is an ordinary value too.
        "aten_cpu": Convention(_DENSE, _ROWS, empty=(0.0,)),
        # _scaled_dot_product_{flash,efficient,cudnn}_attention on CUDA.
        "aten_flash": Convention(_DENSE, _ROWS, empty=_FLASH),
        "aten_efficient": Convention(_DENSE, _ROWS, rows_multiple=32),
        "aten_cudnn": Convention(_DENSE, "b h t 1", empty=None),
        "flex_attention": Convention(_DENSE, _ROWS),
        "flash_attention": Convention("b t h d", _ROWS, empty=_FLASH),
        "flash_attention_varlen": Convention("t h d", "h t", empty=_FLASH),
        "flashinfer": Convention("t h d", "t h", base=2),
        "xformers": Convention("b t h d", _ROWS),
        # softmax_max and softmax_sum by input_layout; TND: by softmax_layout="TND" or the default.
        "npu_fusion_attention_bnsd": _npu(_DENSE, "b h t 8"),
        "npu_fusion_attention_bsnd": _npu("b t h d", "b h t 8"),
        "npu_fusion_attention_bsh": _npu("b t (h d)", "b h t 8"),
        "npu_fusion_attention_sbh": _npu("t b (h d)", "b h t 8"),
        "npu_fusion_attention_tnd": _npu("t h d", "t h 8"),
        "npu_fusion_attention_ntd": _npu("t h d", "t h 8", by_document=True),
        "npu_fused_infer_attention_score_bnsd": Convention(_DENSE, "b h t 1", empty=None),
        "npu_fused_infer_attention_score_bsnd": Convention("b t h d", "b h t 1", empty=None),
        "npu_fused_infer_attention_score_bsh": Convention("b t (h d)", "b h t 1", empty=None),
        "npu_fused_infer_attention_score_tnd": Convention("t h d", "t h 1", empty=None),
        # Both what it takes and what it returns.
        "npu_attention_update": Convention("(b t h) d", "(b t h)"),
    }
)


def from_convention(
    convention: str | Convention,
    out: Tensor,
    *statistics: Tensor,
    empty: Empty = None,
    cu_seqlens: Sequence[int] | Tensor | None = None,
    sizes: tuple[int, int, int] | None = None,
) -> AttentionState:
    """A state from another library's output and statistics.

        out, lse, _ = flash_attn_func(q, k, v, return_attn_probs=True)
        state = from_convention("flash_attention", out, lse)

    Args:
        convention: A name in `CONVENTIONS`, or a `Convention`.
        out: The output, in the layout of the convention, of any floating dtype.
        *statistics: The log-sum-exp, or maximum and sum; float32 or float64.
        empty: bool, broadcasts to `[B, H, T]`: the rows that saw no key; False: none. Required
            where the convention has no mark for them that is no ordinary value; elsewhere it adds
            to the marks, such as where a fully masked row was given uniform weights.
        cu_seqlens: `[N + 1]`, where the statistics lie by document.
        sizes: `(B, H, T)`, where the layout does not tell.

    Returns:
        `out` `[B, H, T, D_v]` in the given dtype (B is 1 for packed documents), and `lse`
        `[B, H, T]`. Differentiable.

    Raises:
        TypeError: Dtypes that do not fit.
        ValueError: An unknown name, shapes that do not fit, or `empty` or `cu_seqlens` missing.
    """
    name, form = _named(convention)
    _check_tensors(name, form, out, statistics)
    if form.ambiguous and empty is None:
        raise ValueError(
            f"{name} does not tell rows that saw no key from others by their log-sum-exp; give "
            "empty=, a bool tensor that broadcasts to [B, H, T], or False if there is none"
        )
    known = {} if sizes is None else dict(zip("bht", sizes, strict=True))
    if form.rows_multiple > 1:
        out = to_axes(f"{name}'s out", out, form.out, "bhtd", known)
    if form.by_document:
        statistics = tuple(_in_order(name, s, cu_seqlens) for s in statistics)
    padded = "t" if form.rows_multiple > 1 else ""
    rows = [
        to_axes(f"{name}'s statistics", s, form.statistics, "bht", known, padded)
        for s in statistics
    ]
    if form.rows_multiple == 1:
        out = to_axes(f"{name}'s out", out, form.out, "bhtd", known)
    nothing = _nothing(name, form, rows, empty)
    lse = rows[0].masked_fill(nothing, 0.0)
    if form.max_and_sum:
        lse = lse + torch.log(rows[1].masked_fill(nothing, 1.0))
    lse = lse * math.log(form.base) if form.base != math.e else lse
    return AttentionState(
        out.masked_fill(nothing.unsqueeze(-1), 0.0), lse.masked_fill(nothing, -torch.inf)
    )


def to_convention(
    convention: str | Convention,
    state: AttentionState,
    *,
    cu_seqlens: Sequence[int] | Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Another library's output and statistics from a state: the reverse of `from_convention`.

    Args:
        convention: A name in `CONVENTIONS`, or a `Convention`.
        state: `out` `[B, H, T, D_v]`; B is 1 for layouts of packed documents.
        cu_seqlens: `[N + 1]`, where the statistics lie by document.

    Returns:
        `(out, lse)` or `(out, maximum, sum)`, contiguous, in the dtypes of the state. Where maximum
        and sum are wanted these are the log-sum-exp and 1, and the least float32 and 0 for a row
        that saw no key. Differentiable.

    Raises:
        TypeError: Not a state, or dtypes that do not fit.
        ValueError: An unknown name, a batch where the layout has none, or a row that saw no key
            where nobody says how the library marks one.
    """
    name, form = _named(convention)
    check_state(state, "state")
    nothing = state.lse == -torch.inf
    if form.empty is None and bool(nothing.any()):
        raise ValueError(f"{name} has no known mark for rows that saw no key, and there are some")
    marks = (-torch.inf,) if form.empty is None else form.empty
    lse = state.lse.masked_fill(nothing, 0.0)
    lse = lse / math.log(form.base) if form.base != math.e else lse
    rows = [lse.masked_fill(nothing, _NO_MAXIMUM if form.max_and_sum else marks[0])]
    if form.max_and_sum:
        rows.append((~nothing).to(lse.dtype))
    over = -state.lse.shape[-1] % form.rows_multiple
    if over:
        rows = [torch.nn.functional.pad(r, (0, over), value=torch.inf) for r in rows]
    laid = [from_axes(f"{name}'s statistics", r, "bht", form.statistics) for r in rows]
    if form.by_document:
        laid = [_by_document(name, r, cu_seqlens) for r in laid]
    out = state.out.masked_fill(nothing.unsqueeze(-1), 0.0)
    return from_axes(f"{name}'s out", out, "bhtd", form.out), *laid


def _named(convention: str | Convention) -> tuple[str, Convention]:
    if isinstance(convention, Convention):
        return "the convention", convention
    if convention not in CONVENTIONS:
        raise ValueError(
            f"no attention convention is called {convention!r}; there are {', '.join(CONVENTIONS)}"
        )
    return convention, CONVENTIONS[convention]


def _check_tensors(
    name: str, form: Convention, out: object, statistics: tuple[object, ...]
) -> None:
    wanted = 2 if form.max_and_sum else 1
    if len(statistics) != wanted:
        kinds = "maximum and sum" if form.max_and_sum else "a log-sum-exp"
        raise TypeError(f"{name} takes out and {kinds}, not {len(statistics)} statistics")
    for tensor in (out, *statistics):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} takes tensors, not {type(tensor).__name__}")
        assert isinstance(out, Tensor)  # noqa: S101
        if tensor.device != out.device:
            raise ValueError(f"{name}'s tensors are on {out.device} and {tensor.device}; move them")
        if tensor is not out and tensor.dtype not in LSE_DTYPES:
            raise TypeError(f"{name}'s statistics must be float32 or float64, not {tensor.dtype}")
    assert isinstance(out, Tensor)  # noqa: S101
    if not out.dtype.is_floating_point:
        raise TypeError(f"{name}'s out must be of a floating dtype, not {out.dtype}")


def _nothing(name: str, form: Convention, rows: list[Tensor], empty: Empty) -> Tensor:
    """Which rows saw no key, bool `[B, H, T]`."""
    if form.max_and_sum:
        nothing = rows[1] == 0
    else:
        nothing = torch.zeros_like(rows[0], dtype=torch.bool)
        for mark in () if form.ambiguous else form.empty or ():
            nothing = nothing | (rows[0] == mark)
    if empty is None or empty is False:
        return nothing
    if not isinstance(empty, Tensor) or empty.dtype != torch.bool:
        kind = empty.dtype if isinstance(empty, Tensor) else type(empty).__name__
        raise TypeError(f"{name}'s empty must be a bool tensor or False, not {kind}")
    try:
        return nothing | empty.to(nothing.device).expand(nothing.shape)
    except RuntimeError:
        raise ValueError(
            f"{name}'s empty must broadcast to [B, H, T] = {tuple(nothing.shape)}, not "
            f"{tuple(empty.shape)}"
        ) from None


def _in_order(name: str, statistic: Tensor, cu_seqlens: Sequence[int] | Tensor | None) -> Tensor:
    """`[T, N, 8]` in the order of that shape, from one that lies as `[N, S, 8]` by document."""
    if statistic.dim() != 3:
        raise ValueError(f"{name}'s statistics must be [T, N, 8], not {tuple(statistic.shape)}")
    places = _places(name, statistic, cu_seqlens)
    return statistic.reshape(-1, statistic.shape[2])[places].view(statistic.shape)


def _by_document(name: str, statistic: Tensor, cu_seqlens: Sequence[int] | Tensor | None) -> Tensor:
    """The reverse of `_in_order`."""
    order = torch.argsort(_places(name, statistic, cu_seqlens))
    return statistic.reshape(-1, statistic.shape[2])[order].view(statistic.shape)


def _places(name: str, statistic: Tensor, cu_seqlens: Sequence[int] | Tensor | None) -> Tensor:
    """For each query and head, flattened, the row in the memory of one that lies by document."""
    if cu_seqlens is None:
        raise ValueError(f"{name}'s statistics lie by document; give cu_seqlens=")
    rows, heads, device = statistic.shape[0], statistic.shape[1], statistic.device
    starts = torch.as_tensor(cu_seqlens, dtype=torch.int64, device=device)
    on_cpu = not isinstance(cu_seqlens, Tensor) or cu_seqlens.device.type == "cpu"
    if on_cpu:
        numbers = starts.tolist()
        if numbers[:1] != [0] or numbers[-1] != rows or numbers != sorted(numbers):
            raise ValueError(
                f"{name}'s cu_seqlens must ascend from 0 to the {rows} queries, not {numbers[:8]}"
            )
    row = torch.arange(rows, device=device)
    document = torch.searchsorted(starts, row, right=True) - 1
    start, length = starts[document], starts[document + 1] - starts[document]
    head = torch.arange(heads, device=device)
    places = start.unsqueeze(1) * heads + head * length.unsqueeze(1) + (row - start).unsqueeze(1)
    return places.flatten()
