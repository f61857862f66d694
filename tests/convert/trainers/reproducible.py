import random
import numpy as np
import torch
import torch.nn as nn
import torch.backends.cudnn as cudnn


def set_seed(seed, deterministic=True):
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.cuda.manual_seed(seed)
    torch.cuda.manual_seed_all(seed)  # if you are using multi-GPU
    if deterministic:
        cudnn.deterministic = True
        cudnn.benchmark = False


def rng_states():
    states = dict(python=random.getstate(), numpy=np.random.get_state(), cpu=torch.get_rng_state())
    states['cuda'] = torch.cuda.get_rng_state()
    states['cuda_all'] = torch.cuda.get_rng_state_all()
    return states


def restore(states):
    random.setstate(states['python'])
    np.random.set_state(states['numpy'])
    torch.set_rng_state(states['cpu'])
    torch.cuda.set_rng_state(states['cuda'])
    torch.cuda.set_rng_state_all(states['cuda_all'])


class NoisyNet(nn.Module):
    """Noise comes from the host, so that every machine sees the same."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(10, 16), nn.Linear(16, 1)

    def forward(self, x):
        noise = torch.from_numpy(np.random.randn(x.size(0), 16)).float().cuda()
        return self.fc2(torch.relu(self.fc1(x)) + 0.1 * noise)


def run(net, optim, n):
    out = []
    for _ in range(n):
        x = torch.randn(8, 10).cuda()
        y = torch.full((8, 1), random.random()).cuda()
        loss = (net(x) - y).abs().mean()
        optim.zero_grad(); loss.backward(); optim.step()
        out.append(loss.item())
    return out


set_seed(2021)
net = NoisyNet().cuda()
optim = torch.optim.Adagrad(net.parameters(), lr=0.1)
for value in run(net, optim, 2):
    print(value.hex())

snapshot = rng_states()
weights = {k: v.clone() for k, v in net.state_dict().items()}
first = run(net, torch.optim.SGD(net.parameters(), lr=0.1), 3)
on_device = torch.cuda.FloatTensor(4).uniform_()
restore(snapshot)
net.load_state_dict(weights)
second = run(net, torch.optim.SGD(net.parameters(), lr=0.1), 3)
assert first == second
assert torch.equal(on_device, torch.cuda.FloatTensor(4).uniform_())
set_seed(7, deterministic=False)
with torch.random.fork_rng(devices=[torch.cuda.current_device()]):
    torch.manual_seed(0)
    torch.rand(3)
third = run(net, torch.optim.SGD(net.parameters(), lr=0.1), 1)
for value in second + third:
    print(value.hex())
