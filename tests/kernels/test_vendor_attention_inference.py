"""`npu_fused_infer_attention_score` and its second form, against the formula of their pages."""

import math

import pytest
import torch

from accel_kernels.vendor.npu import REFERENCES
from tests.kernels.attention_rows import TRIANGLE, close, differs, inputs, lay, rows, rule, whole

infer = REFERENCES["npu_fused_infer_attention_score"]
LAYOUTS = ("BNSD", "BSND", "BSH", "BNSD_BSND")
HEADS = {"num_heads": 4, "num_key_value_heads": 2}


def tensors(length=5, columns=7):
    return inputs(length=length, columns=columns, depth=16, value_depth=16)


def laid(given, layout):
    return [lay(t, layout.split("_")[0]).contiguous() for t in given]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_gives_the_formula_with_scale_1(layout) -> None:
    given = tensors()
    out, lse = infer(*laid(given, layout), **HEADS, input_layout=layout, softmax_lse_flag=True)
    expected, top, total = whole(*given)
    close(out, lay(expected, layout.split("_")[-1]))
    close(lse, (top + total.log()).unsqueeze(-1))
    differs(out, lay(whole(*given, scale=0.25)[0], layout.split("_")[-1]))


def test_the_log_sum_exp_only_if_asked_for() -> None:
    out, lse = infer(*tensors(), **HEADS, input_layout="BNSD")
    assert torch.equal(lse, torch.zeros(1, dtype=torch.float64))
    assert out.shape == (2, 4, 5, 16)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_results_have_the_inputs_dtype_and_a_float32_log_sum_exp(dtype) -> None:
    given = [t.to(dtype) for t in tensors()]
    out, lse = infer(*given, **HEADS, input_layout="BNSD", softmax_lse_flag=True)
    assert (out.dtype, lse.dtype) == (dtype, torch.float32)
    exact = whole(*(t.double() for t in given))[0]
    close(out.double(), exact, torch.finfo(dtype).eps)


def test_lengths_cut_the_keys_of_each_entry() -> None:
    query, key, value = tensors(length=1)
    key[0, :, 3:], value[0, :, 3:] = math.nan, math.inf
    out, lse = infer(
        query, key, value, **HEADS, input_layout="BNSD", actual_seq_lengths_kv=[3, 7],
        softmax_lse_flag=True,
    )  # fmt: skip
    for b, number in enumerate((3, 7)):
        expected, top, total = rows(query[b], key[b, :, :number], value[b, :, :number])
        close(out[b], expected)
        close(lse[b, ..., 0], top + total.log())
    same = infer(query, key, value, **HEADS, input_layout="BNSD", actual_seq_lengths_kv=[3])[0]
    close(same[0], out[0])


MODES = {
    0: (lambda i, j: True, {}),
    2: (lambda i, j: j <= i, {}),
    3: (lambda i, j: j <= i + 2, {}),
    4: (lambda i, j: i + 2 - 1 <= j <= i + 2 + 1, {"pre_tokens": 1, "next_tokens": 1}),
}


@pytest.mark.parametrize("mode", MODES)
def test_sparse_modes(mode) -> None:
    given = tensors()
    which, arguments = MODES[mode]
    mask = None if mode == 0 else TRIANGLE
    out = infer(
        *given, **HEADS, input_layout="BNSD", sparse_mode=mode, atten_mask=mask, **arguments
    )[0]
    close(out, whole(*given, rule(2, 4, 5, 7, lambda b, i, j: which(i, j)))[0])


def test_the_bottom_right_is_that_of_the_entrys_own_lengths() -> None:
    given = tensors()
    out = infer(
        *given, **HEADS, input_layout="BNSD", sparse_mode=3, atten_mask=TRIANGLE,
        actual_seq_lengths_kv=[5, 7],
    )[0]  # fmt: skip
    kept = rule(2, 4, 5, 7, lambda b, i, j: j <= i + (0, 2)[b])
    close(out, whole(*given, kept)[0])
    differs(out, whole(*given, rule(2, 4, 5, 7, lambda b, i, j: j <= i + 2))[0])


@pytest.mark.parametrize("mode", [0, 1])
@pytest.mark.parametrize("shape", [(5, 7), (2, 5, 7), (1, 5, 7), (2, 1, 5, 7), (1, 1, 5, 7)])
def test_a_mask_leaves_out_where_it_is_1(mode, shape) -> None:
    given = tensors()
    mask = torch.rand(shape) < 0.5
    mask[..., 0] = False
    out = infer(*given, **HEADS, input_layout="BNSD", sparse_mode=mode, atten_mask=mask)[0]
    kept = ~mask if mask.ndim == 2 else ~mask.view(-1, 1, 5, 7)
    close(out, whole(*given, kept.expand(2, 4, 5, 7))[0])


@pytest.mark.parametrize("shape", [(2, 7), (2, 1, 7), (2, 1, 1, 7)])
def test_a_mask_of_one_query(shape) -> None:
    given = tensors(length=1)
    mask = torch.rand(shape) < 0.5
    mask[..., 0] = False
    out = infer(*given, **HEADS, input_layout="BNSD", sparse_mode=3, atten_mask=mask)[0]
    close(out, whole(*given, ~mask.view(2, 1, 1, 7).expand(2, 4, 1, 7))[0])


@pytest.mark.parametrize("precise", [0, 2])
def test_rows_that_see_nothing(precise) -> None:
    given = tensors(length=5, columns=3)
    out, lse = infer(
        *given, **HEADS, input_layout="BNSD", sparse_mode=3, atten_mask=TRIANGLE,
        inner_precise=precise, softmax_lse_flag=True,
    )  # fmt: skip
    assert torch.isnan(lse[:, :, :2]).all()
    assert (out[:, :, :2] == 0).all() if precise else torch.isnan(out[:, :, :2]).all()
    expected = whole(*given, rule(2, 4, 5, 3, lambda b, i, j: j <= i - 2))[0]
    close(out[:, :, 2:], expected[:, :, 2:])


@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.parametrize("flat", [False, True])
def test_a_paged_cache_is_the_cache_in_the_order_of_its_table(length, flat) -> None:
    size, table = 128, torch.tensor([[3, 0, -1], [1, 4, 2]], dtype=torch.int32)
    query = tensors(length=length)[0]
    pages = [torch.randn(5, 2, size, 16, dtype=torch.float64) for _ in range(2)]
    counts = [130, 300]
    given = [p.transpose(1, 2).flatten(2).contiguous() if flat else p for p in pages]
    arguments = {"sparse_mode": 3, "atten_mask": TRIANGLE} if length > 1 else {}
    out = infer(
        query, *given, **HEADS, input_layout="BNSD", block_table=table, block_size=size,
        actual_seq_lengths_kv=counts, scale=0.3, **arguments,
    )[0]  # fmt: skip
    for b, count in enumerate(counts):
        blocks = [n for n in table[b].tolist() if n >= 0]
        key, value = (torch.cat([p[n] for n in blocks], 1)[:, :count] for p in pages)
        kept = torch.ones(4, length, count).tril(count - length).bool()
        close(out[b], rows(query[b], key, value, kept, scale=0.3)[0])


def test_the_second_form_is_the_first_with_other_names() -> None:
    given = tensors()
    one = infer(
        *given, **HEADS, input_layout="BNSD", scale=0.3, sparse_mode=3, atten_mask=TRIANGLE,
        actual_seq_lengths_kv=[6, 7], softmax_lse_flag=True,
    )  # fmt: skip
    other = REFERENCES["npu_fused_infer_attention_score_v2"](
        *given, num_query_heads=4, num_key_value_heads=2, input_layout="BNSD", softmax_scale=0.3,
        sparse_mode=3, atten_mask=TRIANGLE, actual_seq_kvlen=[6, 7], return_softmax_lse=True,
    )  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


TABLE = torch.zeros(2, 1, dtype=torch.int32)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"input_layout": "SBH"}, ValueError, "input_layout"),
        ({"input_layout": "TND"}, ValueError, "input_layout"),
        ({"num_heads": 3}, ValueError, "num_heads=3"),
        ({"num_heads": 2}, ValueError, "num_heads"),
        ({"num_key_value_heads": 0}, ValueError, "4 heads"),
        ({"sparse_mode": 5}, ValueError, "sparse_mode"),
        ({"sparse_mode": 3}, ValueError, "needs atten_mask"),
        ({"sparse_mode": 3, "atten_mask": TRIANGLE[:7, :7]}, ValueError, "atten_mask"),
        ({"sparse_mode": 2, "atten_mask": ~TRIANGLE}, ValueError, "1 above the diagonal"),
        ({"atten_mask": TRIANGLE[:4, :7]}, ValueError, "too small"),
        ({"atten_mask": TRIANGLE.float()}, TypeError, "atten_mask"),
        ({"atten_mask": TRIANGLE, "pre_tokens": 3}, NotImplementedError, "pre_tokens"),
        ({"inner_precise": 4}, ValueError, "inner_precise"),
        ({"actual_seq_lengths_kv": [1, 2, 9]}, None, ""),
        ({"actual_seq_lengths_kv": [8]}, ValueError, "0 to 7"),
        ({"actual_seq_lengths_kv": [0]}, NotImplementedError, "without keys"),
        ({"actual_seq_lengths_kv": []}, ValueError, "0 numbers"),
        ({"actual_seq_lengths": [3]}, NotImplementedError, "actual_seq_lengths"),
        ({"block_table": TABLE, "block_size": 128}, ValueError, "lengths"),
        (
            {"block_table": TABLE, "block_size": 16, "actual_seq_lengths_kv": [1]},
            ValueError,
            "block_size=16",
        ),
        ({"pse_shift": torch.zeros(1)}, NotImplementedError, "pse_shift"),
        ({"query_rope": torch.zeros(1)}, NotImplementedError, "query_rope"),
        ({"key_antiquant_mode": 1}, NotImplementedError, "key_antiquant_mode"),
        ({"quant_scale2": torch.ones(1)}, NotImplementedError, "quant_scale2"),
    ],
)
def test_what_the_pages_do_not_allow_is_refused_by_name(arguments, error, message) -> None:
    arguments = {**HEADS, "input_layout": "BNSD", **arguments}
    if error is None:  # more lengths than entries: the first ones count
        assert infer(*tensors(), **arguments)[0].isfinite().all()
        return
    with pytest.raises(error, match=message):
        infer(*tensors(), **arguments)


def test_tensors_that_the_operator_does_not_take() -> None:
    query, key, value = tensors()
    plain = {**HEADS, "input_layout": "BNSD"}
    with pytest.raises(TypeError, match=r"query is torch\.float32"):
        infer(*(t.float() for t in (query, key, value)), **plain)
    with pytest.raises(ValueError, match="key is not contiguous"):
        infer(query, key.mT.contiguous().mT, value, **plain)
    with pytest.raises(ValueError, match="differ"):
        infer(query, key, value[:, :, :6].contiguous(), **plain)
    odd = [t[..., :6].contiguous() for t in (query, key, value)]
    with pytest.raises(ValueError, match="multiple of 16"):
        infer(*odd, **plain)
    infer(*(t[:, :, :1].contiguous() for t in odd), **plain)
    with pytest.raises(NotImplementedError, match="learnable_sink"):
        REFERENCES["npu_fused_infer_attention_score_v2"](
            query, key, value, num_query_heads=4, num_key_value_heads=2, input_layout="BNSD",
            learnable_sink=torch.zeros(4),
        )  # fmt: skip
