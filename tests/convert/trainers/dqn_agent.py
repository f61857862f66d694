"""A value-learning agent on a chain of states."""
from __future__ import annotations

import collections
import random

import torch
from torch import nn

Transition = collections.namedtuple("Transition", "state action reward next_state done")


class Chain:
    """Walk right to the end for a reward."""

    def __init__(self, n: int = 8):
        self.n = n

    def reset(self) -> int:
        self.at = 0
        return self.at

    def step(self, action: int) -> tuple[int, float, bool]:
        self.at = min(self.n - 1, max(0, self.at + (1 if action else -1)))
        return self.at, float(self.at == self.n - 1), self.at == self.n - 1


class Agent:
    def __init__(self, n_states: int, gpu: int = 0, gamma: float = 0.9, device: str | None = None):
        if device is None:
            device = f"cuda:{gpu}" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device)
        self.gamma = gamma
        self.n_states = n_states
        self.q = nn.Sequential(nn.Linear(n_states, 32), nn.Tanh(), nn.Linear(32, 2)).to(self.device)
        self.target = nn.Sequential(nn.Linear(n_states, 32), nn.Tanh(), nn.Linear(32, 2)).to(self.device)
        self.sync()
        self.memory: collections.deque[Transition] = collections.deque(maxlen=200)
        self.opt = torch.optim.Adam(self.q.parameters(), lr=5e-3)

    def sync(self):
        self.target.load_state_dict(self.q.state_dict())

    def encode(self, states) -> torch.Tensor:
        return nn.functional.one_hot(torch.as_tensor(states), self.n_states).float().to(self.device)

    def act(self, state: int) -> int:
        if random.random() < 0.3:
            return random.randrange(2)
        with torch.no_grad():
            return int(self.q(self.encode([state])).argmax(1))

    def learn(self) -> float:
        batch = Transition(*zip(*random.sample(self.memory, 16)))
        reward = torch.tensor(batch.reward, device=self.device)
        alive = 1.0 - torch.tensor(batch.done, dtype=torch.float32, device=self.device)
        action = torch.tensor(batch.action).to(self.device, non_blocking=True)
        with torch.no_grad():
            best = self.target(self.encode(batch.next_state)).max(1).values
        value = self.q(self.encode(batch.state)).gather(1, action[:, None]).squeeze(1)
        loss = nn.functional.smooth_l1_loss(value, reward + self.gamma * alive * best)
        self.opt.zero_grad(set_to_none=True)
        loss.backward()
        self.opt.step()
        return loss.item()

    def report(self, episode: int):
        if self.device.type == "cuda":
            used = torch.cuda.memory_allocated(self.device) / 1024**2
            peak = torch.cuda.max_memory_allocated(self.device) / 1024**2
            print("episode %d on %s (%s): %.2f MB, peak %.2f MB"
                  % (episode, "cuda:%d" % self.device.index, torch.cuda.get_device_name(0), used, peak))
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.empty_cache()


if __name__ == "__main__":
    random.seed(4)
    torch.manual_seed(4)
    env = Chain()
    agent = Agent(env.n)
    for episode in range(4):
        state, done, t = env.reset(), False, 0
        while not done and t < 15:
            action = agent.act(state)
            next_state, reward, done = env.step(action)
            agent.memory.append(Transition(state, action, reward, next_state, done))
            state, t = next_state, t + 1
        if len(agent.memory) >= 16:
            print("td", agent.learn().hex(), agent.learn().hex())
        agent.sync()
        agent.report(episode)
