"""Operands of kernels that neither OpInfo's samples nor other overloads of them reach."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.ascend.opinfo_compare import CPU


def values(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Values that differ and are reproducible, between -1 and 1."""
    count = 1
    for size in shape:
        count *= size
    values = (torch.arange(count, dtype=torch.float64) * 1.7).sin().reshape(shape)
    return (values * 9).to(dtype) if not dtype.is_floating_point else values.to(dtype)


def positive(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return values(*shape, dtype=dtype).abs() + 0.5


def _empty(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(0, dtype=dtype)


def _adam(**extra: Any) -> dict[str, Any]:
    state = {"lr": 0.1, "weight_decay": 0.1, "eps": 1e-8, "maximize": False}
    return {**state, "beta1": 0.9, "beta2": 0.99, "amsgrad": False, **extra}


def _adam_lists() -> list[list[Tensor]]:
    moments = [[_pos(3, 4), _pos(5)] for _ in range(2)]
    return [[_t(3, 4), _t(5)], [_t(3, 4) * 2, _t(5)], *moments, []]


def _sgd() -> dict[str, Any]:
    return {
        "weight_decay": 0.1, "momentum": 0.9, "lr": 0.1, "dampening": 0.0, "nesterov": True,
        "maximize": False, "is_first_step": False,
    }  # fmt: skip


_t, _pos = values, positive  # short, for the table below
# One of their results is on the host on every device.
HOST_RESULTS = ("_pack_padded_sequence",)
_INT = torch.int64
_STEPS = (torch.tensor(2.0), torch.tensor(3.0))
# Operands by operator: positional ones, and keyword ones in a dict at the end.
WRITTEN: dict[str, Callable[[], tuple[Any, ...]]] = {
    "_add_relu.Tensor": lambda: (_t(3, 4), _t(3, 4)),
    "_add_relu.out": lambda: (_t(3, 4), _t(3, 4), {"out": _empty()}),
    "_add_relu_.Tensor": lambda: (_t(3, 4), _t(3, 4)),
    "_aminmax": lambda: (_t(3, 4),),
    "_aminmax.dim": lambda: (_t(3, 4), 1, True),
    "_amp_foreach_non_finite_check_and_unscale_": lambda: (
        [_t(3, 4), _t(5) / 0], torch.zeros(1), torch.full((1,), 0.5),
    ),
    "_amp_update_scale_": lambda: (
        torch.full((1,), 4.0), torch.zeros(1, dtype=torch.int32), torch.ones(1), 2.0, 0.5, 3,
    ),
    "_embedding_bag_forward_only": lambda: (
        _t(10, 4), torch.tensor([1, 2, 4, 5]), torch.tensor([0, 2]), False, 1,
    ),
    "_foreach_addcdiv.Tensor": lambda: (
        [_t(3), _t(4)], [_t(3), _t(4)], [_pos(3), _pos(4)], torch.tensor([2.0, 3.0]),
    ),
    "_foreach_addcdiv_.Tensor": lambda: (
        [_t(3), _t(4)], [_t(3), _t(4)], [_pos(3), _pos(4)], torch.tensor([2.0, 3.0]),
    ),
    "_foreach_addcmul.Tensor": lambda: (
        [_t(3), _t(4)], [_t(3), _t(4)], [_t(3), _t(4)], torch.tensor([2.0, 3.0]),
    ),
    "_foreach_addcmul_.Tensor": lambda: (
        [_t(3), _t(4)], [_t(3), _t(4)], [_t(3), _t(4)], torch.tensor([2.0, 3.0]),
    ),
    "_foreach_pow.ScalarAndTensor": lambda: (2.0, [_t(3), _t(4)]),
    "_fused_adam_": lambda: (*_adam_lists(), [s.clone() for s in _STEPS], _adam()),
    "_fused_adam_.tensor_lr": lambda: (
        *_adam_lists(), [s.clone() for s in _STEPS], _adam(lr=torch.tensor(0.1)),
    ),
    "_fused_adamw_": lambda: (*_adam_lists(), [s.clone() for s in _STEPS], _adam()),
    "_fused_sgd_": lambda: ([_t(3, 4)], [_t(3, 4)], [_t(3, 4) * 2], _sgd()),
    "_fused_sgd_.tensor_lr": lambda: (
        [_t(3, 4)], [_t(3, 4)], [_t(3, 4) * 2], {**_sgd(), "lr": torch.tensor(0.1)},
    ),
    "_masked_softmax": lambda: (_t(2, 3, 4, 4), _t(2, 3, 4, 4) > 0.5, 3, 2),
    "_pack_padded_sequence": lambda: (_t(4, 3, 2), torch.tensor([4, 2, 1]), False),
    "_pad_packed_sequence": lambda: (_t(7, 2), torch.tensor([3, 2, 1, 1]), False, 0.0, 4),
    "_slow_conv2d_forward": lambda: (
        _t(2, 3, 6, 6), _t(4, 3, 3, 3), [3, 3], _t(4), [1, 1], [1, 1],
    ),
    "_slow_conv2d_forward.output": lambda: (
        _t(2, 3, 6, 6), _t(4, 3, 3, 3), [3, 3], _t(4), [1, 1], [1, 1], {"output": _empty()},
    ),
    "_slow_conv2d_backward.output_mask": lambda: (
        _t(2, 4, 6, 6), _t(2, 3, 6, 6), _t(4, 3, 3, 3), [3, 3], [1, 1], [1, 1], [True] * 3,
    ),
    "_convolution": lambda: (
        _t(2, 3, 6, 6), _t(4, 3, 3, 3), _t(4), [1, 1], [1, 1], [1, 1], False, [0, 0], 1,
        False, False, True, True,
    ),
    "_transform_bias_rescale_qkv": lambda: (_t(2, 3, 24), _t(24), 2),
    "_native_multi_head_attention": lambda: (
        _t(2, 3, 8), _t(2, 3, 8), _t(2, 3, 8), 8, 2, _t(24, 8), _t(24), _t(8, 8), _t(8),
    ),
    "_nnpack_spatial_convolution": lambda: (_t(2, 3, 6, 6), _t(4, 3, 3, 3), _t(4), [1, 1]),
    "_upsample_bicubic2d_aa": lambda: (_t(2, 3, 6, 6), [3, 4], False),
    "_upsample_bicubic2d_aa.out": lambda: (_t(2, 3, 6, 6), [3, 4], False, {"out": _empty()}),
    "_upsample_bicubic2d_aa_backward": lambda: (_t(2, 3, 3, 4), [3, 4], [2, 3, 6, 6], False),
    "_upsample_bicubic2d_aa_backward.grad_input": lambda: (
        _t(2, 3, 3, 4), [3, 4], [2, 3, 6, 6], False, {"grad_input": _empty()},
    ),
    "_weight_norm": lambda: (_t(3, 4), _t(3, 1), 0),
    "adaptive_avg_pool2d": lambda: (_t(2, 3, 6, 6), [3, 2]),
    "adaptive_avg_pool2d.out": lambda: (_t(2, 3, 6, 6), [3, 2], {"out": _empty()}),
    "adaptive_avg_pool3d.out": lambda: (_t(2, 3, 6, 6, 4), [3, 2, 2], {"out": _empty()}),
    "affine_grid_generator": lambda: (_t(2, 2, 3), [2, 3, 4, 5], False),
    "affine_grid_generator_backward": lambda: (_t(2, 4, 5, 2), [2, 3, 4, 5], False),
    "argsort": lambda: (_t(3, 4), -1, True),
    "argsort.stable": lambda: (_t(3, 4), {"stable": True, "dim": 0}),
    "bernoulli_.Tensor": lambda: (_t(20), _pos(20) / 2),
    "bernoulli.p": lambda: (_t(20), 0.5),
    "bucketize.Scalar": lambda: (0.3, _t(6).sort().values),
    "searchsorted.Scalar": lambda: (_t(6).sort().values, 0.3),
    "cdist": lambda: (_t(4, 3), _t(5, 3), 2.0),
    "pdist": lambda: (_t(5, 3), 2.0),
    "contiguous": lambda: (_t(3, 4).t(),),
    "conv_tbc": lambda: (_t(6, 2, 3), _t(3, 3, 4), _t(4), 1),
    "conv_tbc_backward": lambda: (_t(6, 2, 4), _t(6, 2, 3), _t(3, 3, 4), _t(4), 1),
    "embedding_renorm_": lambda: (_t(6, 4) * 5, torch.tensor([1, 2, 4]), 1.0, 2.0),
    "fft_fftshift": lambda: (_t(3, 4), [1]),
    "fft_ifftshift": lambda: (_t(3, 4), [1]),
    "fill_diagonal_": lambda: (_t(7, 3), 9.0, True),
    "flatten_dense_tensors": lambda: ([_t(3, 4), _t(5)],),
    "gru.input": lambda: (
        _t(5, 2, 3), _t(1, 2, 4), [_t(12, 3), _t(12, 4), _t(12), _t(12)], True, 1, 0.0, False,
        False, False,
    ),
    "lstm.input": lambda: (
        _t(5, 2, 3), [_t(1, 2, 4), _t(1, 2, 4)], [_t(16, 3), _t(16, 4), _t(16), _t(16)], True, 1,
        0.0, False, False, False,
    ),
    "lstm.data": lambda: (
        _t(7, 3), torch.tensor([3, 2, 1, 1]), [_t(1, 3, 4), _t(1, 3, 4)],
        [_t(16, 3), _t(16, 4), _t(16), _t(16)], True, 1, 0.0, False, False,
    ),
    "lstm_cell": lambda: (
        _t(2, 3), [_t(2, 4), _t(2, 4)], _t(16, 3), _t(16, 4), _t(16), _t(16),
    ),
    "inverse": lambda: (_t(4, 4) + 3 * torch.eye(4),),
    "inverse.out": lambda: (_t(4, 4) + 3 * torch.eye(4), {"out": _empty()}),
    "slogdet": lambda: (_t(4, 4) + 3 * torch.eye(4),),
    "linalg_cholesky": lambda: (torch.eye(4) * 4 + 1,),
    "linalg_cholesky.out": lambda: (torch.eye(4) * 4 + 1, {"out": _empty()}),
    "isin.Scalar_Tensor_out": lambda: (3, _t(6, dtype=_INT), {"out": _empty(torch.bool)}),
    "isin.Tensor_Scalar": lambda: (_t(6, dtype=_INT), 3),
    "isin.Tensor_Scalar_out": lambda: (_t(6, dtype=_INT), 3, {"out": _empty(torch.bool)}),
    "kl_div": lambda: (_t(3, 4), _pos(3, 4)),
    "l1_loss": lambda: (_t(3, 4), _pos(3, 4)),
    "log_sigmoid": lambda: (_t(3, 4),),
    "log_sigmoid.out": lambda: (_t(3, 4), {"out": _empty()}),
    "multilabel_margin_loss": lambda: (_t(2, 4), torch.tensor([[1, 2, -1, 0], [0, -1, 1, 1]])),
    "multilabel_margin_loss.out": lambda: (
        _t(2, 4), torch.tensor([[1, 2, -1, 0], [0, -1, 1, 1]]), {"out": _empty()},
    ),
    "normal.float_Tensor": lambda: (0.5, _pos(20)),
    "normal.float_Tensor_out": lambda: (0.5, _pos(20), {"out": torch.empty(20)}),
    "one_hot": lambda: (torch.tensor([0, 2, 1]), 4),
    "random_": lambda: (_t(20),),
    "random_.to": lambda: (_t(20), 9),
    "random_.from": lambda: (_t(20), 3, 9),
    "randperm": lambda: (20, {"device": CPU}),
    "randperm.out": lambda: (20, {"out": _empty(_INT)}),
    "range": lambda: (1, 9, {"device": CPU}),
    "range.step": lambda: (1, 9, 2, {"device": CPU}),
    "range.out": lambda: (1, 9, 2, {"out": _empty()}),
    "repeat_interleave.self_Tensor": lambda: (_t(3, 4), torch.tensor([2, 0, 1]), 0),
    "repeat_interleave.self_int": lambda: (_t(3, 4), 2, 1),
    "slow_conv3d_forward": lambda: (
        _t(2, 3, 5, 5, 5), _t(4, 3, 3, 3, 3), [3] * 3, _t(4), [1] * 3, [1] * 3,
    ),
    "slow_conv3d_forward.output": lambda: (
        _t(2, 3, 5, 5, 5), _t(4, 3, 3, 3, 3), [3] * 3, _t(4), [1] * 3, [1] * 3,
        {"output": _empty()},
    ),
    "slow_conv_dilated2d": lambda: (
        _t(2, 3, 7, 7), _t(4, 3, 3, 3), [3, 3], _t(4), [1, 1], [1, 1], [2, 2],
    ),
    "slow_conv_transpose2d": lambda: (
        _t(2, 3, 7, 7), _t(3, 4, 3, 3), [3, 3], _t(4), [1, 1], [1, 1], [0, 0], [1, 1],
    ),
    "slow_conv_transpose2d.out": lambda: (
        _t(2, 3, 7, 7), _t(3, 4, 3, 3), [3, 3], _t(4), [1, 1], [1, 1], [0, 0], [1, 1],
        {"out": _empty()},
    ),
    # torch's CPU kernel does not resize the output.
    "rrelu_with_noise.out": lambda: (
        _t(3, 4), _t(3, 4), 0.1, 0.3, False, {"out": torch.empty(3, 4)},
    ),
    "__ilshift__.Scalar": lambda: (torch.tensor([1, 2]), 2),
    "__ilshift__.Tensor": lambda: (torch.tensor([1, 2]), torch.tensor([3, 1])),
    "__irshift__.Scalar": lambda: (torch.tensor([16, 9]), 2),
    "__irshift__.Tensor": lambda: (torch.tensor([16, 9]), torch.tensor([3, 1])),
    "__lshift__.Scalar": lambda: (torch.tensor([1, 2]), 2),
    "__lshift__.Tensor": lambda: (torch.tensor([1, 2]), torch.tensor([3, 1])),
    "__rshift__.Scalar": lambda: (torch.tensor([16, 9]), 2),
    "__rshift__.Tensor": lambda: (torch.tensor([16, 9]), torch.tensor([3, 1])),
    "__ior__.Scalar": lambda: (torch.tensor([1, 2]), 4),
    "_addmm_activation.out": lambda: (_t(5), _t(3, 4), _t(4, 5), {"out": _empty()}),
    "_lazy_clone": lambda: (_t(3, 4),),
    "_fused_sdp_choice": lambda: (_t(1, 2, 4, 8), _t(1, 2, 4, 8), _t(1, 2, 4, 8)),
    "scaled_dot_product_attention": lambda: (_t(1, 2, 4, 8), _t(1, 2, 4, 8), _t(1, 2, 4, 8)),
    "adaptive_avg_pool3d_backward.grad_input": lambda: (
        _t(2, 3, 2, 2, 2), _t(2, 3, 4, 4, 4), {"grad_input": _empty()},
    ),
    "max.out": lambda: (_t(3, 4), _pos(3, 4) - 1, {"out": _empty()}),
    "min.out": lambda: (_t(3, 4), _pos(3, 4) - 1, {"out": _empty()}),
    "median.dim_values": lambda: (
        _t(3, 4), 1, True, {"values": _empty(), "indices": _empty(_INT)},
    ),
    "nanmean.out": lambda: (_t(3, 4), [1], {"out": _empty()}),
    "norm.ScalarOpt_dtype": lambda: (_t(3, 4), 3, {"dtype": torch.float32}),
    "norm.ScalarOpt_dim_dtype": lambda: (_t(3, 4), 3, [1], True, {"dtype": torch.float32}),
    "norm.dtype_out": lambda: (
        _t(3, 4), 3, [1], True, {"dtype": torch.float32, "out": _empty()},
    ),
    "randperm.generator": lambda: (20, {"generator": torch.Generator(), "device": CPU}),
    "randperm.generator_out": lambda: (
        20, {"generator": torch.Generator(), "out": _empty(_INT)},
    ),
    "as_strided_": lambda: (_t(3, 4), [2, 3], [1, 4], 1),
    "_reshape_alias": lambda: (_t(3, 4), [4, 3], [3, 1]),
    "is_set_to": lambda: (_t(3), _t(3)),
    "set_.source_Tensor": lambda: (_t(3), _t(4, 5)),
    "set_": lambda: (_t(3),),
    "stft": lambda: (
        _t(64), 16, {"window": torch.ones(16), "return_complex": True},
    ),
    "where": lambda: (_t(3, 4) > 0,),
    "xlogy.OutScalar_Other": lambda: (_pos(3), 2.0, {"out": _empty()}),
    "xlogy.OutScalar_Self": lambda: (2.0, _pos(3), {"out": _empty()}),
    "xlogy.Scalar_Other": lambda: (_pos(3), 2.0),
    "xlogy.Scalar_Self": lambda: (2.0, _pos(3)),
    "xlogy_.Scalar_Other": lambda: (_pos(3), 2.0),
    "remainder.Scalar_Tensor": lambda: (7.5, _pos(3)),
    "bitwise_left_shift.Scalar_Tensor": lambda: (2, torch.tensor([1, 2, 3])),
    "bitwise_right_shift.Scalar_Tensor": lambda: (64, torch.tensor([1, 2, 3])),
    **{
        f"{name}{suffix}": lambda extra=extra: (9, *extra, {"device": CPU})
        for name, variants in {
            "bartlett_window": {"": (), ".periodic": (False,)},
            "blackman_window": {"": (), ".periodic": (False,)},
            "hann_window": {"": (), ".periodic": (False,)},
            "hamming_window": {
                "": (), ".periodic": (False,), ".periodic_alpha": (False, 0.6),
                ".periodic_alpha_beta": (False, 0.6, 0.4),
            },
        }.items()
        for suffix, extra in variants.items()
    },
}  # fmt: skip
