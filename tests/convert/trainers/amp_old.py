"""Segmentation of random blobs with automatic mixed precision, as written before torch 2.4."""
import argparse

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.cuda.amp import GradScaler, autocast


def get_args():
    p = argparse.ArgumentParser(description='Train a tiny UNet')
    p.add_argument('--epochs', type=int, default=2)
    p.add_argument('--fp32', action='store_true', help='switch mixed precision off')
    return p.parse_args()


class DoubleConv(nn.Module):
    def __init__(self, cin, cout):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(cin, cout, 3, padding=1, bias=False), nn.BatchNorm2d(cout), nn.ReLU(inplace=True),
            nn.Conv2d(cout, cout, 3, padding=1, bias=False), nn.BatchNorm2d(cout), nn.ReLU(inplace=True))

    def forward(self, x):
        return self.net(x)


class TinyUNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.inc, self.down = DoubleConv(1, 8), DoubleConv(8, 16)
        self.up, self.out = nn.ConvTranspose2d(16, 8, 2, stride=2), nn.Conv2d(16, 1, 1)

    def forward(self, x):
        a = self.inc(x)
        b = self.down(F.max_pool2d(a, 2))
        return self.out(torch.cat([a, self.up(b)], dim=1))


def train(net, amp, epochs):
    optimizer = torch.optim.RMSprop(net.parameters(), lr=1e-3, weight_decay=1e-8, momentum=0.9)
    grad_scaler = GradScaler(enabled=amp)
    criterion = nn.BCEWithLogitsLoss()
    for epoch in range(1, epochs + 1):
        net.train()
        for step in range(3):
            images = torch.rand(4, 1, 16, 16)
            true_masks = (images > 0.5).float().cuda()
            images = images.cuda()
            with torch.cuda.amp.autocast(enabled=amp):
                loss = criterion(net(images), true_masks)
            optimizer.zero_grad(set_to_none=True)
            grad_scaler.scale(loss).backward()
            grad_scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            grad_scaler.step(optimizer)
            grad_scaler.update()
            print(f'epoch {epoch} step {step}: {loss.item().hex()}')
    return net


@torch.no_grad()
def evaluate(net, amp):
    net.eval()
    image = torch.linspace(0, 1, 256).view(1, 1, 16, 16).cuda()
    with autocast(amp):
        logits = net(image)
    print('validation', logits.float().sigmoid().mean().item().hex())


if __name__ == '__main__':
    args = get_args()
    torch.manual_seed(42)
    torch.cuda.manual_seed(42)
    evaluate(train(TinyUNet().cuda(), not args.fp32, args.epochs), not args.fp32)
