"""An image classifier as people wrote them in 2018: everything moved by hand."""
import argparse

import torch
import torch.nn as nn
import torch.optim as optim

parser = argparse.ArgumentParser(description="train a classifier")
parser.add_argument("--gpu", type=int, default=0)
parser.add_argument("--lr", type=float, default=0.1)
args = parser.parse_args()

model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
model = model.cuda()  # convert
teacher = nn.Linear(8, 4).cuda(args.gpu)  # convert
criterion = nn.CrossEntropyLoss().cuda()  # convert
optimizer = optim.SGD(model.parameters(), lr=args.lr)
weights = torch.ones(4, device="cuda")  # convert
bias = torch.zeros(4, device="cuda:0", dtype=torch.float64)  # convert flag


def batches(n):
    for _ in range(n):
        yield torch.randn(5, 8), torch.randint(0, 4, (5,))


for images, target in batches(3):
    images = images.cuda(non_blocking=True)  # convert
    target = target.cuda(args.gpu, non_blocking=True)  # convert
    extra = [t.cuda() for t in (images, target)]  # convert
    pair = images.cuda(), target.cuda()  # convert
    noise = torch.randn(*images.shape).cuda().clamp(0.0, 1.0)  # convert
    column = images.unsqueeze(1).to("cuda", torch.half)  # convert
    kept = images.to(memory_format=torch.contiguous_format)
    output = model(images)
    loss = criterion(output, target)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

frames = images.cuda(device=0, memory_format=torch.contiguous_format)  # convert
labels = target.new_zeros(5, device="cuda")  # convert
eye = torch.eye(4).to("cuda:1")  # convert
empty = torch.empty(2, device=torch.device("cuda"))  # convert
full = torch.full((2,), 1.0, device=torch.device("cuda", args.gpu))  # convert
