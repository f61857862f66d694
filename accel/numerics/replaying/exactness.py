"""The operators whose results are determined to the last bit.

They return elements of their inputs, or signs, orders and comparisons of them: any difference from
the float64 replay, rounded to the output's dtype, is an error.
"""

EXACT = frozenset(
    {
        "_amp_update_scale_", "_foreach_abs", "_foreach_clamp_max_", "_foreach_clamp_min_",
        "_foreach_copy", "_foreach_copy_", "_foreach_maximum", "_foreach_maximum_",
        "_foreach_minimum", "_foreach_minimum_", "_foreach_neg", "_foreach_neg_", "_foreach_zero_",
        "_to_copy", "_unsafe_view", "abs", "abs_", "adaptive_max_pool2d", "amax", "amin", "aminmax",
        "argmax", "argmin", "argsort", "as_strided_scatter", "bitwise_and", "bitwise_not",
        "bitwise_or", "bitwise_xor", "cat", "ceil", "ceil_", "channel_shuffle", "clamp", "clamp_",
        "clamp_max", "clamp_max_", "clamp_min", "clamp_min_", "clone", "concat", "conj_physical",
        "constant_pad_nd", "contiguous", "copy", "copy_", "cummax", "cummin", "detach_copy",
        "diag_embed", "diagonal_backward", "diagonal_scatter", "embedding", "eq", "eq_",
        "expand_copy", "eye", "fill", "fill_", "flip", "floor", "floor_", "fmax", "fmin", "full",
        "full_like", "gather", "ge", "ge_", "gt", "gt_", "hardtanh", "hardtanh_",
        "hardtanh_backward", "hstack", "im2col", "imag", "index", "index_copy", "index_copy_",
        "index_fill", "index_fill_", "index_select", "isfinite", "isinf", "isnan", "le", "le_",
        "lift_fresh_copy", "logical_and", "logical_not", "logical_or", "logical_xor", "lt", "lt_",
        "masked_fill", "masked_fill_", "masked_scatter", "masked_select", "max", "max_pool1d",
        "max_pool2d_with_indices", "max_pool3d_with_indices", "maximum", "min", "minimum", "msort",
        "nan_to_num", "nan_to_num_", "ne", "ne_", "neg", "neg_", "new_full", "new_ones",
        "new_zeros", "nonzero", "one_hot", "ones", "ones_like", "pad", "permute_copy",
        "pixel_shuffle", "pixel_unshuffle", "real", "reflection_pad1d", "reflection_pad2d", "relu",
        "relu_", "repeat", "replication_pad1d", "replication_pad2d", "roll", "rot90",
        "scalar_tensor", "scatter", "scatter_", "select_backward", "select_copy", "select_scatter",
        "sgn", "sign", "signbit", "slice_backward", "slice_copy", "slice_scatter", "sort",
        "split_with_sizes_copy", "squeeze_copy", "stack", "take", "take_along_dim", "threshold",
        "threshold_", "threshold_backward", "tile", "to", "topk", "transpose_copy", "tril", "tril_",
        "triu", "triu_", "trunc", "trunc_", "unfold_copy", "unsafe_chunk", "unsafe_split",
        "unsafe_split_with_sizes", "unsqueeze_copy", "upsample_nearest1d", "upsample_nearest2d",
        "upsample_nearest3d", "view_as_complex_copy", "view_as_real_copy", "view_copy", "vstack",
        "where", "zero", "zero_", "zeros", "zeros_like", "round", "round_", "mode", "median",
        "nanmedian", "kthvalue", "frac", "frac_", "sgn_", "sign_", "copysign",
        "copysign_", "heaviside", "heaviside_", "nextafter", "nextafter_", "_unique2", "unique_dim",
        "unique_consecutive", "unique_dim_consecutive", "masked_scatter_", "put", "put_",
        "fix", "fix_",
    }
)  # fmt: skip
"""Names in the namespace `aten`."""
