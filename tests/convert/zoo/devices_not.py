"""Words that must stay: each is something else than the name of a device."""
import logging
import os

import torch
import xgboost

__all__ = ["cuda", "xpu", "lookup"]  # keep
TABLE = {"cuda": 1, "rocm": 2}  # keep
BY_DEVICE = {"cuda": 1, "cpu": 2}  # flag
print(TABLE["cuda"])  # keep
print("cuda")  # keep
logging.info("running on cuda:%d", 1)  # keep
os.makedirs("runs/cuda")  # keep
path = os.path.join("logs", "cuda")  # keep
with open("cuda") as stream:  # keep
    stream.read()
booster = xgboost.XGBClassifier(device="cuda")  # flag
message = "cuda: %s" % path  # keep
print(message)


class Remote:
    def to(self, name):
        return name

    def cuda(self):  # flag
        return 1


remote = Remote()
remote.to("cuda")  # flag
remote.cuda()  # flag


def shadowed(torch):
    return torch.device("cuda:0")  # flag


def lookup(register):
    kind = "cuda"  # flag
    register(kind)
    where = "cuda"  # flag
    search(where)
    return torch.ones(1).to(where)


def search(text):
    return text[:2]


url = "tcp://cuda-node1:23456"  # keep
torch.distributed.is_available()
text = f"cuda:{url}"  # keep
print(text)
for column in ["cuda", "xpu"]:  # flag
    print(column)
raise ValueError("cuda")  # keep
