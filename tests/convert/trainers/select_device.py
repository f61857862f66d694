# Detection trainer: device strings from the command line, EMA, half for evaluation
import argparse
import logging
import os
import time
from copy import deepcopy

import torch
import torch.nn as nn
from torch.cuda import amp

logging.basicConfig(format="%(message)s", level=logging.INFO)
LOGGER = logging.getLogger(__name__)


def select_device(device='', batch_size=None):
    # device = 'cpu' or '0' or '0,1,2,3'
    s = f'torch {torch.__version__} '  # string
    device = str(device).strip().lower().replace('cuda:', '').replace('none', '')  # to string, 'cuda:0' to '0'
    cpu = device == 'cpu'
    if cpu:
        os.environ['CUDA_VISIBLE_DEVICES'] = '-1'  # force torch.cuda.is_available() = False
    elif device:  # non-cpu device requested
        os.environ['CUDA_VISIBLE_DEVICES'] = device  # set environment variable
    cuda = not cpu and torch.cuda.is_available()
    if cuda:
        devices = device.split(',') if device else '0'  # range(torch.cuda.device_count())  # i.e. 0,1,6,7
        n = len(devices)  # device count
        if n > 1 and batch_size:  # check batch_size is divisible by device_count
            assert batch_size % n == 0, f'batch-size {batch_size} not multiple of GPU count {n}'
        space = ' ' * (len(s) + 1)
        for i, d in enumerate(devices):
            p = torch.cuda.get_device_properties(i)
            s += f"{'' if i == 0 else space}CUDA:{d} ({p.name}, {p.total_memory / (1 << 20):.0f}MiB)\n"  # bytes to MB
    else:
        s += 'CPU\n'
    LOGGER.info(s)
    return torch.device('cuda:0' if cuda else 'cpu')


def time_sync():
    # accurate time
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.time()


class ModelEMA:
    def __init__(self, model, decay=0.5):
        self.ema = deepcopy(model).eval()
        self.decay = decay

    def update(self, model):
        with torch.no_grad():
            msd = model.state_dict()
            for k, v in self.ema.state_dict().items():
                if v.dtype.is_floating_point:
                    v *= self.decay
                    v += (1 - self.decay) * msd[k].detach()


def train(opt, device):
    cuda = device.type != 'cpu'
    torch.manual_seed(2)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 5, 3)).to(device)
    ema, optimizer = ModelEMA(model), torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    scaler = amp.GradScaler(enabled=cuda and opt.half)
    bce, t0 = nn.BCEWithLogitsLoss(), time_sync()
    for i in range(opt.batches):
        imgs = torch.randint(0, 255, (4, 3, 9, 9), dtype=torch.uint8)
        imgs = imgs.to(device, non_blocking=True).float() / 255.0
        with amp.autocast(enabled=cuda and opt.half):
            loss = bce(model(imgs), (imgs[:, :1, 3:5, 3:5] > 0.5).float().expand(-1, 5, -1, -1))
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        ema.update(model)
        mem = f'{torch.cuda.memory_reserved() / 1E9 if torch.cuda.is_available() else 0:.3g}G'  # (GB)
        LOGGER.info(f'{i:>5}{mem:>10}  {loss.item().hex()}')
    half = device.type != 'cpu' and opt.half  # half precision only supported on CUDA
    ema.ema.half() if half else ema.ema.float()
    x = torch.linspace(0, 1, 243, device=device).view(1, 3, 9, 9)
    y = ema.ema(x.half() if half else x).float().mean().item()
    LOGGER.info(f'ema {y.hex()} in {time_sync() - t0:.3f}s')


if __name__ == '__main__':
    parser = argparse.ArgumentParser()
    parser.add_argument('--batches', type=int, default=5)
    parser.add_argument('--device', default='', help='cuda device, i.e. 0 or 0,1,2,3 or cpu')
    parser.add_argument('--half', action='store_true')
    opt = parser.parse_args()
    train(opt, select_device(opt.device, 8))
