"""Our own kernels in Triton: one source for CUDA, XPU and triton-ascend.

Importing this imports Triton. Every pairing and any depth, in memory that grows linearly with the
batch. The logits are computed once in the forward and once in the backward, by tiles, and sums
are taken in one order, so that the same inputs give the same bits. Tested in Triton's interpreter,
and compiled for GPUs; not yet run on a device.
"""

from accel_kernels.contrastive_loss.passes import Passes
from accel_kernels.contrastive_loss.triton.sigmoid_pass import sigmoid
from accel_kernels.contrastive_loss.triton.softmax_passes import softmax, softmax_backward

PASSES = Passes(softmax, softmax_backward, sigmoid, reads_values=False)
