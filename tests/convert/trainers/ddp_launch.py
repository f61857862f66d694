"""Two processes train one regression model.

    torchrun --nproc_per_node=2 ddp_launch.py
"""
import argparse
import os

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler


def setup_distributed(args):
    args.rank = int(os.environ["RANK"])
    args.world_size = int(os.environ["WORLD_SIZE"])
    args.gpu = int(os.environ["LOCAL_RANK"])
    torch.cuda.set_device(args.gpu)
    args.dist_backend = "nccl"
    print("| distributed init (rank {}): {}".format(args.rank, args.dist_url), flush=True)
    dist.init_process_group(
        backend=args.dist_backend,
        init_method=args.dist_url,
        world_size=args.world_size,
        rank=args.rank,
    )
    dist.barrier()


def reduce_mean(value, world_size):
    value = value.detach().clone()
    dist.all_reduce(value)
    return value / world_size


def build_data(args):
    g = torch.Generator().manual_seed(7)
    x = torch.randn(64, 12, generator=g)
    y = torch.sin(x.sum(1, keepdim=True))
    dataset = TensorDataset(x, y)
    sampler = DistributedSampler(dataset, num_replicas=args.world_size, rank=args.rank, seed=3)
    loader = DataLoader(dataset, batch_size=8, sampler=sampler, pin_memory=True)
    return loader, sampler


def main(args):
    setup_distributed(args)
    torch.manual_seed(11 + args.rank)  # DDP sends rank 0's weights to the others
    loader, sampler = build_data(args)

    model = nn.Sequential(nn.Linear(12, 32), nn.BatchNorm1d(32), nn.Tanh(), nn.Linear(32, 1))
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model) if args.sync_bn else model
    model = model.cuda(args.gpu)
    model = DDP(model, device_ids=[args.gpu], output_device=args.gpu)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    criterion = nn.MSELoss().cuda(args.gpu)

    seen = torch.zeros(1, device="cuda")
    for epoch in range(args.epochs):
        sampler.set_epoch(epoch)
        for x, y in loader:
            x = x.cuda(args.gpu, non_blocking=True)
            y = y.cuda(args.gpu, non_blocking=True)
            loss = criterion(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen += x.size(0)
            mean = reduce_mean(loss, args.world_size)
            torch.cuda.synchronize()
            if args.rank == 0:
                print(f"epoch {epoch} loss {mean.item().hex()}", flush=True)
    dist.all_reduce(seen)
    if args.rank == 0:
        print("samples", int(seen.item()))
    dist.destroy_process_group()
    return model


if __name__ == "__main__":
    parser = argparse.ArgumentParser("DDP on one node")
    parser.add_argument("--epochs", default=2, type=int)
    parser.add_argument("--dist_url", default="env://", help="url used to set up training")
    parser.add_argument("--sync_bn", action="store_true")
    model = main(parser.parse_args())
