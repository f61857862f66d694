"""What to do about interfaces that the support tables list as unsupported."""

from __future__ import annotations

GENERIC = (
    "Run it once on the chip before relying on it, at first with `accel simulate`; if it is "
    "refused, compute this step on the CPU or from other operators."
)

_TRANSFORMER = "Write the layers with torch.nn.Linear and scaled_dot_product_attention."
_PACKED = "Keep the padding: run the recurrent layer over it and mask the outputs."
_POOL = "Pool in two dimensions, with a size of 1 in the missing one."
_FUNC = "Write the derivative with torch.autograd.grad, and loops for what vmap batches."
_SPARSE = "Keep the tensor dense, or in the COO layout, on the device."
_FSDP = "Use torch.distributed.fsdp.fully_shard."
_HOST = "Go through the host: `.cpu().numpy()` on one side, from_numpy on the other."
_FREQUENCIES = "Compute it on the CPU once and move the result."

# By name, or by the longest prefix that ends in a dot.
ADVICE = {
    "torch.nn.RNN": "Use torch.nn.GRU or torch.nn.LSTM where the model may change.",
    "torch.nn.RNNCell": "Use torch.nn.GRUCell or torch.nn.LSTMCell where the model may change.",
    "torch.nn.Transformer": _TRANSFORMER,
    "torch.nn.TransformerEncoder": _TRANSFORMER,
    "torch.nn.TransformerDecoder": _TRANSFORMER,
    "torch.nn.TransformerEncoderLayer": _TRANSFORMER,
    "torch.nn.TransformerDecoderLayer": _TRANSFORMER,
    "torch.nn.utils.rnn.": _PACKED,
    "torch.nn.MaxPool1d": _POOL,
    "torch.nn.AdaptiveMaxPool1d": _POOL,
    "torch.nn.functional.adaptive_max_pool1d": _POOL,
    "torch.nn.functional.embedding_bag": "Use torch.nn.functional.embedding and sum or mean.",
    "torch.nn.functional.gumbel_softmax": "Add -log(-log(u)) to the logits, then take a softmax.",
    "torch.nn.functional.triplet_margin_loss": "It is a clamp of a difference of two distances.",
    "torch.nn.functional.pdist": "Take the upper triangle of torch.cdist.",
    "torch.nn.CosineEmbeddingLoss": "Write it with torch.nn.functional.cosine_similarity.",
    "torch.nn.utils.clip_grad_norm": "Use torch.nn.utils.clip_grad_norm_.",
    "torch.std_mean": "Call torch.std and torch.mean.",
    "torch.var_mean": "Call torch.var and torch.mean.",
    "torch.scatter_reduce": "Use index_add, or scatter_add, where the reduction is a sum.",
    "torch.unique_consecutive": "Compare each element with the one before it, or use torch.unique.",
    "torch.Tensor.unique_consecutive": (
        "Compare each element with the one before it, or use torch.unique."
    ),
    "torch.heaviside": "Use torch.where.",
    "torch.poisson": "Draw it on the CPU and move the result.",
    "torch.fft.fftfreq": _FREQUENCIES,
    "torch.fft.rfftfreq": _FREQUENCIES,
    "torch.fft.fftshift": "Use torch.roll by half of each size.",
    "torch.fft.ifftshift": "Use torch.roll by half of each size.",
    "torch.func.": _FUNC,
    "torch.sparse_csr_tensor": _SPARSE,
    "torch.sparse_csc_tensor": _SPARSE,
    "torch.sparse_bsr_tensor": _SPARSE,
    "torch.sparse_bsc_tensor": _SPARSE,
    "torch.from_dlpack": _HOST,
    "torch.utils.dlpack.": _HOST,
    "torch.distributed.fsdp.FullyShardedDataParallel": _FSDP,
    "torch.export.": "Export on a CPU; the exported program can then be moved or compiled.",
    "torch.quantize_per_tensor": "Quantize on the CPU, or use torch_npu's quantized operators.",
    "torch.quantize_per_channel": "Quantize on the CPU, or use torch_npu's quantized operators.",
}
# Methods of tensors with names that nothing else has.
METHODS = frozenset(
    {
        "chalf",
        "int_repr",
        "smm",
        "sparse_mask",
        "sspaddmm",
        "to_mkldnn",
        "to_sparse",
        "to_sparse_bsc",
        "to_sparse_bsr",
        "to_sparse_csc",
        "to_sparse_csr",
        "unique_consecutive",
    }
)
# Other families speak of these, or they do nothing on a device.
ELSEWHERE = (
    "torch.accelerator.",
    "torch.autograd.profiler.",
    "torch.backends.",
    "torch.compiler.",
    "torch.cuda.",
    "torch.fx.",
    "torch.nn.DataParallel",
    "torch.nn.parallel.data_parallel",
    "torch.onnx.",
    "torch.profiler.",
    "torch.testing.",
    "torch.utils.cpp_extension.",
    "torch.utils.mobile_optimizer.",
    "torch.utils.generate_methods_for_privateuse1_backend",
    "torch.utils.get_cpp_backtrace",
)


def advice_for(api: str) -> str:
    """What to do instead of one interface."""
    known = ADVICE.get(api)
    if known is None:
        known = next(
            (text for name, text in ADVICE.items() if name.endswith(".") and api.startswith(name)),
            None,
        )
    return f"{known} {GENERIC}" if known else GENERIC
