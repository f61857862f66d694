import copy

import torch
import torch.nn as nn

device = "cuda"
T = 20


def cosine_betas(steps, s=0.008):
    x = torch.linspace(0, steps, steps + 1, dtype=torch.float64)
    bar = torch.cos(((x / steps) + s) / (1 + s) * torch.pi * 0.5) ** 2
    bar = bar / bar[0]
    return torch.clip(1 - bar[1:] / bar[:-1], 0, 0.999)


class Denoiser(nn.Module):
    def __init__(self, dim=16, hidden=32):
        super().__init__()
        self.time = nn.Embedding(T, hidden)
        self.inp, self.mid, self.out = nn.Linear(dim, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, dim)

    def forward(self, x, t):
        h = nn.functional.mish(self.inp(x) + self.time(t))
        return self.out(nn.functional.mish(self.mid(h)) + h)


class GaussianDiffusion(nn.Module):
    def __init__(self, model, device="cuda"):
        super().__init__()
        self.model = model
        alphas = torch.cumprod(1.0 - cosine_betas(T), dim=0)
        self.register_buffer("sqrt_a", alphas.sqrt().to(torch.float32))
        self.register_buffer("sqrt_1ma", (1 - alphas).sqrt().to(torch.float32))
        self.to(device)

    def q_sample(self, x0, t, noise):
        return self.sqrt_a[t][:, None] * x0 + self.sqrt_1ma[t][:, None] * noise

    def forward(self, x0, t, noise):
        return nn.functional.huber_loss(self.model(self.q_sample(x0, t, noise), t), noise)

    @torch.no_grad()
    def sample(self, start, steps=4):
        x = start
        for i in reversed(range(steps)):
            t = torch.full((x.size(0),), i, device="cuda", dtype=torch.long)
            eps = self.model(x, t)
            x = (x - self.sqrt_1ma[t][:, None] * eps) / self.sqrt_a[t][:, None]
        return x.clamp(-3, 3)


class EMA:
    def __init__(self, model, decay=0.9):
        self.decay, self.shadow = decay, copy.deepcopy(model).eval().requires_grad_(False)

    def update(self, model):
        for s, p in zip(self.shadow.state_dict().values(), model.state_dict().values()):
            s.copy_(s * self.decay + p * (1 - self.decay))


torch.manual_seed(99)
diffusion = GaussianDiffusion(Denoiser())
ema = EMA(diffusion)
opt = torch.optim.RAdam(diffusion.parameters(), lr=1e-2)
for step in range(5):
    x0 = torch.randn(8, 16).cumsum(1).div(4).to(device)
    t = torch.randint(0, T, (8,)).to(device)
    noise = torch.randn(x0.shape).to(x0.device)
    loss = diffusion(x0, t, noise)
    opt.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(diffusion.parameters(), 1.0)
    opt.step()
    ema.update(diffusion)
    print(f"{step=} {loss.item().hex()}")
start = torch.randn(2, 16)
images = ema.shadow.sample(start.to(device="cuda"))
print("sample", images.cpu().mean().item().hex(), torch.zeros((), device=device).item())
