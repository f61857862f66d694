"""Torch under names that this file does not bind, and texts that are not for people."""

import argparse
import re

import torch

HELP = "needs a CUDA device of 8 GB"  # keep
DEFAULTS = "device: cuda:0\namp: true\n"  # flag


def parse():
    parser = argparse.ArgumentParser()
    parser.add_argument("--cuda", action="store_true")  # keep
    return parser.parse_args()


class Backend:
    """Holds the library that it was given."""

    cuda = None  # keep

    def __init__(self, lib, cuda):  # keep
        self.lib = lib
        self.cuda = cuda  # keep

    def wait(self):
        self.lib.cuda.synchronize()  # flag
        self.cuda.synchronize()  # flag
        return self.cuda is not None  # keep

    def free(self):
        with self.lib.cuda.device(0):  # flag
            self.lib.cuda.memory.empty_cache()  # flag
        torch.cuda.empty_cache()  # convert


def on_failure(step, args, log):
    try:
        return step(args.cuda)  # keep
    except RuntimeError as error:
        if "CUDA out of memory" in str(error):  # flag
            return None
        if re.search("CUDA error: .* illegal", error.args[0]):  # flag
            raise RuntimeError("CUDA failed, see the log") from error  # keep
    found = log.startswith("NVIDIA driver is")  # flag
    print("cuda is named in the log:", "CUDA Version" in log)  # flag keep
    return found


def settings(read):
    return read(DEFAULTS), read("backend: nccl\nworkers: 2\n"), args_of(read)  # flag


def args_of(read):
    options = read("options")
    return options.cuda, options.cuda.device  # keep
