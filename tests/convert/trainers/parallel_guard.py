#!/usr/bin/env python
# -*- coding: utf-8 -*-
import os

import torch
import torch.nn as nn
from torch.optim import lr_scheduler

os.makedirs(os.environ.get('OUT', '.'), exist_ok=True)
device = 'cuda' if torch.cuda.is_available() else 'cpu'
best_acc = 0  # best test accuracy
start_epoch = 0  # start from epoch 0 or last checkpoint epoch


class Residual(nn.Module):
    expansion = 1

    def __init__(self, planes):
        super(Residual, self).__init__()
        self.conv1 = nn.Conv2d(planes, planes, kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)

    def forward(self, x):
        out = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(out)) + x)


print('==> Building model..')
torch.manual_seed(17)
net = nn.Sequential(nn.Conv2d(3, 8, 1), Residual(8), Residual(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
net = net.to(device)
if device == 'cuda' and torch.cuda.device_count() > 1:
    print("Let's use", torch.cuda.device_count(), "GPUs!")
    net = torch.nn.DataParallel(net)
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
scheduler = lr_scheduler.CosineAnnealingLR(optimizer, T_max=3)
inputs_all, targets_all = torch.randn(32, 3, 6, 6), torch.arange(32) % 4


def train(epoch):
    print('\nEpoch: %d' % epoch)
    net.train()
    for i in range(0, 32, 16):
        inputs, targets = inputs_all[i:i + 16].to(device), targets_all[i:i + 16].to(device)
        optimizer.zero_grad()
        loss = criterion(net(inputs), targets)
        loss.backward()
        optimizer.step()
        print(i, 'Loss:', loss.item().hex())


def test(epoch):
    global best_acc
    net.eval()
    with torch.no_grad():
        outputs = net(inputs_all.to(device))
        loss = criterion(outputs, targets_all.to(device))
    acc = 100. * outputs.max(1)[1].eq(targets_all.to(device)).sum().item() / 32
    print('Test loss', loss.item().hex(), 'Acc: %.3f%%' % acc)
    if acc > best_acc:
        module = net.module if isinstance(net, nn.DataParallel) else net
        state = {'net': module.state_dict(), 'acc': acc, 'epoch': epoch}
        assert state['net']
        best_acc = acc


for epoch in range(start_epoch, start_epoch + 2):
    train(epoch)
    test(epoch)
    scheduler.step()
