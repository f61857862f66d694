"""Which aten operators an interface of PyTorch runs: the part of ci/vendor_tables that asks torch.

Careful rather than complete: an operator that is mapped wrongly is a false alarm for a user, and
one that is left out is only a check less.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass


class TableError(ValueError):
    """A document or a table that does not read as it must."""


_PREFIXES = (
    ("torch.nn.functional.", ""),
    ("torch.linalg.", "linalg_"),
    ("torch.special.", "special_"),
    ("torch.fft.", "fft_"),
    ("torch.Tensor.", ""),
    ("torch.", ""),
)
_INPUT_NAMES = {"self", "input", "tensors"}

# What the rules do not find: operators, and the interfaces whose `input` is their input. `F.` is
# torch.nn.functional, `nn.` torch.nn; `operator/argument` where that is not called self or input.
# The dispatcher meets the inner kernel (_softmax), not the name that a program calls (softmax).
_EXPLICIT = """
_adaptive_avg_pool2d adaptive_avg_pool2d: F.adaptive_avg_pool2d nn.AdaptiveAvgPool2d
_adaptive_avg_pool3d adaptive_avg_pool3d: F.adaptive_avg_pool3d nn.AdaptiveAvgPool3d
_cdist_forward/x1 cdist/x1: torch.cdist
_ctc_loss/log_probs ctc_loss/log_probs: F.ctc_loss nn.CTCLoss
_log_softmax log_softmax: torch.log_softmax F.log_softmax nn.LogSoftmax
_prelu_kernel prelu: torch.prelu F.prelu nn.PReLU
_softmax softmax: torch.softmax F.softmax nn.Softmax nn.Softmax2d
_unique2: torch.unique
adaptive_avg_pool1d: nn.AdaptiveAvgPool1d
adaptive_max_pool3d: nn.AdaptiveMaxPool3d
avg_pool1d: nn.AvgPool1d
avg_pool2d: nn.AvgPool2d
batch_norm native_batch_norm: F.batch_norm nn.BatchNorm1d nn.BatchNorm2d nn.BatchNorm3d
addmm matmul mm: F.linear nn.Linear
bmm: nn.MultiheadAttention
binary_cross_entropy: nn.BCELoss
binary_cross_entropy_with_logits: nn.BCEWithLogitsLoss
celu: nn.CELU
channel_shuffle: nn.ChannelShuffle
col2im: F.fold nn.Fold
conv1d: nn.Conv1d
conv2d: nn.Conv2d
conv3d: nn.Conv3d
conv_transpose1d: nn.ConvTranspose1d
conv_transpose2d: nn.ConvTranspose2d
conv_transpose3d: nn.ConvTranspose3d
convolution convolution_overrideable: F.conv2d F.conv1d F.conv3d
convolution convolution_overrideable: F.conv_transpose1d F.conv_transpose2d F.conv_transpose3d
convolution convolution_overrideable: nn.Conv1d nn.Conv2d nn.Conv3d
convolution convolution_overrideable: nn.ConvTranspose1d nn.ConvTranspose2d nn.ConvTranspose3d
dropout native_dropout: F.dropout nn.Dropout
elu: nn.ELU
gelu: nn.GELU
glu: nn.GLU
grid_sampler grid_sampler_2d grid_sampler_3d: F.grid_sample
group_norm native_group_norm: F.group_norm nn.GroupNorm
gru: nn.GRU
gru_cell: nn.GRUCell
hardshrink: nn.Hardshrink
hardsigmoid: nn.Hardsigmoid
hardswish: nn.Hardswish
hardtanh: nn.Hardtanh
huber_loss: nn.HuberLoss
im2col: F.unfold nn.Unfold
kl_div: nn.KLDivLoss
l1_loss: nn.L1Loss
layer_norm native_layer_norm: F.layer_norm nn.LayerNorm
leaky_relu: nn.LeakyReLU
lerp_: torch.optim.Adam
linear: nn.Linear
log_sigmoid log_sigmoid_forward: F.logsigmoid nn.LogSigmoid
lstm: nn.LSTM
lstm_cell: nn.LSTMCell
max_pool2d max_pool2d_with_indices: F.max_pool2d nn.MaxPool2d
max_pool3d max_pool3d_with_indices: F.max_pool3d
max_unpool2d: nn.MaxUnpool2d
mish: nn.Mish
mse_loss: nn.MSELoss
multi_margin_loss: nn.MultiMarginLoss
multilabel_margin_loss_forward: F.multilabel_margin_loss
nll_loss nll_loss_forward: F.nll_loss nn.NLLLoss
pixel_shuffle: nn.PixelShuffle
pixel_unshuffle: nn.PixelUnshuffle
reflection_pad1d: nn.ReflectionPad1d
reflection_pad2d: nn.ReflectionPad2d
relu: nn.ReLU
relu6: nn.ReLU6
replication_pad1d: nn.ReplicationPad1d
replication_pad2d: nn.ReplicationPad2d
rrelu_with_noise: F.rrelu
scaled_dot_product_attention/query: F.scaled_dot_product_attention
selu: nn.SELU
sigmoid: nn.Sigmoid
silu: nn.SiLU
smooth_l1_loss: nn.SmoothL1Loss
softplus: nn.Softplus
softshrink: nn.Softshrink
tanh: nn.Tanh
threshold: nn.Threshold
upsample_bicubic2d upsample_bilinear2d: F.interpolate nn.Upsample
upsample_linear1d upsample_trilinear3d: F.interpolate nn.Upsample
upsample_nearest1d upsample_nearest2d upsample_nearest3d: F.interpolate nn.Upsample
"""

# Operators that make, copy, fill or describe a tensor, and those whose list is about something
# else than their data (`torch.is_complex` lists the dtypes for which it answers yes).
_LEFT_OUT = re.compile(
    r"is_.*|.*_like|new_.*|(?!index_).*_copy|copy_?|clone|contiguous|to|to_.*|_to_.*|type_as|float|double"
    r"|half|int|long|c?half|bool|char|dequantize|int_repr|q_.*|set_.*|resize_.*|fill_?|zero_?"
    r"|(?:bernoulli|cauchy|exponential|geometric|log_normal|normal|random|uniform)_"
    r"|item|size|stride|numel|result_type|data|detach_?|requires_grad_|retain_grad|rename.*"
    r"|refine_names|align_.*|record_stream|coalesce|sparse_.*|share_memory_|values|indices"
    r"|broadcast_tensors|meshgrid|atleast_.*|as_strided.*|embedding.*|one_hot|normal|cross_entropy_loss"
    # The one row lists int64 only, where assigning floats by a mask is what every program does.
    r"|index_put_?"
)
_ANSWERS = {"allclose", "equal"}  # the two operators that compute and return no tensor


@dataclass(frozen=True)
class Target:
    """An aten operator, and what its overloads call the `input` of the documents."""

    operator: str
    arguments: tuple[str, ...]


def targets(api: str) -> list[Target]:
    """Return the operators that one interface runs, as far as that is certain."""
    found = list(_explicit().get(api, ()))
    for prefix, operator_prefix in _PREFIXES:
        if api.startswith(prefix):
            name = operator_prefix + api.removeprefix(prefix)
            arguments = _input_arguments(name)
            if arguments and name not in {target.operator for target in found}:
                found.append(Target(name, arguments))
            break
    return found


@functools.cache
def _explicit() -> dict[str, list[Target]]:
    table: dict[str, list[Target]] = {}
    for line in _EXPLICIT.strip().splitlines():
        operators, apis = line.split(": ")
        for operator in operators.split():
            name, _, argument = operator.partition("/")
            target = Target(name, (argument,) if argument else _input_arguments(name))
            if not set(target.arguments) & {taken for taken, _ in _tensor_arguments(name)}:
                raise TableError(f"the table names aten::{operator}, which torch does not have")
            for api in apis.split():
                full = re.sub(r"^F\.", "torch.nn.functional.", re.sub(r"^nn\.", "torch.nn.", api))
                table.setdefault(full, []).append(target)
    return table


@functools.cache
def _schemas(name: str) -> list[str]:
    import torch

    packet = getattr(torch.ops.aten, name, None) if name.isidentifier() else None
    if packet is None:
        return []
    return [str(getattr(packet, overload)._schema) for overload in packet.overloads()]


def _tensor_arguments(name: str) -> Iterator[tuple[str, str]]:
    """Yield (argument, schema) for every tensor or list of tensors that an overload takes."""
    for schema in _schemas(name):
        inputs = schema[schema.index("(") : schema.rindex(" -> ")]
        for found in re.finditer(r"Tensor(?:\([^)]*\))?\??(?:\[\d*\])? (\w+)", inputs):
            yield found[1], schema


@functools.cache
def _input_arguments(name: str) -> tuple[str, ...]:
    """Return the names of the input of an operator that computes; none of any other."""
    if "." in name or _LEFT_OUT.fullmatch(name) or _is_view(name.removesuffix("_")):
        return ()
    found = [(taken, schema) for taken, schema in _tensor_arguments(name) if taken in _INPUT_NAMES]
    if len({schema for _, schema in found}) != len(found):
        return ()  # an overload that takes two of these names
    returns = " ".join(schema[schema.rindex(" -> ") :] for schema in _schemas(name))
    if not ("Tensor" in returns or name in _ANSWERS or name.endswith("_")):
        return ()
    return tuple(sorted({taken for taken, _ in found}))


def _is_view(name: str) -> bool:
    """Say whether an overload returns a view: an alias that it does not write to."""
    return any(
        re.search(
            r"Tensor\([a-z](?:\|[^!)]*)?(?: ?-> ?[^!)]*)?\)", schema[schema.rindex(") -> ") :]
        )
        for schema in _schemas(name)
    )
