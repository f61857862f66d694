"""Checkpoints, read in the ways that programs read them."""
import torch

net = torch.nn.Linear(2, 2)
optimizer = torch.optim.SGD(net.parameters(), 0.1)
rank = int(input())

a = torch.load("a.pt", map_location="cuda")  # convert
b = torch.load("b.pt", map_location="cuda:1", weights_only=True)  # convert
c = torch.load("c.pt", map_location=f"cuda:{rank}")  # convert
d = torch.load("d.pt", map_location=torch.device("cuda", rank))  # convert
e = torch.load("e.pt", map_location=lambda storage, loc: storage.cuda(rank))  # convert
f = torch.load("f.pt", map_location=lambda storage, loc: storage.cuda())  # convert
g = torch.load("g.pt", "cuda")  # convert
h = torch.load("h.pt", map_location={"cuda:0": "cuda:%d" % rank})  # convert keep
i = torch.load("i.pt", map_location="cpu")
j = torch.load("j.pt", map_location=lambda storage, loc: storage)
k = torch.load("runs/cuda/k.pt", map_location="cpu")  # keep
loc = "cuda:{}".format(rank)  # convert
m = torch.load("m.pt", map_location=loc)
net.load_state_dict(torch.load("n.pt"))  # convert
checkpoint = torch.load("o.pt", weights_only=False)  # convert
start = checkpoint["epoch"]
net.load_state_dict(checkpoint["state_dict"])
optimizer.load_state_dict(checkpoint["optimizer"])
state = torch.load("p.pt")  # convert
net.load_state_dict({key: value for key, value in state.items() if key in net.state_dict()})
data = torch.load("data.pt")  # flag
resumed = torch.load("q.pt")  # flag
torch.set_rng_state(resumed["rng_state"])
net.load_state_dict(resumed["model"])
whole = torch.load("model.pt")  # flag
whole.eval()
