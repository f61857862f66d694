import argparse
import random
import time
import warnings

import torch
import torch.backends.cudnn as cudnn
import torch.nn as nn
import torch.utils.data

parser = argparse.ArgumentParser(description='Fake ImageNet Training')
parser.add_argument('-b', '--batch-size', default=8, type=int)
parser.add_argument('--lr', '--learning-rate', default=0.05, type=float, dest='lr')
parser.add_argument('--gpu', default=0, type=int, help='GPU id to use.')
parser.add_argument('--seed', default=23, type=int, help='seed for initializing training. ')
parser.add_argument('-p', '--print-freq', default=1, type=int)


class AverageMeter(object):
    """Computes and stores the average and current value"""
    def __init__(self, name):
        self.name, self.sum, self.count = name, 0, 0

    def update(self, val, n=1):
        self.val = val
        self.sum += val * n
        self.count += n
        self.avg = self.sum / self.count


def accuracy(output, target, topk=(1,)):
    with torch.no_grad():
        _, pred = output.topk(max(topk), 1, True, True)
        correct = pred.t().eq(target.view(1, -1).expand_as(pred.t()))
        return [correct[:k].reshape(-1).float().sum(0, keepdim=True).mul_(100.0 / target.size(0)) for k in topk]


def train(loader, model, criterion, optimizer, epoch, args):
    batch_time, losses, top5 = AverageMeter('Time'), AverageMeter('Loss'), AverageMeter('Acc@5')
    model.train()
    end = time.time()
    for i, (images, target) in enumerate(loader):
        if args.gpu is not None:
            images = images.cuda(args.gpu, non_blocking=True)
        target = target.cuda(args.gpu, non_blocking=True)
        output = model(images)
        loss = criterion(output, target)
        losses.update(loss.item(), images.size(0))
        top5.update(accuracy(output, target, topk=(1, 5))[1][0], images.size(0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        batch_time.update(time.time() - end)
        end = time.time()
        if i % args.print_freq == 0:
            print('Epoch: [%d][%d]\tLoss %s' % (epoch, i, losses.val.hex()))
    print(' * Acc@5 {:.3f} Loss {}'.format(top5.avg.item(), float(losses.avg).hex()))


def main():
    args = parser.parse_args()
    if args.seed is not None:
        random.seed(args.seed)
        torch.manual_seed(args.seed)
        cudnn.deterministic = True
    if args.gpu is not None:
        warnings.warn('You have chosen a specific GPU. This will completely disable data parallelism.')
        print("Use GPU: {} for training".format(args.gpu))
    model = nn.Sequential(
        nn.Conv2d(3, 6, 5, stride=2), nn.BatchNorm2d(6), nn.Hardswish(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(54, 10))
    torch.cuda.set_device(args.gpu)
    model = model.cuda(args.gpu)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1).cuda(args.gpu)
    optimizer = torch.optim.SGD(model.parameters(), args.lr, momentum=0.9, weight_decay=1e-4)
    cudnn.benchmark = True
    dataset = [(torch.randn(3, 16, 16), random.randrange(10)) for _ in range(32)]
    loader = torch.utils.data.DataLoader(dataset, batch_size=args.batch_size, pin_memory=True)
    for epoch in range(2):
        train(loader, model, criterion, optimizer, epoch, args)


if __name__ == '__main__':
    main()
