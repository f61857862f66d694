"""Where a number or a word is a device, and where nothing shows that it is one."""
import argparse

import requests
import torch
from lib import backends, net, params_of, train
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.cpp_extension import include_paths
from transformers import AutoModel

parser = argparse.ArgumentParser()
parser.set_defaults(place="cuda")  # convert
args = parser.parse_args()

model = AutoModel.from_pretrained("bert").to(0)  # convert
model = DDP(model, device_ids=[args.local_rank % 2], output_device=args.local_rank % 2)  # convert
inputs = tokens("text", return_tensors="pt").to(0)  # convert
weights = load_weights().to(args.place)
backends.cuda()  # flag
net.load_state_dict(weights)
net.cuda()  # convert
folders = include_paths(device_type="cuda")  # flag


def sweep(arm, crane, frame: torch.Tensor):
    arm.to(90)
    crane.to(2)  # flag
    return frame.to(2)  # convert


def compose(x, rankings, low_rank, world_rank):
    return x.to(rankings), x.to(low_rank), x.to(world_rank)  # convert


def ask(url):
    requests.post(url, json={"device": "cuda", "model": "small"})  # flag
    settings = {"device": "cuda"}  # flag
    train(settings)
    options = {"device": "cuda"}  # convert
    params_of(options)
    return torch.ones(1, device=options["device"])


def has_gpu():
    try:
        torch.zeros(1).cuda()  # flag
        return True
    except (RuntimeError, AssertionError):
        return False


def step(batch):
    try:
        return batch.cuda()  # convert
    except RuntimeError as error:
        if "out of memory" in str(error):
            return None
        raise
