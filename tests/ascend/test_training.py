"""Whole models trained on the simulated chip, against the same training on the CPU."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

STEPS = 20
NPU = torch.device("npu", 0)


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.layers = kind(8, 16, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(32, 4)

    def forward(self, x):
        return self.head(self.layers(x)[0][:, -1])


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        return self.head(self.layers(x).mean(1))


def cnn():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, groups=2, padding=1), nn.BatchNorm2d(8), nn.SiLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 4),
    )  # fmt: skip


def mlp():
    return nn.Sequential(
        nn.Linear(8, 16),
        nn.GELU(),
        nn.LayerNorm(16),
        nn.Linear(16, 16),
        nn.Tanh(),
        nn.Linear(16, 4),
    )


# Model, input, and how far apart two float32 trainings may be: nothing where the CPU runs the same
# kernels; the rounding of another order of operations where it fuses what an accelerator does not.
MODELS = {
    "mlp": (mlp, (6, 8), 0.0),
    "cnn": (cnn, (6, 3, 12, 12), 0.0),
    "lstm": (lambda: Recurrent(nn.LSTM), (6, 5, 8), 1e-4),
    "gru": (lambda: Recurrent(nn.GRU), (6, 5, 8), 1e-4),
    "transformer": (Transformer, (6, 5, 16), 0.0),
}
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, foreach=False),
    "sgd-foreach": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, foreach=True),
    "sgd-fused": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, fused=True),
    "adam": lambda p: torch.optim.Adam(p, 1e-3, foreach=False),
    "adam-foreach": lambda p: torch.optim.Adam(p, 1e-3, foreach=True),
    "adamw": lambda p: torch.optim.AdamW(p, 1e-3, foreach=False),
    "adamw-foreach": lambda p: torch.optim.AdamW(p, 1e-3, foreach=True),
    "adamw-fused": lambda p: torch.optim.AdamW(p, 1e-3, fused=True),
}


def train(model, optimizer, device):
    make, shape, _ = MODELS[model]
    torch.manual_seed(3)
    built = make()
    x, y = torch.randn(shape), torch.tensor([0, 1, 2, 3, 0, 1])
    built, x, y = built.to(device), x.to(device), y.to(device)
    chosen = OPTIMIZERS[optimizer](built.parameters())
    losses = []
    for _ in range(STEPS):
        chosen.zero_grad()
        loss = F.cross_entropy(built(x), y)
        loss.backward()
        chosen.step()
        losses.append(loss.item())
    return torch.tensor(losses), [p.detach().cpu() for p in built.state_dict().values()]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", MODELS)
def test_twenty_steps_are_those_of_the_cpu(model, optimizer):
    tolerance = MODELS[model][2]
    expected, expected_state = train(model, optimizer, "cpu")
    found, state = train(model, optimizer, NPU)
    assert expected[-1] < expected[0], "it must learn, or the comparison says little"
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
    for mine, theirs in zip(state, expected_state, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=tolerance)


@pytest.mark.parametrize("model", MODELS)
def test_evaluation_without_gradients(model):
    make, shape, tolerance = MODELS[model]
    torch.manual_seed(5)
    built, x = make().eval(), torch.randn(shape)
    with torch.no_grad():
        expected = built(x)
        moved = built.to(NPU)
        found = moved(x.to(NPU))
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-5, atol=max(tolerance, 1e-6))
    with torch.inference_mode():
        torch.testing.assert_close(moved(x.to(NPU)).cpu(), found.cpu(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_packed_sequences_and_gradients(kind):
    torch.manual_seed(1)
    layers = kind(4, 6, num_layers=2, bidirectional=True)
    x = torch.randn(5, 3, 4)

    def run(device):
        moved = type(layers)(4, 6, num_layers=2, bidirectional=True)
        moved.load_state_dict(layers.state_dict())
        moved = moved.to(device)
        leaf = x.to(device).requires_grad_()
        packed = nn.utils.rnn.pack_padded_sequence(leaf, [5, 3, 2])
        out, _ = nn.utils.rnn.pad_packed_sequence(moved(packed)[0])
        out.square().sum().backward()
        return [out, leaf.grad, *(p.grad for p in moved.parameters())]

    for mine, theirs in zip(run(NPU), run("cpu"), strict=True):
        torch.testing.assert_close(mine.cpu(), theirs, rtol=1e-5, atol=1e-6)
