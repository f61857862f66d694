"""Exact attention whose memory grows linearly, behind one contract on every backend."""

from accel.attention.api import segmented_attention as segmented_attention
from accel.attention.context_parallel.api import (
    context_parallel_attention as context_parallel_attention,
)
from accel.attention.context_parallel.sharding import SequenceLayout as SequenceLayout
from accel.attention.context_parallel.sharding import shard as shard
from accel.attention.context_parallel.sharding import unshard as unshard
from accel.attention.conventions import CONVENTIONS as CONVENTIONS
from accel.attention.conventions import Convention as Convention
from accel.attention.conventions import from_convention as from_convention
from accel.attention.conventions import to_convention as to_convention
from accel.attention.decode import segmented_attention_decode as segmented_attention_decode
from accel.attention.hugging_face.interface import (
    attention_for_transformers as attention_for_transformers,
)
from accel.attention.modules import MultiheadAttention as MultiheadAttention
from accel.attention.modules import replace_attention as replace_attention
from accel.attention.onnx_export.translations import onnx_translations as onnx_translations
from accel.attention.partial import attend as attend
from accel.attention.plan import AttentionPlan as AttentionPlan
from accel.attention.plan import attention_plan as attention_plan
from accel.attention.state import AttentionState as AttentionState
from accel.attention.state import empty_state as empty_state
from accel.attention.state import finalize as finalize
from accel.attention.state import merge as merge
from accel.attention.varlen import segmented_attention_varlen as segmented_attention_varlen
from accel_kernels.masks import Mask as Mask
from accel_kernels.masks import causal as causal
from accel_kernels.masks import documents as documents
from accel_kernels.masks import key_lengths as key_lengths
from accel_kernels.masks import prefix as prefix
from accel_kernels.masks import window as window
from accel_kernels.segmented_attention import operators as _operators
from accel_kernels.segmented_attention.call import Bias as Bias
from accel_kernels.segmented_attention.call import alibi as alibi
from accel_kernels.segmented_attention.call import relative_bias as relative_bias

# Imported for what it registers: the operator that exported programs name, and its FLOP count.
del _operators

__all__ = [
    "CONVENTIONS",
    "AttentionPlan",
    "AttentionState",
    "Bias",
    "Convention",
    "Mask",
    "MultiheadAttention",
    "SequenceLayout",
    "alibi",
    "attend",
    "attention_for_transformers",
    "attention_plan",
    "causal",
    "context_parallel_attention",
    "documents",
    "empty_state",
    "finalize",
    "from_convention",
    "key_lengths",
    "merge",
    "onnx_translations",
    "prefix",
    "relative_bias",
    "replace_attention",
    "segmented_attention",
    "segmented_attention_decode",
    "segmented_attention_varlen",
    "shard",
    "to_convention",
    "unshard",
    "window",
]
