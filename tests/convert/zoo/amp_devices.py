"""A trainer whose device is an option, and a batch with methods of its own."""

import argparse
from contextlib import nullcontext

import torch

parser = argparse.ArgumentParser()
parser.add_argument("--device", default="cuda")  # convert
args = parser.parse_args()
model = torch.nn.Linear(2, 2).to(args.device)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # convert
device_type = "cuda" if args.device.startswith("cuda") else "cpu"  # convert
scaler = torch.amp.GradScaler(device.type)  # keep


class Batch:
    def __init__(self, x):
        self.x = x

    def record_stream(self, stream):
        self.x.record_stream(stream)  # convert

    def pin_memory(self):
        self.x = self.x.pin_memory()  # convert
        return self


def step(batch, stream):
    with torch.autocast(device_type=args.device, dtype=torch.float16):  # flag
        y = model(batch.x)
    with torch.autocast(device_type=device.type, dtype=torch.bfloat16):  # keep
        y = y + model(batch.x)
    context = nullcontext() if device_type == "cpu" else torch.autocast(device_type)  # keep
    with context, torch.autocast(args.device, enabled=args.device != "cpu"):  # keep
        y = y + model(batch.x)
    with torch.cuda.amp.autocast():  # convert
        y = y + model(batch.x)
    batch.record_stream(stream)  # flag
    return y, stream.priority


def run(x, path):
    stream = torch.cuda.Stream(priority=-1)  # convert
    batch = Batch(x)
    batch.pin_memory()
    step(batch, stream)
    print(stream.priority, isinstance(stream, torch.cuda.Stream))  # convert flag
    model.load_state_dict(torch.load(path), assign=True)  # flag
    checkpoint = torch.load(path)  # flag
    model.load_state_dict(checkpoint["model"])
    return checkpoint["loss_history"].numpy()
