"""What a benchmark asks of the machine, and how."""
import contextlib

import torch; torch.cuda.empty_cache()  # convert

try:
    torch.cuda.current_device()  # flag
    HAS_GPU = True
except (RuntimeError, AssertionError):
    HAS_GPU = False

xp = torch.cuda if torch.cuda.is_available() else torch  # keep flag
Tensor = torch.cuda.FloatTensor if torch.cuda.is_available() else torch.FloatTensor  # convert


def total():
    try:
        return torch.cuda.get_device_properties(0).total_memory  # flag
    except Exception:
        return None


def wait():
    with contextlib.suppress(RuntimeError):
        torch.cuda.synchronize()  # convert
    try:
        torch.cuda.synchronize()  # convert
    except RuntimeError as error:
        print(error)


def step(accel, loss):
    try:
        torch.cuda.synchronize()  # convert
        accel.backward(loss)
    except RuntimeError:
        raise SystemExit("the step failed") from None


def kind(x):
    if x.type() in ("torch.cuda.FloatTensor", "torch.cuda.HalfTensor"):  # convert
        return "card"
    return "card" if Tensor is torch.cuda.FloatTensor else "host"  # convert
