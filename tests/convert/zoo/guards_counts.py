"""Numbers of devices, and what they decide, in the manner of scripts before DDP was common."""
import argparse

import torch
from torch import nn


def setup(args, logger):
    if args.local_rank == -1:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # convert
        args.n_gpu = torch.cuda.device_count()  # flag
    else:
        torch.cuda.set_device(args.local_rank)  # convert
        device = torch.device("cuda", args.local_rank)  # convert
        args.n_gpu = 1
    args.batch_size = args.per_gpu * max(1, args.n_gpu)
    logger.warning("device %s, n_gpu %s", device, args.n_gpu)
    torch.manual_seed(args.seed)
    if args.n_gpu > 0:
        torch.cuda.manual_seed_all(args.seed)  # convert
    return device


def train(args, model, batches, device):
    model.to(device)
    if args.n_gpu > 1:
        model = nn.DataParallel(model)  # flag
    for batch in batches:
        loss = model(batch.to(device))
        if args.n_gpu > 1:
            loss = loss.mean()
        loss.backward()


class Trainer:
    def __init__(self, model):
        self.n_gpu = torch.cuda.device_count()  # convert
        self.device = "cuda:0" if self.n_gpu > 0 else "cpu"  # convert
        self.model = model.to(self.device)
        if self.n_gpu > 1:  # flag
            self.model = nn.DataParallel(self.model)  # flag


def launch(run):
    count = torch.cuda.device_count()  # convert
    torch.multiprocessing.spawn(run, nprocs=count)


parser = argparse.ArgumentParser()
parser.add_argument("--per_gpu", type=int, default=8)
