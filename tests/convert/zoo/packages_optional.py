"""Packages that a program can do without, and some that it cannot."""
import torch

try:
    from apex import amp as apex_amp  # keep
    from apex.parallel import DistributedDataParallel as ApexDDP  # keep
except ImportError:
    apex_amp = None  # keep
    ApexDDP = None
try:
    import pynvml  # keep
except (ImportError, ModuleNotFoundError):
    pynvml = None  # keep
try:
    from apex.optimizers import FusedAdam  # keep
except ImportError:
    FusedAdam = torch.optim.Adam
try:
    import cupy  # flag
except ImportError as error:
    raise SystemExit("this needs cupy") from error  # keep
from apex.normalization import FusedLayerNorm  # flag

net = FusedLayerNorm(8)
opt = FusedAdam(net.parameters())
if apex_amp is not None:  # keep
    net, opt = apex_amp.initialize(net, opt)  # keep flag
