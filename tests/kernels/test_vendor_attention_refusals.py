"""What `npu_fusion_attention` refuses, by name."""

import pytest
import torch

from accel_kernels.vendor.npu import REFERENCES
from tests.kernels.attention_rows import PREFIX_MASK, SAVED, TRIANGLE, inputs, packed

forward = REFERENCES["npu_fusion_attention"]
backward = REFERENCES["npu_fusion_attention_grad"]

CAUSAL = torch.ones(5, 7, dtype=torch.bool).triu(1)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"input_layout": "BHSD"}, ValueError, "input_layout"),
        ({"head_num": 3}, ValueError, "head_num=3"),
        ({"head_num": 0}, ValueError, "head_num=0"),
        ({"padding_mask": CAUSAL}, ValueError, "padding_mask"),
        ({"dropout_mask": CAUSAL}, NotImplementedError, "dropout_mask"),
        ({"keep_prob": 0.0}, ValueError, "keep_prob"),
        ({"keep_prob": 1.5}, ValueError, "keep_prob"),
        ({"inner_precise": 3}, ValueError, "inner_precise"),
        ({"sparse_mode": 9}, ValueError, "sparse_mode"),
        ({"sparse_mode": 7}, ValueError, "sparse_mode"),
        ({"softmax_layout": "TND"}, ValueError, "softmax_layout"),
        ({"actual_seq_qlen": [5, 10]}, ValueError, "actual_seq_qlen"),
        ({"prefix": [1, 1]}, ValueError, "prefix"),
        ({"atten_mask": CAUSAL.float()}, TypeError, "atten_mask"),
        ({"atten_mask": CAUSAL.to(torch.uint8) * 255}, ValueError, "holds 255"),
        ({"atten_mask": CAUSAL[:, :6]}, ValueError, "atten_mask"),
        ({"atten_mask": CAUSAL, "sparse_mode": 2}, ValueError, r"\[2048, 2048\]"),
        ({"atten_mask": ~TRIANGLE, "sparse_mode": 3}, ValueError, "1 above the diagonal"),
        ({"atten_mask": TRIANGLE, "sparse_mode": 6, "prefix": [2, 2]}, ValueError, "3072"),
        ({"atten_mask": PREFIX_MASK, "sparse_mode": 6}, ValueError, "prefix"),
        ({"atten_mask": PREFIX_MASK, "sparse_mode": 6, "prefix": [1, 2]}, ValueError, "2 to 7"),
        (
            {"atten_mask": ~CAUSAL.expand(2, 1, 5, 7), "sparse_mode": 5, "prefix": [2, 2]},
            ValueError,
            "prefix",
        ),
        ({"atten_mask": CAUSAL, "sparse_mode": 5, "prefix": [2, 2]}, ValueError, "atten_mask"),
        (
            {"atten_mask": TRIANGLE, "sparse_mode": 4, "pre_tockens": -5, "next_tockens": 3},
            ValueError,
            "keep nothing",
        ),
        ({"atten_mask": CAUSAL, "next_tockens": -8}, ValueError, "next_tokens=-8"),
        ({"atten_mask": CAUSAL, "pre_tockens": -5}, ValueError, "pre_tokens=-5"),
        ({"pse": torch.zeros(2, 4, 5, 7)}, TypeError, "pse"),
        ({"pse": torch.zeros(4, 5, 7).double()}, ValueError, "pse"),
        ({"sink": torch.zeros(3)}, ValueError, "sink"),
        ({"sink": torch.zeros(4).half()}, ValueError, "sink"),
    ],
)
def test_a_call_the_documents_do_not_allow_is_refused_by_name(arguments, error, message) -> None:
    query, key, value = inputs()
    arguments = {"head_num": 4, "input_layout": "BNSD", **arguments}
    with pytest.raises(error, match=message):
        forward(query, key, value, **arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"actual_seq_qlen": None}, ValueError, "actual_seq_qlen"),
        ({"actual_seq_qlen": [2, 4]}, ValueError, "ends at 4"),
        ({"actual_seq_qlen": [5, 3]}, ValueError, "never fall"),
        ({"actual_seq_qlen": [2, 5, 5]}, ValueError, "one length"),
        ({"actual_seq_kvlen": [0, 7]}, ValueError, "no keys"),
        ({"sparse_mode": 5, "prefix": [1, 1]}, ValueError, "sparse_mode"),
        ({"pse": torch.zeros(1, 4, 1024, 7).double()}, NotImplementedError, "ALiBi"),
        (
            {"pse": torch.zeros(1, 4, 1024, 7).double(), "sparse_mode": 7},
            ValueError,
            "pse is not supported in sparse_mode 7",
        ),
        ({"atten_mask": torch.ones(3, 4, dtype=torch.bool)}, ValueError, "all 1"),
        (
            {"sparse_mode": 7, "atten_mask": TRIANGLE, "pre_tockens": 3},
            ValueError,
            "pre_tokens=3",
        ),
        (
            {"sparse_mode": 7, "atten_mask": TRIANGLE, "next_tockens": 1},
            ValueError,
            "next_tokens=1",
        ),
        (
            {
                "sparse_mode": 7,
                "atten_mask": TRIANGLE,
                "actual_seq_qlen": [5, 5],
                "next_tockens": 0,
            },
            NotImplementedError,
            "sparse_mode",
        ),
    ],
)
def test_a_packed_call_the_documents_do_not_allow_is_refused(arguments, error, message) -> None:
    _, joined = packed([2, 3], [3, 4])
    arguments = {"actual_seq_qlen": [2, 5], "actual_seq_kvlen": [3, 7], **arguments}
    with pytest.raises(error, match=message):
        forward(*joined, 4, "TND", **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pse": torch.ones(4), "pse_type": 2}, "pse_type"),
        ({"pse": torch.ones(4), "pse_type": 3}, "pse_type"),
        ({"query_rope": torch.ones(1, 1, 1)}, "query_rope"),
        ({"key_rope": torch.ones(1, 1, 1)}, "key_rope"),
        ({"q_start_idx": [1]}, "q_start_idx"),
        ({"kv_start_idx": [1]}, "kv_start_idx"),
    ],
)
def test_the_second_form_refuses_what_is_not_documented(arguments, message) -> None:
    query, key, value = (t.float() for t in inputs())
    with pytest.raises(NotImplementedError, match=message):
        REFERENCES["npu_fusion_attention_v2"](query, key, value, 4, "BNSD", **arguments)


def test_compressed_alibi_is_refused() -> None:
    query, key, value = inputs(batch=1, length=1030, columns=1030)
    pse = torch.zeros(1, 4, 1024, 1030, dtype=torch.float64)
    with pytest.raises(NotImplementedError, match="compressed ALiBi"):
        forward(query, key, value, 4, "BNSD", pse=pse)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"softmax_max": None}, "softmax_max"),
        ({"attention_in": None}, "attention_in"),
        ({"keep_prob": 0.5}, "seed"),
        ({"softmax_sum": torch.ones(2, 4, 5)}, "softmax_sum"),
    ],
)
def test_the_gradient_needs_what_the_forward_saved(arguments, message) -> None:
    query, key, value = inputs()
    result = forward(query, key, value, 4, "BNSD")
    saved = dict(zip(SAVED, (result[1], result[2], result[0]), strict=True))
    with pytest.raises(ValueError, match=message):
        backward(query, key, value, result[0], 4, "BNSD", **{**saved, **arguments})


@pytest.mark.parametrize(
    "shapes",
    [
        ((2, 4, 5, 6), (2, 3, 7, 6), (2, 3, 7, 6)),
        ((2, 4, 5, 6), (2, 2, 7, 5), (2, 2, 7, 5)),
        ((2, 4, 5, 6), (2, 2, 7, 6), (2, 2, 6, 6)),
        ((2, 4, 5, 6), (3, 2, 7, 6), (3, 2, 7, 6)),
        ((2, 4, 5, 6), (2, 2, 7, 6), (2, 2, 7, 8)),
        ((2, 4, 0, 6), (2, 2, 7, 6), (2, 2, 7, 6)),
        ((2, 4, 5), (2, 2, 7), (2, 2, 7)),
    ],
)
def test_shapes_that_do_not_belong_together_are_refused(shapes) -> None:
    with pytest.raises(ValueError, match="npu_fusion_attention"):
        forward(*(torch.zeros(shape) for shape in shapes), 4, "BNSD")


def test_mixed_and_integer_dtypes_are_refused() -> None:
    query, key, value = inputs()
    with pytest.raises(TypeError, match="value"):
        forward(query, key, value.float(), 4, "BNSD")
    with pytest.raises(TypeError, match="query"):
        forward(query.long(), key.long(), value.long(), 4, "BNSD")
