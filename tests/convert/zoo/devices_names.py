"""Names of devices in all the places where programs keep them."""
import argparse
import os
from dataclasses import dataclass, field

import torch
from torch import device as Device
from torch import nn

DEVICE = "cuda"  # convert
SECOND = torch.device("cuda:1")  # convert
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # convert
fallback = "cuda:0" if torch.cuda.is_available() else "cpu"  # convert
inverted = "cpu" if not torch.cuda.is_available() else "cuda"  # convert
both = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")  # convert
numbered = Device(type="cuda", index=3)  # convert
devices = ["cuda:0", "cuda:1"]  # convert
plan = {"device": "cuda", "layers": 3}  # convert

parser = argparse.ArgumentParser()
parser.add_argument("--device", type=str, default="cuda")  # convert
parser.add_argument("-d", "--where", default="cuda:0", dest="place")  # convert
args = parser.parse_args()


@dataclass
class Settings:
    device: str = "cuda"  # convert
    steps: int = 3
    sizes: list = field(default_factory=list)


class Model(nn.Module):
    def __init__(self, device="cuda"):  # convert
        super().__init__()
        self.home = "cuda"  # convert
        self.layer = nn.Linear(2, 2).to(device)

    def forward(self, x):
        return self.layer(x.to(self.home))


def place(x, where="cuda:2"):  # convert
    return x.to(where)


def rank_device(rank: int):
    name = f"cuda:{rank}"  # convert
    other = "cuda:" + str(rank)  # convert
    third = "cuda:%d" % rank  # convert
    fourth = "cuda:{}".format(rank)  # convert
    a = torch.ones(1, device=name).to(other)
    b = torch.ones(1).to(third).to(fourth)
    c = torch.ones(1).to(f"cuda:{rank}")  # convert
    d = torch.device("cuda", rank)  # convert
    e = torch.device(f"cuda:{rank % 2}")  # convert
    f = torch.device("cuda:" + os.environ["LOCAL_RANK"])  # convert
    return a, b, c, d, e, f


for name in ("cpu", "cuda"):  # convert
    torch.zeros(1, device=name)

x = place(torch.ones(1).to(DEVICE), "cuda")  # convert
y = place(torch.ones(1), where="cuda:1").to(devices[0]).to(args.device).to(args.place)  # convert
z = torch.ones(1, device=plan["device"]).to(fallback).to(inverted)
net = Model(device="cuda")  # convert
torch.set_default_device("cuda")  # convert
if x.numel() > 3:
    late = "cuda"  # convert
else:
    late = "cpu"
w = x.to(late)
v = x.to("cuda") if x.numel() else x.cpu()  # convert
config = dict(device="cuda")  # convert
