"""A small image classifier, written for CUDA: the program that docs/migration.md migrates.

It is not for reading how to use Accel: it knows nothing of it, and needs an NVIDIA GPU.
"""

import argparse
import random

import torch
from torch import nn
from torch.cuda.amp import GradScaler, autocast
from torch.utils.data import DataLoader, TensorDataset

CLASSES = 4


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Tell stripes by their direction")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=0.005)
    parser.add_argument("--gpu", type=int, default=0, help="which CUDA device to use")
    parser.add_argument("--fp32", action="store_true", help="no mixed precision")
    parser.add_argument("--save", default="", help="write a checkpoint, and read it back")
    return parser.parse_args()


def seed_everything(seed: int) -> None:
    random.seed(seed)
    torch.manual_seed(seed)
    torch.cuda.manual_seed_all(seed)
    torch.backends.cudnn.deterministic = True


def stripes(count: int) -> TensorDataset:
    """Noisy stripes of 12 x 12, in four directions."""
    y, x = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
    waves = torch.stack([x, y, x + y, x - y]).mul(1.6).sin()
    labels = torch.arange(count) % CLASSES
    return TensorDataset(waves[labels][:, None] + 1.5 * torch.randn(count, 1, 12, 12), labels)


class Classifier(nn.Module):
    """Two convolutions and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3), nn.GELU(), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(144, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits [N, CLASSES] of images [N, 1, 12, 12]."""
        logits: torch.Tensor = self.head(self.features(images))
        return logits


def accuracy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    if logits.is_cuda and not labels.is_cuda:
        labels = labels.cuda()
    return (logits.argmax(1) == labels).float().mean().item()


def train(model: nn.Module, args: argparse.Namespace) -> float:
    loader = DataLoader(stripes(320), args.batch_size, pin_memory=True)
    criterion = nn.CrossEntropyLoss().cuda(args.gpu)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    scaler = GradScaler(enabled=not args.fp32)
    last = 0.0
    for step, (images, labels) in zip(range(args.steps), loader):  # noqa: B905
        images = images.cuda(args.gpu, non_blocking=True)
        labels = labels.cuda(args.gpu, non_blocking=True)
        with autocast(enabled=not args.fp32):
            logits = model(images)
            loss = criterion(logits, labels)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        last = loss.item()
        if step % 5 == 0 or step == args.steps - 1:
            print(f"step {step:2d}  loss {last:.4f}  accuracy {accuracy(logits, labels):.2f}")
    return last


def main() -> None:
    args = parse()
    seed_everything(0)
    torch.cuda.set_device(args.gpu)
    model: nn.Module = Classifier().cuda(args.gpu)
    if torch.cuda.device_count() > 1:
        model = nn.DataParallel(model)
    train(model, args)
    torch.cuda.synchronize()
    if args.save:
        torch.save(model.state_dict(), args.save)
        model.load_state_dict(torch.load(args.save, map_location=f"cuda:{args.gpu}"))
    print(f"peak memory {torch.cuda.max_memory_allocated() / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
