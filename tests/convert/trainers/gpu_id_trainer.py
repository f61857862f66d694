import sys
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset


class Ramp(Dataset):
    def __init__(self, size: int):
        gen = torch.Generator().manual_seed(size)
        self.rows = [(torch.rand(20, generator=gen), torch.rand(1, generator=gen)) for _ in range(size)]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index: int):
        return self.rows[index]


@dataclass
class Plan:
    epochs: int = 2
    batch: int = 16
    save_every: int = 10


class Trainer:
    def __init__(
        self,
        model: torch.nn.Module,
        train_data: DataLoader,
        optimizer: torch.optim.Optimizer,
        gpu_id: int,
        plan: Plan,
    ) -> None:
        self.gpu_id = gpu_id
        self.model = model.to(gpu_id)
        self.train_data = train_data
        self.optimizer = optimizer
        self.plan = plan

    def _run_batch(self, source, targets):
        self.optimizer.zero_grad()
        loss = F.mse_loss(self.model(source), targets)
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def _run_epoch(self, epoch):
        print(f"[GPU{self.gpu_id}] Epoch {epoch} | Steps: {len(self.train_data)}")
        for source, targets in self.train_data:
            source = source.to(self.gpu_id)
            targets = targets.to(self.gpu_id)
            print("  ", self._run_batch(source, targets).hex())

    def train(self):
        for epoch in range(self.plan.epochs):
            self._run_epoch(epoch)
            if epoch and epoch % self.plan.save_every == 0:
                torch.save(self.model.state_dict(), f"checkpoint_{epoch}.pt")


def main(device: int, plan: Plan):
    torch.manual_seed(1)
    model = torch.nn.Linear(20, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    loader = DataLoader(Ramp(64), batch_size=plan.batch, pin_memory=False, shuffle=False)
    Trainer(model, loader, optimizer, device, plan).train()


if __name__ == "__main__":
    device = 0  # shorthand for cuda:0
    main(device, Plan(epochs=int(sys.argv[1]) if len(sys.argv) > 1 else 2))
