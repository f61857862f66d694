import random
import torch
from torch import nn
from torch.autograd import Variable
from torch.utils.data import DataLoader


class HParams(dict):
    __getattr__ = dict.__getitem__


hps = HParams(seed=55, device='cuda', batch_size=4, hidden=12, n_mel=6, grad_clip=1.0, iters=5,
              ignore_layers=['cuda_buffer'], checkpoint='outdir/cuda_run/checkpoint_0')


def to_gpu(x):
    x = x.contiguous()
    if torch.cuda.is_available():
        x = x.cuda(non_blocking=True)
    return Variable(x)


def get_mask_from_lengths(lengths):
    max_len = torch.max(lengths).item()
    if lengths.is_cuda:
        ids = torch.arange(0, max_len, out=torch.cuda.LongTensor(max_len))
    else:
        ids = torch.arange(0, max_len, out=torch.LongTensor(max_len))
    return (ids < lengths.unsqueeze(1)).bool()


class Collate:
    def __call__(self, batch):
        lengths, order = torch.sort(torch.LongTensor([len(x) for x in batch]), descending=True)
        padded = torch.FloatTensor(len(batch), int(lengths[0]), hps.n_mel)
        padded.zero_()
        for i, k in enumerate(order):
            padded[i, :len(batch[k])] = batch[k]
        return padded, lengths


class Predictor(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRUCell(hps.n_mel, hps.hidden)
        self.proj = nn.Linear(hps.hidden, hps.n_mel)

    def forward(self, mel):
        h = Variable(mel.data.new(mel.size(0), hps.hidden).zero_())
        outputs = []
        for t in range(mel.size(1) - 1):
            h = self.rnn(mel[:, t], h)
            outputs += [self.proj(h)]
        return torch.stack(outputs, 1)


def parse_batch(batch):
    mel, lengths = batch
    return to_gpu(mel).float(), to_gpu(lengths).long()


def main():
    random.seed(hps.seed)
    torch.manual_seed(hps.seed)
    torch.cuda.manual_seed(hps.seed)
    torch.backends.cudnn.enabled = True
    torch.backends.cudnn.benchmark = False
    device = torch.device(hps.device)
    data = [torch.randn(random.randint(3, 7), hps.n_mel).cumsum(0) for _ in range(hps.batch_size * hps.iters)]
    loader = DataLoader(data, batch_size=hps.batch_size, collate_fn=Collate(), num_workers=0)
    model = Predictor().to(device)
    learner = torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=1e-6)
    for iteration, batch in enumerate(loader):
        mel, lengths = parse_batch(batch)
        mel, lengths = mel.to(hps['device']), lengths.to(hps.device)
        mask = get_mask_from_lengths(lengths)[:, 1:, None]
        model.zero_grad()
        loss = (((model(mel) - mel[:, 1:]) ** 2) * mask).sum() / mask.sum()
        loss.backward()
        grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), hps.grad_clip)
        learner.step()
        print("Train loss {} {} Grad Norm {:.6f}".format(iteration, loss.item().hex(), grad_norm.item()))


if __name__ == '__main__':
    main()
