"""Record the same Transformer block in PaddlePaddle, from the weights that record_torch.py wrote.

python examples/foreign/record_paddle.py --weights weights.npz --out run-paddle

It needs paddlepaddle and numpy, and no torch. `--epsilon` sets LayerNorm's epsilon, to see what a
difference looks like.
"""

import argparse
from typing import Any

import numpy as np
import paddle
from paddle import Tensor, nn

from accel.numerics import ArrayRecorder

WIDTH, HEADS = 64, 4


class Block(nn.Layer):
    """The block of record_torch.py; its layers have the same names."""

    def __init__(self, epsilon: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH, epsilon), nn.LayerNorm(WIDTH, epsilon)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.activation = nn.GELU()
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        """From `[B, T, WIDTH]` to `[B, T, 10]`."""
        batch, tokens, _ = x.shape
        qkv = self.qkv(self.norm1(x)).reshape([batch, tokens, 3, HEADS, WIDTH // HEADS])
        q, k, v = qkv.transpose([2, 0, 3, 1, 4]).unbind(0)
        scores = paddle.matmul(q, k, transpose_y=True) * (WIDTH // HEADS) ** -0.5
        attended = nn.functional.softmax(scores, -1) @ v
        x = x + self.out(attended.transpose([0, 2, 1, 3]).reshape([batch, tokens, WIDTH]))
        x = x + self.down(self.activation(self.up(self.norm2(x))))
        return self.head(x)


class Calls:
    """Remembers what each layer was given and returned, until the gradients are known."""

    def __init__(self, model: nn.Layer) -> None:
        self.seen: list[tuple[str, nn.Layer, Tensor, Tensor]] = []
        for name, layer in model.named_sublayers(include_self=True):
            layer.register_forward_post_hook(self._hook(name))

    def _hook(self, name: str) -> Any:
        def hook(layer: nn.Layer, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            output.retain_grads()
            self.seen.append((name, layer, inputs[0], output))

        return hook

    def record(self, recorder: ArrayRecorder) -> None:
        """Record the calls and the gradients of their outputs; forget them."""
        for name, layer, given, made in self.seen:
            recorder.module(
                name,
                inputs={"0": given.numpy()},
                outputs={"0": made.numpy()},
                class_name=type(layer).__name__,
                training=layer.training,
            )
            recorder.gradient(name, made.grad.numpy(), output="0")
        self.seen.clear()


def as_in_torch(name: str, array: np.ndarray) -> np.ndarray:
    """PaddlePaddle keeps the weight of a Linear transposed."""
    return array.T if array.ndim == 2 else array


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", default="weights.npz", help="as record_torch.py wrote them")
    parser.add_argument("--out", default="run-paddle", help="the recording's directory")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--level", choices=["sketch", "full"], default="sketch")
    parser.add_argument("--epsilon", type=float, default=1e-5, help="of LayerNorm")
    options = parser.parse_args()
    paddle.set_device("cpu")
    arrays = np.load(options.weights)
    model = Block(options.epsilon)
    for name, parameter in model.named_parameters():
        parameter.set_value(as_in_torch(name, arrays[name]))
    batch, targets = (paddle.to_tensor(arrays[name]) for name in ("batch", "targets"))
    optimizer = paddle.optimizer.SGD(0.1, model.parameters())
    calls = Calls(model)
    with ArrayRecorder(
        options.out,
        framework="paddle",
        versions={"paddle": paddle.__version__},
        level=options.level,
    ) as recorder:
        for step in range(options.steps):
            for name, parameter in model.named_parameters():
                recorder.parameter(name, as_in_torch(name, parameter.numpy()))
            loss = (model(batch) - targets).square().mean()
            loss.backward()
            calls.record(recorder)
            for name, parameter in model.named_parameters():
                recorder.gradient(name, as_in_torch(name, parameter.grad.numpy()))
            recorder.step()
            optimizer.step()
            optimizer.clear_grad()
            print(f"step {step}: loss {float(loss):.7f}")


if __name__ == "__main__":
    main()
