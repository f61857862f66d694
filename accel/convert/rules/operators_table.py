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
_QUANTIZED = "Quantize on the CPU and keep such tensors there; use float layers on the device."
_SHARED = "Share the tensor of the CPU between processes, and move it in each of them."
_OTHER_DEVICE = "Use `.to(device)` and `.device.type`, which name no vendor."
_CHECK = "It only checks tensors: leave it out on the device."
_SETTING = "It only reads a setting: keep in a variable what was set."
_BINS = (
    "Bin i of n spans floor(i*size/n) to ceil((i+1)*size/n): take amax of each; where n divides "
    "the size, it is a plain max-pooling."
)
_TWO_STEPS = "Pool the last two dimensions, then the depth by itself: the values are the same."
_PAD_DEPTH = "Pad the last two dimensions, then the depth with index_select of its own indexes."
_TENSOR_PARALLEL = (
    "Split the weights of the linear layers by hand, and add the parts with "
    "torch.distributed.all_reduce."
)
_REMOTE = (
    "Keep an optimizer in each worker; call over rpc a function that takes the gradients of "
    "torch.distributed.autograd.get_gradients and steps it."
)
_CONJUGATE = 'For real x it is torch.fft.rfftn(x, norm="forward").conj() over the same dimensions.'
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
    "torch.nn.AdaptiveMaxPool1d": _BINS,
    "torch.nn.AdaptiveMaxPool2d": _BINS,
    "torch.nn.functional.adaptive_max_pool1d": _BINS,
    "torch.nn.functional.adaptive_max_pool2d": _BINS,
    "torch.nn.AvgPool3d": _TWO_STEPS,
    "torch.nn.functional.avg_pool3d": _TWO_STEPS,
    "torch.nn.MaxPool3d": _TWO_STEPS,
    "torch.nn.MaxUnpool3d": "Scatter the values by the flattened indices into zeros.",
    "torch.nn.functional.max_unpool3d": "Scatter the values by the flattened indices into zeros.",
    "torch.nn.ReflectionPad3d": _PAD_DEPTH,
    "torch.nn.ReplicationPad3d": _PAD_DEPTH,
    "torch.nn.RReLU": (
        "In training it is torch.where(x >= 0, x, x * torch.empty_like(x).uniform_(lower, upper)), "
        "and else leaky_relu with the mean of both slopes."
    ),
    "torch.nn.RNNBase": "Hold a torch.nn.GRU or torch.nn.LSTM instead of deriving from it.",
    "torch.nn.RNNBase.flatten_parameters": "It arranges weights for cuDNN: leave it out.",
    "torch.nn.LazyLinear.cls_to_become": "Use torch.nn.Linear with its size written out.",
    "torch.nn.AdaptiveLogSoftmaxWithLoss": (
        "Use torch.nn.Linear and cross_entropy over all classes where the model may change."
    ),
    "torch.nn.AdaptiveLogSoftmaxWithLoss.": (
        "Use torch.nn.Linear and log_softmax over all classes where the model may change."
    ),
    "torch.nn.MultiLabelMarginLoss": (
        "Write it out: clamp(1 - (x[target] - x[other]), min=0), summed and divided by the classes."
    ),
    "torch.nn.functional.multilabel_soft_margin_loss": (
        "It is the mean over classes of binary_cross_entropy_with_logits."
    ),
    "torch.nn.functional.triplet_margin_with_distance_loss": (
        "It is a clamp of a difference of two distances."
    ),
    "torch.nn.Module.ipu": _OTHER_DEVICE,
    "torch.nn.Module.npu": _OTHER_DEVICE,
    "torch.nn.Module.share_memory": _SHARED,
    "torch.Tensor.share_memory_": _SHARED,
    "torch.Tensor.is_shared": _SHARED,
    "torch.TypedStorage.share_memory_": _SHARED,
    "torch.UntypedStorage.from_file": "It is host memory: read it there, and move the tensor.",
    "torch.TypedStorage.": _OTHER_DEVICE,
    "torch.UntypedStorage.": _OTHER_DEVICE,
    "torch.QInt32Storage": _QUANTIZED,
    "torch.QInt8Storage": _QUANTIZED,
    "torch.QUInt2x4Storage": _QUANTIZED,
    "torch.QUInt4x2Storage": _QUANTIZED,
    "torch.Tensor.int_repr": _QUANTIZED,
    "torch.Tensor.qscheme": _QUANTIZED,
    "torch.ao.nn.": _QUANTIZED,
    "torch.ao.ns.fx.utils.compute_sqnr": "It is 20 * log10(norm(x) / norm(x - y)).",
    "torch.Tensor.chalf": "Use complex64: `.to(torch.complex64)`.",
    "torch.Tensor.mode": (
        "Compute it on the CPU and move the result, or count with torch.unique(return_counts=True)."
    ),
    "torch.nanquantile": "In one dimension it is torch.quantile(x[~x.isnan()], q).",
    "torch.linalg.ldl_factor": (
        "Use torch.linalg.cholesky where the matrix is positive definite, else lu_factor."
    ),
    "torch.nested.": "Keep one padded tensor, and a mask of what is padding.",
    "torch.fft.ihfft2": _CONJUGATE,
    "torch.fft.ihfftn": _CONJUGATE,
    "torch.is_deterministic_algorithms_warn_only_enabled": _SETTING,
    "torch.optim.Adam.step": "torch.optim.AdamW with weight_decay=0 computes the same.",
    "torch.optim.": "Its step is arithmetic of tensors: write it out in an optimizer of your own.",
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
    "torch.func.replace_all_batch_norm_modules_": (
        "Build the model with GroupNorm, or with track_running_stats=False."
    ),
    "torch.Tensor.to_dense": "Add the values into zeros with index_put(accumulate=True).",
    "torch.Tensor.to_mkldnn": "It is a layout of CPUs: leave it out on the device.",
    "torch.Tensor.sparse_mask": "Take the elements of the dense tensor at the mask's indices.",
    "torch.Tensor.smm": _SPARSE,
    "torch.Tensor.sspaddmm": _SPARSE,
    "torch.Tensor.to_sparse": "Keep the tensor dense on the device, or make it sparse on the CPU.",
    "torch.Tensor.to_sparse_bsc": _SPARSE,
    "torch.Tensor.to_sparse_bsr": _SPARSE,
    "torch.Tensor.to_sparse_csc": _SPARSE,
    "torch.Tensor.to_sparse_csr": _SPARSE,
    "torch.sparse.as_sparse_gradcheck": _CHECK,
    "torch.sparse.check_sparse_tensor_invariants": _CHECK,
    "torch.sparse.check_sparse_tensor_invariants.": _CHECK,
    "torch.sparse_csr_tensor": _SPARSE,
    "torch.sparse_csc_tensor": _SPARSE,
    "torch.sparse_bsr_tensor": _SPARSE,
    "torch.sparse_bsc_tensor": _SPARSE,
    "torch.from_dlpack": _HOST,
    "torch.utils.dlpack.": _HOST,
    "torch.distributed.fsdp.FullyShardedDataParallel": _FSDP,
    "torch.distributed.fsdp.FullyShardedDataParallel.": (
        f"{_FSDP} torch.distributed.checkpoint.state_dict reads and writes its state."
    ),
    "torch.distributed.optim.DistributedOptimizer": _REMOTE,
    "torch.distributed.optim.DistributedOptimizer.": _REMOTE,
    "torch.distributed.tensor.parallel.": _TENSOR_PARALLEL,
    "torch.distributed.elastic.rendezvous.etcd_server.": (
        "Use torchrun with --rdzv-backend=c10d, which needs no server."
    ),
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


def substitute(api: str) -> str:
    """What takes the place of one interface; "" where nothing is known to."""
    prefixes = [name for name in ADVICE if name.endswith(".") and api.startswith(name)]
    return ADVICE.get(api) or (ADVICE[max(prefixes, key=len)] if prefixes else "")


def advice_for(api: str) -> str:
    """What to do instead of one interface."""
    known = substitute(api)
    return f"{known} {GENERIC}" if known else GENERIC
