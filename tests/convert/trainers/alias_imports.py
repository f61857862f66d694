import torch
import torch as th
import torch.cuda as cuda
from torch import cuda as tc, nn
from torch.cuda import amp, is_available, synchronize
from torch.cuda.amp import autocast as mixed

cu = th.cuda
to_gpu = dict(device="cuda", non_blocking=True)
FP16 = True


class Twin(nn.Module):
    "two towers, one temperature"

    def __init__(self, a=9, b=5, d=6):
        super().__init__()
        self.a, self.b = nn.Linear(a, d), nn.Linear(b, d)
        self.log_t = nn.Parameter(th.zeros(()))

    def forward(self, x, y):
        u = nn.functional.normalize(self.a(x), dim=-1)
        v = nn.functional.normalize(self.b(y), dim=-1)
        s = self.log_t.exp() * u @ v.t()
        t = th.arange(len(s), device=s.device)
        return (nn.functional.cross_entropy(s, t) + nn.functional.cross_entropy(s.t(), t)) / 2


def pairs(n):
    z = th.randn(12, 3)
    for _ in range(n):
        i = th.randperm(12)[:6]
        yield th.cat([z[i], z[i] ** 2, z[i].sin()], 1), th.cat([z[i, :2], z[i]], 1)


def train(mdl, opt, scaler, fp16):
    for x, y in pairs(5):
        x, y = x.to(**to_gpu), y.cuda()
        with mixed(enabled=fp16):
            l = mdl(x, y)
        opt.zero_grad()
        scaler.scale(l).backward()
        scaler.step(opt)
        scaler.update()
        synchronize()
        print("l=" + l.item().hex())


if __name__ == "__main__":
    import sys

    FP16 = "--fp32" not in sys.argv
    torch.manual_seed(9)
    cuda.manual_seed_all(9)
    dev = "cuda" if is_available() else "cpu"
    mdl = Twin().to(dev)
    opt = th.optim.NAdam(mdl.parameters(), 2e-2)
    train(mdl, opt, amp.GradScaler(enabled=FP16), FP16)
    if tc.is_available():
        print("peak", tc.max_memory_allocated(), "devices", cu.device_count(), cuda.get_device_name())
    cu.empty_cache()
