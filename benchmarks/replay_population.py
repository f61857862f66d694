"""What right kernels measure, from which the limits of `accel.numerics.replay` are taken.

Every operator of seven models (two training steps of forward, backward, clipping and optimizer) and
of a list of single calls up to sums of 8,192 products is judged as it runs, in float32, bfloat16
autocast, bfloat16 and float16, with one and two threads, with and without oneDNN. Nothing is
injected: whatever is out of the limits is a false alarm.
"""

import collections
import itertools
import math
from collections.abc import Iterator
from typing import Any

import environment
import torch
from replay_models import CASES, Case
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

import accel
from accel.numerics.replaying.calls import bound, flattened, mapped, tensors_in
from accel.numerics.replaying.judged import Judged
from accel.numerics.replaying.judging import judge_call
from accel.numerics.replaying.known import KEEPS_16_BITS, KEEPS_16_BITS_ON_CPU, MARGIN
from accel.numerics.replaying.limits import MOST_M, MOST_R

FORMATS = ("float32", "autocast", "bfloat16", "float16")
SETTINGS = ((1, True), (1, False), (2, True))  # threads, oneDNN
STEPS = 2
Found = tuple[str, Judged]
Single = tuple[OpOverload, tuple[Any, ...]]


class Judging(TorchDispatchMode):
    """Judges the first call of each signature."""

    def __init__(self, where: str, found: list[Found]) -> None:
        super().__init__()
        self._where, self._found = where, found
        self._seen: set[tuple[Any, ...]] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        call = bound(func, args, kwargs)
        shapes = tuple((t.dtype, t.shape) for t in call.tensors)
        signature = (func, shapes, str([v for v in args if isinstance(v, (int, float))]))
        if signature in self._seen:
            return func(*args, **kwargs)
        self._seen.add(signature)
        before = {name: mapped(value, copied) for name, value in call.arguments.items()}
        out = func(*args, **kwargs)
        written = {name: tuple(tensors_in(call.arguments[name])) for name in call.written}
        known = {id(tensor) for tensors in written.values() for tensor in tensors}
        outputs = [
            o if isinstance(o, Tensor) else None for o in flattened(out) if id(o) not in known
        ]
        self._found.append((self._where, judge_call(func, (), before, outputs, written)))
        return out


def copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def train(case: Case, fmt: str, found: list[Found]) -> None:
    """Two steps of one model, every operator judged."""
    torch.manual_seed(3)
    model = case.build()
    dtype = torch.float32 if fmt in ("float32", "autocast") else getattr(torch, fmt)
    model.to(dtype)
    optimizer = case.optimizer(list(model.parameters()))
    with Judging(f"{case.name}, {fmt}", found):
        for _ in range(STEPS):
            with torch.autocast("cpu", torch.bfloat16, enabled=fmt == "autocast"):
                loss = model.loss(dtype)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()


def single_calls(dtype: torch.dtype) -> Iterator[Single]:
    """Operators and their arguments, over sizes."""
    aten = torch.ops.aten
    for k in (63, 128, 1023, 8192):
        a, b, x = (torch.randn(s).to(dtype) for s in ((100, k), (k, 63), (33, k)))
        yield aten.mm.default, (a, b)
        yield aten.mm.default, (a.abs(), b.abs())
        yield aten.addmm.default, (torch.randn(63).to(dtype), a, b)
        yield aten.bmm.default, (a[None], b[None])
        for spread in (1, 8):
            yield aten._softmax.default, (spread * x, -1, False)
            yield aten._log_softmax.default, (spread * x, -1, False)
        yield aten.native_layer_norm.default, (x, [k], None, None, 1e-5)
        yield aten.native_layer_norm.default, (x + 30, [k], None, None, 1e-5)
        yield aten._fused_rms_norm.default, (x, [k], None, 1e-6)
        yield aten.var.correction, (x, [-1])
        yield aten.logsumexp.default, (x, [-1])
    for rows in (63, 504, 2048, 8192):
        x, g = torch.randn(rows, 128).to(dtype), (1e-3 * torch.randn(rows, 128)).to(dtype)
        one = torch.ones(128).to(dtype)
        _, mean, rstd = aten.native_layer_norm.default(x, [128], one, one, 1e-5)
        yield (
            aten.native_layer_norm_backward.default,
            (g, x, [128], mean, rstd, one, one, [True] * 3),
        )
        yield aten.embedding_dense_backward.default, (g, torch.randint(50, (rows,)), 50, -1, False)
        for values in (g, g.abs()):
            yield aten.sum.dim_IntList, (values, [0], True)
            yield aten.sum.default, (values,)
            yield aten.mean.default, (values,)
            yield aten.cumsum.default, (values, 0)
            yield aten.linalg_vector_norm.default, (values,)
    for spread in (1, 4, 20):
        x, g = spread * torch.randn(512, 200), torch.randn(512, 200)
        x, g = x.to(dtype), g.to(dtype)
        for name in ("gelu", "silu", "mish", "softplus", "tanh", "sigmoid", "exp", "erf", "log1p"):
            yield getattr(aten, name).default, (x.abs() if name == "log1p" else x,)
        for name in ("gelu_backward", "silu_backward", "mish_backward"):
            yield getattr(aten, name).default, (g, x)


def coarse_calls(dtype: torch.dtype) -> Iterator[Single]:
    """The operators of the lists of known kernels that no model here calls, over sizes."""
    aten = torch.ops.aten
    for rows in (63, 504, 2048):
        g = (1e-3 * torch.randn(rows, 128)).to(dtype)
        for words in (2, 50):  # of so many rows; the fewer, the more are added to one
            index, zero = torch.randint(words, (rows,)), torch.zeros(words, 128).to(dtype)
            yield aten.embedding_dense_backward.default, (g, index, words, -1, False)
            yield aten.index_put.default, (zero, [index], g, True)
            yield aten.index_add.default, (zero, 0, index, g)
            yield aten.scatter_add.default, (zero, 0, index[:, None].expand(-1, 128), g)
        x, target = torch.randn(rows, 50).to(dtype), torch.randint(50, (rows,))
        logs = torch.log_softmax(x, -1)
        yield aten.nll_loss_forward.default, (logs, target, None, 1, -100)
        one = torch.ones(()).to(dtype)
        yield aten.mse_loss_backward.default, (one, x, torch.randn(rows, 50).to(dtype), 1)
        yield aten.native_dropout.default, (x, 0.1, True)
    for batch, size in ((2, 7), (4, 16), (9, 33)):
        for layout in (torch.contiguous_format, torch.channels_last):
            x = (torch.randn(batch, 17, size, size)).to(dtype).to(memory_format=layout)
            g, one = torch.randn_like(x), torch.ones(17).to(dtype)
            moments = torch.zeros(17).to(dtype), torch.ones(17).to(dtype)
            norm = (x, one, one, *moments, True, 0.1, 1e-5)
            yield (
                aten.native_batch_norm.default,
                (*norm[:3], *map(Tensor.clone, moments), *norm[5:]),
            )
            legit = aten._native_batch_norm_legit.no_stats
            yield legit, (x, one, one, True, 0.1, 1e-5)
            _, mean, rstd = legit(x, one, one, True, 0.1, 1e-5)
            yield (
                aten.native_batch_norm_backward.default,
                (g, x, one, *moments, mean, rstd, True, 1e-5, [True] * 3),
            )
    for batch, size, kernel, stride in (
        (4, 16, 1, 1),
        (16, 16, 3, 1),
        (16, 16, 5, 1),
        (2, 33, 3, 2),
    ):
        x, w = torch.randn(batch, 16, size, size).to(dtype), torch.randn(32, 16, kernel, kernel)
        w, pad = w.to(dtype), [kernel // 2] * 2
        how = ([stride] * 2, pad, [1, 1], False, [0, 0], 1)
        yield aten.convolution.default, (x, w, None, *how)
        g = torch.randn_like(aten.convolution.default(x, w, None, *how))
        yield aten.convolution_backward.default, (g, x, w, [32], *how, [True] * 3)


def kernels(fmt: str, found: list[Found]) -> None:
    """The single calls in one dtype."""
    torch.manual_seed(5)
    dtype = getattr(torch, fmt)
    for op, args in itertools.chain(single_calls(dtype), coarse_calls(dtype)):
        judged = judge_call(op, args, {}, list(flattened(op(*args))))
        found.append((f"single calls, {fmt}", judged))
    recurrent(dtype, found)


def recurrent(dtype: torch.dtype, found: list[Found]) -> None:
    """LSTM layers; oneDNN has one operator for each layer, else they are products."""
    for length in (7, 40):
        layer = nn.LSTM(32, 48).to(dtype)
        with torch.no_grad(), Judging(f"LSTM, {dtype}", found):
            layer(torch.randn(length, 5, 32).to(dtype))


def population(progress: accel.report.Progress) -> list[Found]:
    """Everything, in every setting."""
    found: list[Found] = []
    for threads, onednn in SETTINGS:
        torch.set_num_threads(threads)
        with torch.backends.mkldnn.flags(enabled=onednn):
            for fmt in FORMATS:
                before = len(found)
                for case in CASES:
                    train(case, fmt, found)
                if fmt != "autocast":
                    kernels(fmt, found)
                found[before:] = [
                    (f"{where}, {threads} threads, oneDNN {'on' if onednn else 'off'}", judged)
                    for where, judged in found[before:]
                ]
                progress.advance(text=fmt)
    return found


def summary(found: list[Found]) -> dict[str, Any]:
    """Per operator and dtype the largest of each measure, by verdict."""
    rows = collections.defaultdict(list)
    for _, judged in found:
        if judged.dtype is not None:
            rows[judged.name, judged.dtype, judged.verdict].append(judged)
    return {
        f"{name} {dtype} {verdict}": {
            "calls": len(group),
            **{
                key: round(max(getattr(j, key) for j in group), 6)
                for key in ("R", "M", "excess", "misrounding")
            },
            # Of known kernels: how much of the bound of its operator was needed.
            "share_of_limit": round(max(j.share or 0.0 for j in group), 3),
            "misrounding_over_expected": round(
                max(j.misrounding / j.expected if j.expected else 0.0 for j in group), 3
            ),
            "milliseconds": round(sum(j.milliseconds for j in group) / len(group), 2),
        }
        for (name, dtype, verdict), group in sorted(rows.items())
    }


def largest(found: list[Found], dtypes: tuple[str, ...], key: str) -> dict[str, Any]:
    """The largest value of one measure among results within the limits, and whose it is.

    Kernels that keep 16 bits inside are held to other limits, and left out.
    """
    within = [j for _, j in found if j.verdict == "within" and j.dtype in dtypes]
    coarse = {*KEEPS_16_BITS, *KEEPS_16_BITS_ON_CPU}
    within = [j for j in within if j.name.removeprefix("aten::") not in coarse]
    within = [j for j in within if j.kind not in coarse and j.misrounding < 0.05]
    worst = max(within, key=lambda j: getattr(j, key))
    return {"value": getattr(worst, key), "operator": worst.name}


def main() -> None:
    with accel.report.Progress(len(SETTINGS) * len(FORMATS), "population") as progress:
        found = population(progress)
    wide, narrow = ("float32",), ("bfloat16", "float16")
    out = [f"{where}: {j.name}: {j.reason}" for where, j in found if j.verdict == "out"]
    counts = collections.Counter(j.verdict for _, j in found)
    costs = sorted(j.milliseconds for _, j in found if j.verdict != "unchecked")
    environment.write(
        "replay_population",
        {
            "judged": len(found),
            "verdicts": dict(counts),
            "false_alarms": out,
            "largest": {
                "float32": {key: largest(found, wide, key) for key in ("R", "M")},
                "16 bits": {
                    key: largest(found, narrow, key) for key in ("R", "M", "excess", "misrounding")
                },
            },
            "limits": {"R": MOST_R, "M": MOST_M, "margin of known": MARGIN},
            "milliseconds": {
                "median": costs[len(costs) // 2],
                "mean": math.fsum(costs) / len(costs),
                "largest": costs[-1],
            },
            "unchecked": dict(
                collections.Counter(
                    f"{j.name}: {j.reason}" for _, j in found if j.verdict == "unchecked"
                )
            ),
            "operators": summary(found),
        },
    )


if __name__ == "__main__":
    main()
