import os

os.environ["CUDA_VISIBLE_DEVICES"] = "0"
os.environ['CUDA_LAUNCH_BLOCKING'] = '1'
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:128")

import torch  # noqa: E402

assert os.environ.get("CUDA_VISIBLE_DEVICES") == "0", "pick one card"


class Config:
    DEVICE = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    EMBED = 16
    HIDDEN = 24
    STEPS = 5
    LR = 2e-2


class Tagger(torch.nn.Module):
    """Bag of embeddings and two layers; tags every token."""

    def __init__(self, cfg=Config):
        super().__init__()
        self.cfg = cfg
        self.embed = torch.nn.Embedding(50, cfg.EMBED, padding_idx=0)
        self.mix = torch.nn.Conv1d(cfg.EMBED, cfg.HIDDEN, 3, padding=1)
        self.tag = torch.nn.Linear(cfg.HIDDEN, 6)

    def forward(self, tokens):
        h = self.embed(tokens).transpose(1, 2)
        return self.tag(torch.nn.functional.elu(self.mix(h)).transpose(1, 2))


def loss_fn(logits, tags, lengths):
    where = torch.arange(tags.shape[1], device=Config.DEVICE)[None] < lengths[:, None].to(Config.DEVICE)
    nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tags.flatten(), reduction="none")
    return (nll * where.flatten()).sum() / where.sum()


def batches(cfg):
    g = torch.Generator()
    g.manual_seed(13)
    for _ in range(cfg.STEPS):
        tokens = torch.randint(1, 50, (6, 9), generator=g)
        lengths = torch.randint(3, 10, (6,), generator=g)
        yield tokens.to(cfg.DEVICE), (tokens % 6).to(device=cfg.DEVICE), lengths


def main(cfg=Config):
    torch.manual_seed(13)
    if torch.cuda.is_available():
        print("devices seen:", torch.cuda.device_count())
    model = Tagger().to(cfg.DEVICE)
    opt = torch.optim.Adamax(model.parameters(), lr=cfg.LR)
    for step, (tokens, tags, lengths) in enumerate(batches(cfg)):
        loss = loss_fn(model(tokens), tags, lengths)
        opt.zero_grad()
        loss.backward()
        opt.step()
        print("step", step, "loss", loss.item().hex())


main()
