"""Conditions that ask for an accelerator, whatever it is called."""
import argparse

import torch

parser = argparse.ArgumentParser()
parser.add_argument("--device", default="cpu")
args = parser.parse_args()
device = torch.device(args.device)
device_type = "cuda" if "cuda" in args.device else "cpu"  # convert
if device.type == "cuda":  # convert
    workers = 4
if device.type != "cuda":  # convert
    workers = 0
if device_type == "cuda" and workers:  # convert
    print("pinned")
if args.device.startswith("cuda"):  # convert
    print("fast")
if "cuda" not in str(device):  # convert
    print("slow")
if str(device) == "cuda:1":  # flag
    print("the second")
pin = device.type in ("cuda", "mps")  # flag


def normalise(x, mean):
    if x.is_cuda:  # convert
        mean = mean.to(x.device)
    scale = 2.0 if (x - mean).is_cuda else 1.0  # convert
    assert x.device.type == "cuda" or scale == 1.0  # convert
    return (x - mean) * scale


def ask(tensor):
    return tensor.is_cuda, tensor.data.is_cuda  # convert


while device.type == "cuda" and workers > 8:  # convert
    workers -= 1
kinds = [d for d in (device,) if d.type == "cpu"]
