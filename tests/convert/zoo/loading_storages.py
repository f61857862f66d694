"""Places for what is loaded, handed around before `torch.load` sees them."""
import torch


def restore(path, location):
    return torch.load(path, map_location=location)


def place(storage, location):
    return storage.cuda(0)  # convert


def keep_on_host(storage, location):
    return storage


a = restore("a.pt", lambda storage, location: storage.cuda())  # convert
b = restore("b.pt", lambda s, _: s.cuda(1) if len(s) else s)  # convert
c = restore("c.pt", place)
d = restore("d.pt", keep_on_host)
e = torch.load("e.pt", map_location=place)
raw = a["weight"].untyped_storage().cuda(non_blocking=True)  # convert
pairs = list(map(lambda x, y: (x.cuda(), y.cuda()), a, b))  # convert
