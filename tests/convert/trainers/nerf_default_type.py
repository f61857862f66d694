import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
np.random.seed(0)
DEBUG = False

img2mse = lambda x, y: torch.mean((x - y) ** 2)
mse2psnr = lambda x: -10. * torch.log(x) / torch.log(torch.Tensor([10.]))
to8b = lambda x: (255 * np.clip(x, 0, 1)).astype(np.uint8)


class Embedder:
    def __init__(self, multires):
        freq_bands = 2. ** torch.linspace(0., multires - 1, steps=multires)
        self.fns = [lambda x: x]
        for freq in freq_bands:
            for p_fn in (torch.sin, torch.cos):
                self.fns.append(lambda x, p_fn=p_fn, freq=freq: p_fn(x * freq))

    def embed(self, inputs):
        return torch.cat([fn(inputs) for fn in self.fns], -1)


class NeRF(nn.Module):
    def __init__(self, D=3, W=24, input_ch=21, skips=[1]):
        super(NeRF, self).__init__()
        self.skips = skips
        self.pts_linears = nn.ModuleList(
            [nn.Linear(input_ch, W)] + [nn.Linear(W + input_ch * (i in skips), W) for i in range(D - 1)])
        self.output_linear = nn.Linear(W, 4)
        for p in self.parameters():  # weights of one seed, wherever they live
            p.data = torch.Tensor(np.random.uniform(-.2, .2, p.shape)).to(p.device)

    def forward(self, x):
        h = x
        for i, l in enumerate(self.pts_linears):
            h = F.relu(l(h))
            if i in self.skips:
                h = torch.cat([x, h], -1)
        return self.output_linear(h)


def raw2outputs(raw, z_vals):
    dists = z_vals[..., 1:] - z_vals[..., :-1]
    dists = torch.cat([dists, torch.Tensor([1e10]).expand(dists[..., :1].shape)], -1)
    alpha = 1. - torch.exp(-F.relu(raw[..., 3]) * dists)
    ones = torch.ones((alpha.shape[0], 1))
    weights = alpha * torch.cumprod(torch.cat([ones, 1. - alpha + 1e-10], -1), -1)[:, :-1]
    return torch.sum(weights[..., None] * torch.sigmoid(raw[..., :3]), -2)


def train():
    embed = Embedder(3).embed
    model = NeRF().to(device)
    optimizer = torch.optim.Adam(params=list(model.parameters()), lr=5e-3, betas=(0.9, 0.999))
    for i in range(5):
        rays_o = torch.Tensor(np.random.rand(16, 3))
        rays_d = torch.Tensor(np.random.rand(16, 3))
        target_s = torch.Tensor(np.sin(rays_d.cpu().numpy()) ** 2).to(device)
        z_vals = torch.linspace(0.1, 2., 6).expand(16, 6)
        pts = rays_o[..., None, :] + rays_d[..., None, :] * z_vals[..., :, None]
        rgb = raw2outputs(model(embed(pts.reshape(-1, 3))).reshape(16, 6, 4), z_vals)
        loss = img2mse(rgb, target_s)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"[TRAIN] Iter: {i} Loss: {loss.item().hex()}  PSNR: {mse2psnr(loss.detach()).item():.2f}")


if __name__ == '__main__':
    if torch.cuda.is_available():
        torch.set_default_tensor_type('torch.cuda.FloatTensor')
    train()
