"""Trains a small model."""

import argparse
import logging
import os

import torch
from cuda_tools import cuda_timer  # flag

logger = logging.getLogger(__name__)
CUDA_WARMUP = 3  # keep


class Settings:
    """What a run is told: use_cuda, cudnn_benchmark."""  # keep

    use_cuda = True  # keep
    cudnn_benchmark = False  # keep

    def __init__(self, cuda_streams=2):  # keep
        self.cuda_streams = cuda_streams  # keep

    def streams(self):
        return self.cuda_streams if self.use_cuda else 0  # keep


def parse():
    parser = argparse.ArgumentParser(description="trains on CUDA or on the CPU")  # keep
    parser.add_argument("--cuda", action="store_true", dest="cuda", help="use cuda")  # keep
    parser.add_argument("--no-cuda", action="store_false", dest="cuda")  # keep
    parser.add_argument("--nvidia-smi", metavar="CUDA", default=None)  # keep
    parser.add_argument("--out", default="/data/cuda_runs/first")  # keep
    return parser.parse_args()


def main():
    args = parse()
    settings = Settings(cuda_streams=4)  # keep
    if args.cuda and settings.use_cuda:  # keep
        logger.info("cuda with %d streams", settings.streams())  # keep
    config = {"use_cuda": args.cuda, "cudnn_benchmark": False}  # keep
    print(f"cuda: {config['use_cuda']}, warm-up {CUDA_WARMUP}")  # keep
    try:
        import tools  # noqa: F401
    except ImportError as nvidia_error:  # keep
        logger.warning("nvidia tools are missing: %s", nvidia_error)  # keep
    address = "tcp://cuda-node1:23456"  # keep
    state = torch.load("/data/cuda_runs/last.pt", map_location="cpu")  # keep
    cuda = bool(args.cuda)  # keep
    with cuda_timer("cuda part") as cuda_time:  # keep
        total = sum(cuda_id for cuda_id in range(3))  # keep
    if not cuda:  # keep
        raise RuntimeError("CUDA is needed: run with --cuda")  # keep
    os.makedirs("runs/cuda/plots", exist_ok=True)  # keep
    return address, state, total, cuda_time  # keep


def unknown(layer, x, tools):
    """Words of which nothing here proves what they are."""
    y = layer(x, cuda_graphs=True)  # flag
    tools.cuda_report(y)  # flag
    name = "cuda_" + str(y)  # flag
    os.system("nvidia-smi -L")  # flag
    return name
