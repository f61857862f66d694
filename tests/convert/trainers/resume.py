"""Train, save, load in many ways, train on: the losses go on as if nothing had happened."""
import os
import tempfile

import torch
from torch import nn, optim

CKPT = os.path.join(tempfile.mkdtemp(prefix="runs_cuda_"), "last_cuda:0.pth.tar")
GPU = 0


def make():
    net = nn.Sequential(nn.Linear(6, 24), nn.SiLU(), nn.Linear(24, 3))
    net.to("cuda:0")
    return net, optim.Adam(net.parameters(), lr=3e-3)


def steps(net, opt, how_many, first):
    for k in range(first, first + how_many):
        gen = torch.Generator().manual_seed(k)
        x = torch.randn(10, 6, generator=gen).to(f"cuda:{GPU}")
        target = x[:, :3].argmax(dim=1)
        opt.zero_grad()
        loss = nn.functional.cross_entropy(net(x), target)
        loss.backward()
        opt.step()
        print(k, float(loss).hex())


def save_checkpoint(state, is_best, filename=CKPT):
    torch.save(state, filename)
    if is_best:
        torch.save(state["state_dict"], filename + ".best")


def load_checkpoint(way):
    if way == "string":
        return torch.load(CKPT, map_location="cuda:0")
    if way == "format":
        loc = 'cuda:{}'.format(GPU)
        return torch.load(CKPT, map_location=loc)
    if way == "percent":
        return torch.load(CKPT, map_location='cuda:%d' % GPU)
    if way == "lambda":
        return torch.load(CKPT, map_location=lambda storage, loc: storage.cuda(GPU))
    if way == "device":
        return torch.load(CKPT, map_location=torch.device("cuda", GPU), weights_only=True)
    return torch.load(CKPT, map_location=lambda storage, loc: storage)


if __name__ == "__main__":
    torch.manual_seed(5)
    model, optimizer = make()
    steps(model, optimizer, 2, first=0)
    done = 2
    for way in ("string", "format", "percent", "lambda", "device", "cpu"):
        state = {"epoch": done, "state_dict": model.state_dict(), "optimizer": optimizer.state_dict()}
        save_checkpoint(state, is_best=way == "cpu")
        model, optimizer = make()
        checkpoint = load_checkpoint(way)
        model.load_state_dict(checkpoint["state_dict"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        print("=> loaded checkpoint '{}' (epoch {})".format(way, checkpoint["epoch"]))
        steps(model, optimizer, 1, first=done)
        done += 1
    best = torch.load(CKPT + ".best", map_location="cpu")
    assert all(value.device.type == "cpu" for value in best.values())
