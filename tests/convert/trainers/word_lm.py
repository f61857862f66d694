# coding: utf-8
import argparse
import math
import torch
import torch.nn as nn

parser = argparse.ArgumentParser(description='Word language model on a made-up text')
parser.add_argument('--model', type=str, default='LSTM', help='type of net (LSTM, GRU)')
parser.add_argument('--nhid', type=int, default=20)
parser.add_argument('--bptt', type=int, default=7)
parser.add_argument('--clip', type=float, default=0.25)
parser.add_argument('--seed', type=int, default=1111)
parser.add_argument('--cuda', action='store_true', help='use CUDA')
args = parser.parse_args()

torch.manual_seed(args.seed)
if torch.cuda.is_available():
    if not args.cuda:
        print("WARNING: You have a CUDA device, so you should probably run with --cuda.")
    else:
        torch.cuda.manual_seed(args.seed)

words = ('a rose is a rose is a rose ' * 30).split()
vocab = {w: i for i, w in enumerate(dict.fromkeys(words))}


def batchify(ids, bsz):
    nbatch = ids.size(0) // bsz
    ids = ids.narrow(0, 0, nbatch * bsz).view(bsz, -1).t().contiguous()
    if args.cuda:
        ids = ids.cuda()
    return ids


class RNNModel(nn.Module):
    def __init__(self, ntoken, nhid):
        super(RNNModel, self).__init__()
        self.encoder = nn.Embedding(ntoken, nhid)
        self.rnn = getattr(nn, args.model)(nhid, nhid, 1)
        self.decoder = nn.Linear(nhid, ntoken)
        self.nhid = nhid

    def forward(self, input, hidden):
        output, hidden = self.rnn(self.encoder(input), hidden)
        return self.decoder(output).view(-1, len(vocab)), hidden

    def init_hidden(self, bsz):
        weight = next(self.parameters())
        if args.model == 'LSTM':
            return (weight.new_zeros(1, bsz, self.nhid), weight.new_zeros(1, bsz, self.nhid))
        return weight.new_zeros(1, bsz, self.nhid)


def repackage_hidden(h):
    """Wraps hidden states in new Tensors, to detach them from their history."""
    return h.detach() if isinstance(h, torch.Tensor) else tuple(repackage_hidden(v) for v in h)


train_data = batchify(torch.tensor([vocab[w] for w in words]), 4)
model = RNNModel(len(vocab), args.nhid)
if args.cuda:
    model.cuda()
criterion = nn.CrossEntropyLoss()
lr = 5.0
hidden = model.init_hidden(4)
for batch, i in enumerate(range(0, train_data.size(0) - 1, args.bptt)):
    seq_len = min(args.bptt, len(train_data) - 1 - i)
    data, targets = train_data[i:i + seq_len], train_data[i + 1:i + 1 + seq_len].view(-1)
    model.zero_grad()
    hidden = repackage_hidden(hidden)
    output, hidden = model(data, hidden)
    loss = criterion(output, targets)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), args.clip)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(p.grad, alpha=-lr)
    print('| batch {:3d} | lr {:02.2f} | loss {} | ppl {:8.2f}'.format(batch, lr, loss.item().hex(), math.exp(loss.item())))
    if batch == 7:
        break
