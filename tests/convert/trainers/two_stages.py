"""Halves of a model on two devices, as in the tutorials on model parallelism."""
import torch
from torch import nn

DEV_A, DEV_B = torch.device("cuda", 0), "cuda:1"


class Stage(nn.Module):
    def __init__(self, width_in, width_out):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(width_in, 32), nn.SELU(), nn.Linear(32, width_out))

    def forward(self, x):
        return self.body(x)


class Split(nn.Module):
    def __init__(self, chunk=4):
        super().__init__()
        self.first = Stage(10, 16).to(DEV_A)
        self.second = Stage(16, 3).to('cuda:1')
        self.chunk = chunk

    def forward(self, x):
        parts = iter(x.split(self.chunk, dim=0))
        s_next = next(parts)
        s_prev = self.first(s_next.to("cuda:0")).to(DEV_B)
        ret = []
        for s_next in parts:
            ret.append(self.second(s_prev))
            s_prev = self.first(s_next.to("cuda:0")).to("cuda:1")
        ret.append(self.second(s_prev))
        return torch.cat(ret)


def norm_of(parameters, device):
    total = torch.zeros((), device=device)
    for p in parameters:
        total += p.detach().to(device).pow(2).sum()
    return total.sqrt()


def main():
    torch.manual_seed(31)
    model = Split()
    opt = torch.optim.SGD(model.parameters(), lr=0.05)
    lossf = nn.MSELoss()
    for step in range(5):
        inputs = torch.randn(12, 10)
        labels = inputs[:, :3].cumsum(1).cuda(1)
        opt.zero_grad()
        outputs = model(inputs.cuda(0))
        with torch.cuda.device(1):
            loss = lossf(outputs, labels)
            scale = torch.ones(1, device='cuda')  # of the device that the block names
            loss = (loss * scale.to(loss.device)).sum()
        with torch.cuda.device_of(loss):
            loss.backward()
        opt.step()
        print(step, loss.item().hex())
    for index in range(2):
        torch.cuda.synchronize(index)
    print("norm", norm_of(model.parameters(), DEV_A).item().hex())


if __name__ == "__main__":
    main()
