"""Conditions that mean one vendor and nothing else, and words that are no devices."""
import argparse
import subprocess

import torch
import roi_ops

parser = argparse.ArgumentParser()
parser.add_argument("--impl", default="cuda", choices=["ref", "cuda"])  # keep
parser.add_argument("--where", dest="device", default="cpu", choices=["cpu", "cuda"])  # flag
args = parser.parse_args()
device = torch.device(args.device)


def upsample(x, impl="cuda"):  # keep
    assert impl in ["ref", "cuda"]  # keep
    if impl == "cuda" and x.device.type == "cuda" and _init():  # keep
        return fast(x)
    return x.repeat(2)


def _init():
    return False


def fast(x):
    return x


def should_use_custom_op(x):
    if x.device.type != "cuda":  # keep
        return False
    return True


class Roi(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        if not x.is_cuda:  # keep
            raise NotImplementedError
        return roi_ops._C.forward(x)


def optimizer(params, device_type, available):
    use_fused = available and device_type == "cuda"  # keep
    return torch.optim.AdamW(params, fused=use_fused)


def parallel(net):
    if device.type == "cuda":  # flag
        net = torch.nn.DataParallel(net)  # flag
    if torch.cuda.is_available() and torch.cuda.device_count() > 1:  # flag
        net = torch.nn.DataParallel(net)  # flag
    if torch.cuda.is_available():  # convert
        if torch.cuda.device_count() > 1:  # flag
            net = torch.nn.DataParallel(net)  # flag
        net = net.cuda()  # convert
    return net


def patch(graph, holder):
    for node in graph.findAllNodes("prim::Constant"):
        if "value" in node.attributeNames() and str(node["value"]).startswith("cuda"):  # keep
            node.copyAttributes(holder)


def select(name):
    index = name.replace("cuda:", "")  # keep
    number = args.device.replace("cuda:", "")  # flag
    rest = args.device.split("cuda:")[-1]  # flag
    return index, number, rest


def listing():
    if torch.cuda.is_available():  # flag
        subprocess.run(["nvidia-smi", "-L"])  # flag
    if "cuda" in open("/proc/modules").read():  # flag
        return 1
    if args.device not in ("cpu", "cuda"):  # flag
        raise ValueError(args.device)
    return 0


backend = "cuda"  # keep
if backend == "numpy":
    print(0)
if args.impl == "cuda":  # keep
    print(1)
