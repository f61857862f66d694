from __future__ import division, print_function
import sys
import torch
import torch.nn as nn
import torch.nn.functional as F

try:
    from torch.cuda.amp import GradScaler
except ImportError:
    # dummy GradScaler for PyTorch < 1.6
    class GradScaler:
        def __init__(self, enabled=False):
            pass
        def scale(self, loss):
            return loss
        def unscale_(self, optimizer):
            pass
        def step(self, optimizer):
            optimizer.step()
        def update(self):
            pass

try:
    from apex import amp as apex_amp
except ImportError:
    apex_amp = None

MIXED = 'fp32' not in sys.argv[1:]
autocast = torch.cuda.amp.autocast


class Correlate(torch.autograd.Function):
    """Products along the channels, always in float32."""

    @staticmethod
    @torch.cuda.amp.custom_fwd(cast_inputs=torch.float32)
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return (a * b).sum(1, keepdim=True)

    @staticmethod
    @torch.cuda.amp.custom_bwd
    def backward(ctx, grad):
        a, b = ctx.saved_tensors
        return grad * b, grad * a


class Flow(nn.Module):
    def __init__(self):
        super(Flow, self).__init__()
        self.fnet = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.InstanceNorm2d(8), nn.ReLU())
        self.head = nn.Conv2d(9, 2, 3, padding=1)

    @torch.cuda.amp.autocast(enabled=MIXED)
    def forward(self, image1, image2):
        fmap1, fmap2 = self.fnet(image1), self.fnet(image2)
        corr = Correlate.apply(fmap1, fmap2)
        return self.head(torch.cat([corr, fmap1.to(corr.dtype)], dim=1))


def sequence_loss(flow, flow_gt, valid):
    valid = (valid >= 0.5) & (flow_gt.abs().sum(1) < 400)
    return (valid[:, None] * (flow.float() - flow_gt).abs()).mean()


def fetch(n):
    for _ in range(n):
        img = torch.rand(2, 2, 10, 10)
        yield img, img.roll(1, -1), torch.ones(2, 2, 10, 10), torch.rand(2, 10, 10).gt(0.1).float()


if __name__ == '__main__':
    torch.manual_seed(1234)
    model = Flow()
    model.cuda()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=1e-5, eps=1e-8)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, 20, pct_start=0.2, anneal_strategy='linear')
    scaler = GradScaler(enabled=MIXED)
    for i_batch, data_blob in enumerate(fetch(5)):
        optimizer.zero_grad()
        image1, image2, flow, valid = [x.cuda() for x in data_blob]
        loss = sequence_loss(model(image1, image2), flow, valid)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scheduler.step()
        scaler.update()
        print("[%6d] %s" % (i_batch, loss.item().hex()))
    with autocast(enabled=False):
        print(model(image1[:1], image2[:1]).float().norm().item().hex())
