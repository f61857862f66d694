"""segmented_attention_varlen beside a loop over documents, keys and FlashAttention's rules."""

import inspect
import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import accel.attention.varlen as module
from accel.attention import documents, segmented_attention
from accel.attention.varlen import segmented_attention_varlen
from accel.testing import assert_backward_stable

BACKENDS = [None, "reference"]
# Documents: no queries, as many of both, more keys, more queries, no keys.
CU_Q = [0, 0, 5, 7, 16, 18]
CU_K = [0, 3, 8, 17, 21, 21]


def by_definition(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_q: list[int],
    cu_k: list[int],
    *,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    scale: float | None = None,
    slopes: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """FlashAttention's documentation with the whole score matrix; an empty row's lse reads 0."""
    heads, group = query.shape[1], query.shape[1] // key.shape[1]
    key, value = (t.repeat_interleave(group, 1) for t in (key, value))
    scores = torch.einsum("thd,shd->hts", query, key)
    scores = scores * (1 / math.sqrt(query.shape[2]) if scale is None else scale)
    scores = softcap * torch.tanh(scores / softcap) if softcap else scores
    seen = torch.zeros(scores.shape[1:], dtype=torch.bool)
    distance = torch.zeros(heads, *seen.shape, dtype=torch.int64)
    owner = torch.zeros(seen.shape[0], dtype=torch.int64)
    for n, ((q0, q1), (k0, k1)) in enumerate(zip(pairwise(cu_q), pairwise(cu_k), strict=True)):
        owner[q0:q1] = n
        at = torch.arange(q1 - q0).unsqueeze(1) + (k1 - k0) - (q1 - q0)
        j = torch.arange(k1 - k0)
        inside = (j <= at) | torch.tensor(not causal)
        inside &= (j >= at - window_size[0]) | torch.tensor(window_size[0] == -1)
        inside &= (j <= at + window_size[1]) | torch.tensor(window_size[1] == -1)
        seen[q0:q1, k0:k1] = inside
        distance[:, q0:q1, k0:k1] = (at - j).abs()
    if slopes is not None:
        of_row = slopes[owner].T if slopes.dim() == 2 else slopes.unsqueeze(1)
        scores = scores - of_row.unsqueeze(2) * distance
    none = ~seen.any(1)
    scores = scores.masked_fill(~seen, -1e30)
    probabilities = torch.softmax(scores, -1).masked_fill(none.unsqueeze(1), 0.0)
    lse = torch.logsumexp(scores, -1).masked_fill(none, 0.0)
    return torch.einsum("hts,shd->thd", probabilities, value), lse


def packed(
    queries: int = 18, keys: int = 21, heads: int = 4, key_heads: int = 2, width: int = 8,
    value_width: int = 8, dtype: torch.dtype = torch.float32,
) -> list[Tensor]:  # fmt: skip
    shapes = (queries, heads, width), (keys, key_heads, width), (keys, key_heads, value_width)
    return [torch.randn(shape).to(dtype) for shape in shapes]


def finite(found: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return found[0], found[1].masked_fill(found[1] == -math.inf, 0.0)


def check(
    tensors: list[Tensor], options: dict[str, Any], cu_q: Any = CU_Q, cu_k: Any = CU_K,
    slopes: Tensor | None = None, **given: Any,
) -> None:  # fmt: skip
    """Outputs, log-sum-exps and all gradients against the definition in float64."""
    numbers = [c.tolist() if isinstance(c, Tensor) else c for c in (cu_q, cu_k)]

    def ours(q: Tensor, k: Tensor, v: Tensor, *slope: Tensor) -> tuple[Tensor, Tensor]:
        return finite(
            segmented_attention_varlen(
                q, k, v, cu_q, cu_k, **options, **given,
                alibi_slopes=slope[0] if slope else None, return_attn_probs=True,
            )  # type: ignore[arg-type]
        )  # fmt: skip

    def truth(q: Tensor, k: Tensor, v: Tensor, *slope: Tensor) -> tuple[Tensor, Tensor]:
        return by_definition(q, k, v, *numbers, **options, slopes=slope[0] if slope else None)

    assert_backward_stable(ours, *tensors, *([] if slopes is None else [slopes]), reference=truth)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"causal": True},
        {"window_size": (2, 1)},
        {"window_size": (0, 0)},
        {"window_size": (2, -1)},
        {"window_size": (-1, 1)},
        {"causal": True, "window_size": (3, 5)},
        {"causal": True, "window_size": (-1, 5)},
        {"softcap": 2.5, "causal": True},
    ],
)
def test_equals_the_definition(options, backend) -> None:
    check(packed(), options, backend=backend)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(dtype) -> None:
    check(packed(dtype=dtype), {"causal": True})


@pytest.mark.parametrize(
    "form", [list, tuple, torch.tensor, lambda c: torch.tensor(c, dtype=torch.int32)]
)
def test_boundaries_in_every_form(form) -> None:
    check(packed(value_width=5), {"causal": True}, form(CU_Q), form(CU_K))


@pytest.mark.parametrize("lengths", [[1], [1, 1, 1], [1, 63, 20], [0], [0, 0]])
def test_odd_lengths(lengths) -> None:
    cu = torch.tensor([0, *lengths]).cumsum(0)
    tensors = packed(int(cu[-1]), int(cu[-1]), key_heads=1)
    if cu[-1] == 0:
        out, lse = segmented_attention_varlen(*tensors, cu, cu, return_attn_probs=True)
        assert (out.shape, lse.shape) == ((0, 4, 8), (4, 0))
        return
    check(tensors, {"causal": True}, cu, cu)


def test_scale() -> None:
    tensors = packed()
    ours = segmented_attention_varlen(*tensors, CU_Q, CU_K, softmax_scale=0.3)
    truth = by_definition(*(t.double() for t in tensors), CU_Q, CU_K, scale=0.3)[0]
    torch.testing.assert_close(ours.double(), truth, rtol=1e-5, atol=1e-6)


def test_is_the_document_mask_in_another_layout(device) -> None:
    """Bit for bit, so that everything proved of `segmented_attention` holds."""
    tensors = [t.to(device.torch_device) for t in packed()]
    out, lse = segmented_attention_varlen(*tensors, CU_Q, CU_K, return_attn_probs=True)
    batched = [t.transpose(0, 1).unsqueeze(0) for t in tensors]
    state = segmented_attention(*batched, mask=documents(CU_Q, CU_K), return_lse=True)
    assert torch.equal(out, state.out[0].transpose(0, 1))
    assert torch.equal(lse, state.lse[0])
    assert lse.shape == (4, 18)


def test_tensors_that_are_views() -> None:
    qkv = torch.randn(16, 3, 4, 8)
    views = list(qkv.unbind(1))
    assert not views[0].is_contiguous()
    ours = segmented_attention_varlen(*views, CU_Q[:5], CU_Q[:5])
    copies = [v.contiguous() for v in views]
    assert torch.equal(ours, segmented_attention_varlen(*copies, CU_Q[:5], CU_Q[:5]))


def test_rows_that_see_nothing_and_rows_in_no_document() -> None:
    """Document 3 has more queries than keys, the last none; two queries are beyond the end."""
    tensors = packed(queries=20)
    out, lse = segmented_attention_varlen(*tensors, CU_Q, CU_K, causal=True, return_attn_probs=True)
    blind = [7, 8, 9, 10, 11, 16, 17, 18, 19]
    assert (out[blind] == 0).all()
    assert (lse[:, blind] == -math.inf).all()
    seeing = [row for row in range(20) if row not in blind]
    assert lse[:, seeing].isfinite().all()


def test_nothing_leaks_between_documents() -> None:
    tensors = packed()
    clean = segmented_attention_varlen(*tensors, CU_Q, CU_K)
    poisoned = [t.clone() for t in tensors]
    poisoned[1][8:17] = math.nan
    poisoned[2][8:17] = math.inf
    found = segmented_attention_varlen(*poisoned, CU_Q, CU_K)
    others = [row for row in range(18) if not 5 <= row < 7]
    assert torch.equal(found[others], clean[others])
    assert found[5:7].isnan().all()


# --- ALiBi ------------------------------------------------------------------------------------


def calls(monkeypatch) -> list[int]:
    made: list[int] = []
    attend = module.attend

    def counted(query: Tensor, *args: Any, **options: Any) -> Any:
        made.append(query.shape[2])
        return attend(query, *args, **options)

    monkeypatch.setattr(module, "attend", counted)
    return made


SLOPES = torch.tensor([0.5, 0.25, 0.125, 0.0625])


@pytest.mark.parametrize("options", [{}, {"causal": True}, {"window_size": (2, 1)}])
@pytest.mark.parametrize(
    ("cu_q", "cu_k", "made"),
    [
        (CU_K, CU_K, 1),  # its own keys: every document ends where its keys do
        ([0, 2, 9, 21], [0, 5, 12, 24], 1),  # other lengths, but ends three apart
        (CU_Q, CU_K, 5),  # ends apart by 3, 3, 10, 5, 3
        ([0, 0, 4], [0, 5, 8], 1),  # only one document has both
    ],
)
def test_alibi_counts_within_documents(cu_q, cu_k, made, options, monkeypatch) -> None:
    tensors = packed(cu_q[-1], cu_k[-1])
    counted = calls(monkeypatch)
    segmented_attention_varlen(*tensors, cu_q, cu_k, alibi_slopes=SLOPES, **options)
    assert len(counted) == made
    check(tensors, options, cu_q, cu_k, slopes=SLOPES)


def test_the_same_boundaries_need_not_be_read(monkeypatch) -> None:
    """On a device that would wait; the same tensor twice says it."""
    cu = torch.tensor(CU_K)
    counted = calls(monkeypatch)
    monkeypatch.setattr(module, "_numbers", None)
    segmented_attention_varlen(*packed(21, 21), cu, cu, alibi_slopes=SLOPES)
    assert len(counted) == 1


@pytest.mark.parametrize(("cu_q", "cu_k"), [(CU_Q, CU_K), (CU_K, CU_K), ([0, 4], [0, 4])])
def test_alibi_by_document(cu_q, cu_k) -> None:
    slopes = torch.rand(len(cu_q) - 1, 4)
    check(packed(cu_q[-1], cu_k[-1]), {"causal": True}, cu_q, cu_k, slopes=slopes)


def test_alibi_by_position_in_the_pack_would_be_wrong() -> None:
    """Negative control: what `alibi` over the document mask gives where ends differ."""
    tensors = packed()
    batched = [t.transpose(0, 1).unsqueeze(0) for t in tensors]
    wrong = segmented_attention(*batched, mask=documents(CU_Q, CU_K), bias=module.alibi(SLOPES))[
        0
    ].transpose(0, 1)
    truth = by_definition(*tensors, CU_Q, CU_K, slopes=SLOPES)[0]
    assert (wrong - truth).abs().max() > 1e-2


# --- dropout, pages ----------------------------------------------------------------------------


def test_dropout_is_that_of_segmented_attention() -> None:
    tensors = packed()
    batched = [t.transpose(0, 1).unsqueeze(0) for t in tensors]
    ours = segmented_attention_varlen(*tensors, CU_Q, CU_K, dropout_p=0.3, dropout_seed=7)
    theirs = segmented_attention(
        *batched, mask=documents(CU_Q, CU_K), dropout_p=0.3, dropout_seed=7
    )
    assert torch.equal(ours, theirs[0].transpose(0, 1))
    assert not torch.equal(ours, segmented_attention_varlen(*tensors, CU_Q, CU_K))


@pytest.mark.parametrize("page_size", [1, 4, 32])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"causal": True, "softcap": 3.0},
        {"window_size": (2, 1)},
        {"alibi_slopes": SLOPES},
        {"alibi_slopes": torch.linspace(0, 1, 20).view(5, 4)},
    ],
)
def test_keys_in_pages_are_the_same_keys(options, page_size) -> None:
    query, key, value = packed()
    lengths = [b - a for a, b in pairwise(CU_K)]
    most = max(-(-n // page_size) for n in lengths)
    table = torch.randperm(5 * most, dtype=torch.int32).view(5, most)
    pages = [torch.full((5 * most, page_size, 2, 8), math.nan) for _ in range(2)]
    for n, (start, stop) in enumerate(pairwise(CU_K)):
        for j in range(stop - start):
            for whole, packed_tensor in zip(pages, (key, value), strict=True):
                whole[table[n, j // page_size], j % page_size] = packed_tensor[start + j]
    ours = segmented_attention_varlen(
        query, *pages, CU_Q, CU_K, **options, block_table=table, return_attn_probs=True
    )
    theirs = segmented_attention_varlen(
        query, key, value, CU_Q, CU_K, **options, return_attn_probs=True
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


# --- arguments --------------------------------------------------------------------------------


def test_the_arguments_are_flash_attentions() -> None:
    names = {
        "query": ..., "key": ..., "value": ..., "cu_seqlens_q": ..., "cu_seqlens_k": ...,
        "max_seqlen_q": None, "max_seqlen_k": None, "dropout_p": 0.0, "softmax_scale": None,
        "causal": False, "window_size": (-1, -1), "softcap": 0.0, "alibi_slopes": None,
        "deterministic": False, "return_attn_probs": False, "block_table": None,
    }  # fmt: skip
    ours = inspect.signature(segmented_attention_varlen).parameters
    positional = {n: p for n, p in ours.items() if p.kind is not p.KEYWORD_ONLY}
    assert list(positional) == list(names)
    for name, default in names.items():
        wanted = inspect.Parameter.empty if default is ... else default
        assert positional[name].default == wanted


def test_maxima_and_determinism_change_nothing() -> None:
    tensors = packed()
    plain = segmented_attention_varlen(*tensors, CU_Q, CU_K)
    given = segmented_attention_varlen(*tensors, CU_Q, CU_K, 9, 50, deterministic=True)
    assert torch.equal(plain, given)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"cu_seqlens_q": [0, 5, 3, 18]}, ValueError, "must not descend"),
        ({"cu_seqlens_q": [0, 18]}, ValueError, "as many boundaries"),
        ({"cu_seqlens_q": [0, 0, 5, 7, 16, 19]}, ValueError, "beyond the length 18"),
        ({"cu_seqlens_k": [0, 3, 8, 17, 21, 22]}, ValueError, "beyond the length 21"),
        (
            {"cu_seqlens_k": [0, 3, 8, 17, 21, 22], "alibi_slopes": SLOPES},
            ValueError,
            "beyond 21 keys",
        ),
        (
            {"cu_seqlens_q": [0, 0, 5, 7, 16, 19], "alibi_slopes": SLOPES},
            ValueError,
            "beyond 18 queries",
        ),
        ({"cu_seqlens_q": torch.rand(6)}, ValueError, r"integers \[N \+ 1\]"),
        ({"max_seqlen_q": 8}, ValueError, "cu_seqlens_q is 9 long, and max_seqlen_q says 8"),
        ({"max_seqlen_k": 8}, ValueError, "max_seqlen_k says 8"),
        ({"max_seqlen_k": 8.0}, TypeError, "integer or None, not 8.0"),
        ({"query": torch.randn(1, 4, 18, 8)}, ValueError, r"packed as \[total_q, H, D\]"),
        ({"key": torch.randn(1, 2, 21, 8)}, ValueError, r"packed as \[total, H, D\]"),
        ({"value": None}, TypeError, "value must be a tensor, not NoneType"),
        ({"value": torch.randn(20, 2, 8)}, ValueError, "agree in batch, heads and length"),
        ({"key": torch.randn(21, 3, 8)}, ValueError, "agree in batch, heads and length"),
        ({"causal": 1}, TypeError, "causal must be True or False"),
        ({"window_size": 3}, TypeError, r"\(left, right\), not 3"),
        ({"window_size": (3, None)}, TypeError, "two integers"),
        ({"window_size": (-2, 0)}, ValueError, "at least 0, or -1"),
        ({"softcap": -1.0}, ValueError, "at least 0.0"),
        ({"softcap": None}, TypeError, "a number, not NoneType"),
        ({"dropout_p": 1.0}, ValueError, "dropout_p"),
        ({"alibi_slopes": [0.5] * 4}, TypeError, "must be a tensor"),
        ({"alibi_slopes": torch.rand(3, 4)}, ValueError, r"\[5, H\] here, not \(3, 4\)"),
        ({"alibi_slopes": torch.rand(3)}, ValueError, "slopes"),
        ({"block_table": torch.zeros(5, 1, dtype=torch.int32)}, ValueError, "page_size"),
    ],
)
def test_what_is_refused(change, error, message) -> None:
    query, key, value = packed()
    given = {"query": query, "key": key, "value": value, "cu_seqlens_q": CU_Q} | {
        "cu_seqlens_k": CU_K
    }
    with pytest.raises(error, match=message):
        segmented_attention_varlen(**(given | change))


def test_pages_refuse_dropout_gradients_and_other_tables() -> None:
    pages = [torch.randn(9, 4, 2, 8) for _ in range(2)]
    table = torch.zeros(5, 3, dtype=torch.int32)
    query = packed()[0]
    with pytest.raises(ValueError, match="exclude each other"):
        segmented_attention_varlen(query, *pages, CU_Q, CU_K, dropout_p=0.1, block_table=table)
    with pytest.raises(ValueError, match="a row for each document"):
        segmented_attention_varlen(query, *pages, CU_Q, CU_K, block_table=table[:4])
    with pytest.raises(ValueError, match="inference only"):
        segmented_attention_varlen(query.requires_grad_(), *pages, CU_Q, CU_K, block_table=table)
