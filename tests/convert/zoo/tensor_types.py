"""Tensor classes as aliases, constructors, names and tests."""

import torch
from torch.cuda import LongTensor  # keep

cuda = torch.cuda.is_available()  # convert keep
Tensor = torch.cuda.FloatTensor if cuda else torch.FloatTensor  # convert keep
Float, Bytes = torch.cuda.HalfTensor, torch.cuda.ByteTensor  # convert
kinds = ["torch.cuda.HalfTensor", "torch.cuda.FloatTensor"]  # convert


def make(x, labels):
    y = Tensor(3, 4).fill_(0)
    z = LongTensor(labels)  # convert
    y = y + torch.cuda.FloatTensor([1.0, 2.0]).mean()  # convert
    y = y + x.gt(0).type(torch.cuda.FloatTensor)  # convert
    y = y + x.type("torch.cuda.DoubleTensor")  # convert
    return y, z, x.type("torch.DoubleTensor")


def split(parameters):
    found = {}
    for kind in kinds:
        found[kind] = [p for p in parameters if p.type() == kind]
    return found


def test(x, y: torch.cuda.FloatTensor):  # convert
    if x.type() == "torch.cuda.HalfTensor":  # convert
        x = x.float()
    if isinstance(x, torch.cuda.FloatTensor):  # convert
        return x
    if isinstance(x, (torch.FloatTensor, torch.cuda.IntTensor)):  # convert
        return y
    print("a torch.cuda.FloatTensor is wanted")  # keep
    return show("torch.cuda.FloatTensor"), torch.cuda.FloatStorage  # flag
