"""A launcher in the manner of many training scripts."""

import argparse
import os
import subprocess

import torch
import torch.distributed as dist
from torch.distributed import Backend

BACKEND = "nccl"  # convert


def parse():
    parser = argparse.ArgumentParser()
    parser.add_argument("--dist-backend", default="nccl", choices=["nccl", "gloo"])  # convert keep
    parser.add_argument("--library", default="nccl")  # flag
    return parser.parse_args()


def start(rank, world, args):
    os.environ["CUDA_VISIBLE_DEVICES"] = str(rank)  # convert
    os.environ["NCCL_DEBUG"] = "INFO"  # keep
    os.environ["NCCL_SOCKET_IFNAME"] = "eth0"  # flag
    os.environ.setdefault("CUDA_LAUNCH_BLOCKING", "1")  # convert
    if "CUDA_VISIBLE_DEVICES" not in os.environ:  # convert
        print("no CUDA_VISIBLE_DEVICES is set")  # keep
    backend = "nccl" if torch.cuda.is_available() else "gloo"  # convert
    dist.init_process_group(backend, rank=rank, world_size=world)
    side = dist.new_group(backend="gloo")
    fast = dist.new_group([0, 1], backend=Backend.NCCL)  # convert
    third = dist.new_group(backend=BACKEND)
    mixed = dist.new_group(backend="cpu:gloo,cuda:nccl")  # convert
    if args.dist_backend == "nccl":  # convert
        torch.cuda.synchronize()  # convert
    if dist.get_backend() != "nccl" and world > 1:  # convert
        print("not nccl")  # keep
    if args.library == "nccl":  # flag
        print(dist.is_nccl_available())  # convert
    return side, fast, third, mixed


def options():
    return dist.ProcessGroupNCCL.Options()  # flag


def child(command):
    env = dict(os.environ)
    env["CUDA_VISIBLE_DEVICES"] = "0"  # flag
    devices = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")  # convert keep
    subprocess.run(command, env=env, check=True)
    return len(devices)
