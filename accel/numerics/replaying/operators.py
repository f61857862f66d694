"""What kind of operator one is, and which have nothing to replay."""

from __future__ import annotations

import re
from typing import Literal

import torch

from accel.numerics.replaying.calls import overload_of
from accel.numerics.replaying.exactness import EXACT
from accel.numerics.replaying.refusals import CannotReplayError

Kind = Literal[
    "matmul", "convolution", "attention", "normalization", "softmax", "loss", "reduction",
    "elementwise", "movement", "indexing", "optimizer", "recurrent", "random", "collective",
    "view", "other",
]  # fmt: skip

# Elementwise arithmetic whose Python scalars take part as operands, by the names of the arguments.
SCALAR_OPERANDS = frozenset({"other", "value", "alpha", "scalar", "scalars", "weight", "exponent"})

_UNINITIALISED = re.compile(r"aten::(new_)?empty(_\w+)?|aten::resize_(as_)?")
_NO_VALUES = frozenset(
    {
        "aten::_local_scalar_dense", "aten::sym_size", "aten::sym_stride", "aten::sym_numel",
        "aten::record_stream", "aten::is_pinned", "aten::_has_compatible_shallow_copy_type",
        "aten::set_", "aten::_assert_async", "aten::_assert_scalar", "aten::equal", "aten::item",
    }
)  # fmt: skip
_COLLECTIVE = ("c10d::", "_c10d_functional::", "_c10d_functional_autograd::", "_dtensor::")
_RANDOM = re.compile(
    r"aten::(rand|randn|randint|randperm|normal|uniform|bernoulli|multinomial|exponential|cauchy"
    r"|geometric|log_normal|random|rrelu_with_noise|poisson|binomial|_standard_gamma|_sample_\w+"
    r"|_fused_dropout|native_dropout|dropout|alpha_dropout|feature_dropout)(_like|_generator)?_?"
)
# The first pattern that fits the name without its namespace decides.
_KINDS: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    ("attention", re.compile(r".*(attention|attn).*")),
    ("optimizer", re.compile(
        r"_fused_(adam|adamw|sgd|adagrad)_?|_foreach_.*|npu_apply_.*|_amp_.*"
    )),
    ("normalization", re.compile(r".*(layer_norm|batch_norm|group_norm|rms_norm|deep_norm).*")),
    ("softmax", re.compile(r".*(softmax|logsumexp).*")),
    ("loss", re.compile(r".*(_loss|cross_entropy).*")),
    ("convolution", re.compile(r".*conv(olution)?([0-9]d)?(_.*)?")),
    ("recurrent", re.compile(r".*(rnn|lstm|gru).*")),
    ("matmul", re.compile(
        r"_?(addmm|mm|bmm|baddbmm|addbmm|addmv|mv|dot|vdot|addr|ger|linear|matmul|einsum"
        r"|_scaled_mm|_scaled_grouped_mm|_grouped_mm|_int_mm|_addmm_activation|npu_.*(linear|bmm"
        r"|matmul).*)(_backward|_)?"
    )),
    ("indexing", re.compile(
        r".*(embedding|index|scatter|gather|nonzero|masked_select|take|put|sort|topk|unique"
        r"|one_hot).*"
    )),
    ("reduction", re.compile(
        r"(nan)?(sum|mean|prod|std|var|norm|cumsum|cumprod|var_mean|std_mean|linalg_vector_norm"
        r"|trace|_weight_norm_interface.*|.*avg_pool.*|.*max_pool.*|amax|amin|max|min|argmax"
        r"|argmin|any|all|count_nonzero|logcumsumexp|median|kthvalue|mode)(_|_backward)?"
    )),
)  # fmt: skip


def short_name(name: str) -> str:
    """`addmm` of `aten::addmm`."""
    return name.partition("::")[2] or name


def is_view(name: str, overload: str) -> bool:
    """Whether what the operator returns shares memory with an argument: no kernel runs."""
    try:
        found = overload_of(name, overload)
    except CannotReplayError:
        return False
    returns = found._schema.returns
    return found.is_view or any(r.alias_info and not r.alias_info.is_write for r in returns)


def is_exact(name: str, overload: str = "default") -> bool:
    """Whether every element of a result is determined to the last bit."""
    if overload == "decimals":  # a rounded product is divided again
        return False
    return name.startswith("aten::") and short_name(name) in EXACT


def has_jumps(name: str, overload: str) -> bool:
    """Whether results jump at some inputs, where noise makes a response as large as the step."""
    short = short_name(name).removesuffix("_")
    return name.startswith("aten::") and (short in _JUMPS or overload in _JUMP_OVERLOADS)


_JUMPS = frozenset({"remainder", "fmod", "floor_divide"})
_JUMP_OVERLOADS = frozenset({"decimals", "Tensor_mode", "Scalar_mode"})  # of round and div


def is_pointwise(name: str, overload: str) -> bool:
    """Whether each element depends on one element of each argument."""
    try:
        return torch.Tag.pointwise in overload_of(name, overload).tags
    except CannotReplayError:
        return False


def kind_of(name: str, overload: str) -> Kind:
    """Which family an operator belongs to, for counts and reports."""
    if name.startswith(_COLLECTIVE):
        return "collective"
    if _RANDOM.fullmatch(name):
        return "random"
    if is_view(name, overload):
        return "view"
    short = short_name(name)
    for kind, pattern in _KINDS:
        if pattern.fullmatch(short):
            return kind
    if is_pointwise(name, overload):
        return "elementwise"
    return "movement" if short in EXACT else "other"


def why_nothing_to_check(name: str, overload: str) -> str | None:
    """Why no reference can exist for an operator; None if one may."""
    if name.startswith(_COLLECTIVE):
        return "a collective is checked across ranks, from all their recordings"
    if _UNINITIALISED.fullmatch(name):
        return "it returns uninitialised memory"
    if name in _NO_VALUES:
        return "it computes no tensor"
    if _RANDOM.fullmatch(name):
        return "it draws random numbers"
    try:
        tags = overload_of(name, overload).tags
    except CannotReplayError:
        return None
    if torch.Tag.nondeterministic_seeded in tags and "attention" not in name:
        return "it draws random numbers"
    return None
