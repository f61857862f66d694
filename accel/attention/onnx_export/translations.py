"""Attention in ONNX whose memory stays linear: for `torch.onnx.export(..., dynamo=True)`.

ONNX's own `Attention` holds the score matrix in ONNX Runtime (336 MB at 4,096 tokens and four
heads) and has no windows there. Here a plain causal attention becomes ONNX Runtime's
`GroupQueryAttention`, and everything else a `Scan` over blocks of queries, in standard operators
that any runtime has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from accel.errors import BackendError


def onnx_translations() -> dict[Any, Callable[..., Any]]:
    """What `torch.onnx.export` needs to export `accel.segmented_attention`.

        torch.onnx.export(
            model, inputs, dynamo=True, custom_translation_table=accel.attention.onnx_translations()
        )

    Exported are all masks, grouped heads, scale, softcap and biases, with dynamic lengths; output
    and log-sum-exp. Dropout is for training and refused.

    Raises:
        BackendError: onnxscript is not installed.
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise BackendError(
            "exporting attention to ONNX needs onnxscript: pip install 'accel-torch[onnx]'"
        ) from error
    from accel_kernels.segmented_attention import operators  # registers the operator

    del operators
    return {
        torch.ops.accel_kernels.segmented_attention.default: _translate,
        # Of masks of documents; ONNX has no search.
        torch.ops.aten.searchsorted.Tensor: _searchsorted,
    }


def _searchsorted(
    sorted_sequence: Any, numbers: Any, out_int32: bool = False, right: bool = False,
    side: str | None = None, sorter: Any = None,
) -> Any:  # fmt: skip
    """Where numbers belong in a sequence `[N]`: how many of it are less, or not greater."""
    from onnxscript import ir

    if sorter is not None:
        raise BackendError("searchsorted with a sorter has no translation to ONNX")
    op = _opset()
    column = op.Unsqueeze(numbers, _ints(-1))
    is_right = right or side == "right"
    before = op.LessOrEqual if is_right else op.Less
    counted = op.Cast(before(sorted_sequence, column), to=ir.DataType.INT64)
    return op.ReduceSum(counted, _ints(-1), keepdims=0)


def _translate(
    query: Any, key: Any, value: Any, intervals: Any, dense: Any, causal: bool, scale: float,
    softcap: float | None, bias: Any, bias_kind: str, bias_shift: int | None, dropout_p: float,
    dropout_seed: Any, dropout_sizes: Any, dropout_first: Any, segment_size: Any,
    return_lse: bool, backend: str,
) -> Any:  # fmt: skip
    """The operator's translation: output and log-sum-exp."""
    if dropout_seed is not None:
        raise BackendError(
            "segmented_attention with dropout_p cannot be exported to ONNX: export the model in "
            "evaluation mode, or with dropout_p=0.0"
        )
    if query.dtype is not None and query.dtype.name == "DOUBLE":
        raise BackendError(
            "segmented_attention is exported to ONNX in float32 and narrower: a float64 model "
            "would lose precision; export it with .float()"
        )
    plain = softcap is None and bias is None and not return_lse and scale > 0.0
    if causal and plain and _is_self_attention(query, key, value):
        return _group_query_attention(query, key, value, scale)
    from accel.attention.onnx_export.scan import scan_over_queries

    return scan_over_queries(
        query, key, value, intervals, dense, causal, scale, softcap, bias, bias_kind, bias_shift
    )


def _is_self_attention(query: Any, key: Any, value: Any) -> bool:
    """Whether ONNX Runtime's operator serves: its causal mask knows one length only."""
    same_length = query.shape[2] == key.shape[2]
    known = all(isinstance(n, int) for n in (query.shape[1], key.shape[1], query.shape[3]))
    same_size = query.shape[3] == value.shape[3]
    # ONNX Runtime asks for multiples of 8.
    return bool(same_length and known and same_size and query.shape[3] % 8 == 0)


def _group_query_attention(query: Any, key: Any, value: Any, scale: float) -> Any:
    from onnxscript import ir

    opset18 = _opset()
    single, whole = ir.DataType.FLOAT, ir.DataType.INT32
    packed = [
        opset18.Reshape(
            opset18.Transpose(opset18.Cast(tensor, to=single), perm=[0, 2, 1, 3]), _ints(0, 0, -1)
        )
        for tensor in (query, key, value)
    ]
    batch, length = opset18.Shape(query, start=0, end=1), opset18.Shape(query, start=2, end=3)
    past = opset18.Concat(batch, _ints(key.shape[1], 0, query.shape[3]), axis=0)
    nothing = opset18.Expand(opset18.Constant(value_float=0.0), past)
    last = opset18.Expand(opset18.Cast(opset18.Sub(length, _ints(1)), to=whole), batch)
    out, *_ = _runtime_operator()(
        *packed, nothing, nothing, last, opset18.Cast(length, to=whole),
        num_heads=query.shape[1], kv_num_heads=key.shape[1], scale=scale,
    )  # fmt: skip
    split = opset18.Reshape(out, _ints(0, 0, query.shape[1], query.shape[3]))
    result = opset18.CastLike(opset18.Transpose(split, perm=[0, 2, 1, 3]), query)
    # Nobody uses the log-sum-exp here, and the operator does not tell it.
    unused = opset18.ReduceSum(opset18.Cast(query, to=single), _ints(-1), keepdims=0)
    return result, unused


def _runtime_operator() -> Any:
    """`com.microsoft.GroupQueryAttention`, of which ONNX itself has no schema."""
    from onnx.defs import OpSchema
    from onnxscript import values

    parameter, kinds = OpSchema.FormalParameter, OpSchema.AttrType
    schema = OpSchema(
        "GroupQueryAttention",
        "com.microsoft",
        1,
        inputs=[
            *(parameter(name, "T") for name in ("query", "key", "value", "past_key", "past_value")),
            parameter("seqlens_k", "M"),
            parameter("total_sequence_length", "M"),
        ],
        outputs=[parameter(name, "T") for name in ("output", "present_key", "present_value")],
        type_constraints=[("T", ["tensor(float)"], ""), ("M", ["tensor(int32)"], "")],
        attributes=[
            OpSchema.Attribute("num_heads", kinds.INT),
            OpSchema.Attribute("kv_num_heads", kinds.INT),
            OpSchema.Attribute("scale", kinds.FLOAT),
        ],
    )
    return values.Op(values.Opset("com.microsoft", 1), schema.name, schema)


def _opset() -> Any:
    """The operators that are recorded; untyped, since each symbolic tensor is of any dtype."""
    from onnxscript import opset18

    return opset18


def _ints(*numbers: int) -> Any:
    return _opset().Constant(value_ints=list(numbers))
