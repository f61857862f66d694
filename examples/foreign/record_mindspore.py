"""Record the same Transformer block in MindSpore, from the weights that record_torch.py wrote.

python examples/foreign/record_mindspore.py --weights weights.npz --out run-mindspore

It needs mindspore and numpy, and no torch. `--epsilon` sets LayerNorm's epsilon: MindSpore's own
default, 1e-7, is not that of torch.
"""

import argparse
from typing import Any

import mindspore
import numpy as np
from mindspore import Parameter, Tensor, mint, nn, ops

from accel.numerics import ArrayRecorder

WIDTH, HEADS = 64, 4
NAMES = {"gamma": "weight", "beta": "bias"}  # of LayerNorm's parameters, as torch calls them


class Block(nn.Cell):
    """The block of record_torch.py; its cells have the same names."""

    def __init__(self, epsilon: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm((WIDTH,), epsilon=epsilon)
        self.norm2 = nn.LayerNorm((WIDTH,), epsilon=epsilon)
        self.qkv, self.out = nn.Dense(WIDTH, 3 * WIDTH), nn.Dense(WIDTH, WIDTH)
        self.up, self.down = nn.Dense(WIDTH, 4 * WIDTH), nn.Dense(4 * WIDTH, WIDTH)
        self.activation = nn.GELU(approximate=False)
        self.head = nn.Dense(WIDTH, 10)

    def construct(self, x: Tensor) -> Tensor:
        """From `[B, T, WIDTH]` to `[B, T, 10]`."""
        batch, tokens, _ = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, HEADS, WIDTH // HEADS)
        q, k, v = qkv.transpose(2, 0, 3, 1, 4)
        scores = ops.matmul(q, k.swapaxes(-2, -1)) * (WIDTH // HEADS) ** -0.5
        attended = ops.matmul(ops.softmax(scores, -1), v)
        x = x + self.out(attended.transpose(0, 2, 1, 3).reshape(batch, tokens, WIDTH))
        x = x + self.down(self.activation(self.up(self.norm2(x))))
        return self.head(x)


class Calls:
    """Remembers what each cell was given and returned, and the gradients of what it returned."""

    def __init__(self, model: nn.Cell) -> None:
        self.seen: list[tuple[str, nn.Cell, np.ndarray, np.ndarray]] = []
        self.gradients: dict[str, np.ndarray] = {}
        for name, cell in model.cells_and_names():
            cell.register_forward_hook(self._forward(name))
            cell.register_backward_hook(self._backward(name))

    def _forward(self, name: str) -> Any:
        def hook(cell: nn.Cell, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self.seen.append((name, cell, inputs[0].asnumpy(), output.asnumpy()))

        return hook

    def _backward(self, name: str) -> Any:
        def hook(cell: nn.Cell, given: Any, gradients: tuple[Tensor, ...]) -> None:
            self.gradients[name] = gradients[0].asnumpy()

        return hook

    def record(self, recorder: ArrayRecorder) -> None:
        """Record the calls and the gradients of their outputs; forget them."""
        for name, cell, given, made in self.seen:
            recorder.module(
                name,
                inputs={"0": given},
                outputs={"0": made},
                class_name=type(cell).__name__,
                training=cell.training,
            )
            recorder.gradient(name, self.gradients[name], output="0")
        self.seen.clear()


def as_in_torch(parameter: Parameter) -> str:
    """`norm1.weight` for `norm1.gamma`."""
    cell, _, name = parameter.name.rpartition(".")
    return f"{cell}.{NAMES.get(name, name)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", default="weights.npz", help="as record_torch.py wrote them")
    parser.add_argument("--out", default="run-mindspore", help="the recording's directory")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--level", choices=["sketch", "full"], default="sketch")
    parser.add_argument("--epsilon", type=float, default=1e-5, help="of LayerNorm")
    options = parser.parse_args()
    mindspore.set_context(mode=mindspore.PYNATIVE_MODE)
    mindspore.set_device("CPU")
    arrays = np.load(options.weights)
    model = Block(options.epsilon)
    model.set_train()
    parameters = model.trainable_params()
    for parameter in parameters:
        parameter.set_data(Tensor(arrays[as_in_torch(parameter)]))
    batch, targets = Tensor(arrays["batch"]), Tensor(arrays["targets"])
    calls = Calls(model)
    gradients_of = mindspore.value_and_grad(
        lambda: mint.mean(mint.square(model(batch) - targets)), None, weights=parameters
    )
    optimizer = nn.SGD(parameters, 0.1)
    with ArrayRecorder(
        options.out,
        framework="mindspore",
        versions={"mindspore": mindspore.__version__},
        level=options.level,
    ) as recorder:
        for step in range(options.steps):
            for parameter in parameters:
                recorder.parameter(as_in_torch(parameter), parameter.asnumpy())
            loss, gradients = gradients_of()
            calls.record(recorder)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                recorder.gradient(as_in_torch(parameter), gradient.asnumpy())
            recorder.step()
            optimizer(gradients)
            print(f"step {step}: loss {float(loss):.7f}")


if __name__ == "__main__":
    main()
