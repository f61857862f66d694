"""Gradient caching: every gradient is that of the batch in one piece."""

from __future__ import annotations

import copy
import dataclasses
import weakref
from collections import UserDict
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.checkpoint import checkpoint

from accel.alignment import Aligner
from accel.alignment.caching.aligner import CachedAligner, cached
from accel.alignment.caching.rng import Generators
from accel.precision import (
    ControllerConfig,
    DynamicLossScale,
    Precision,
    attach,
    portable_autocast,
)
from tests import alignment_worker as worker
from tests.process_groups import launched_well

WORKER = Path(worker.__file__)
SCENARIOS = "data_parallel", "sharded", "without_a_modality", "mistakes_of_one_rank"


class Words(nn.Module):
    """Takes a dictionary, as a tokenizer gives it."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(11, 8), nn.Linear(8, width)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        weight = inputs["mask"].unsqueeze(-1).to(self.table.weight.dtype)
        return self.head((self.table(inputs["ids"]) * weight).sum(1))


class Pair(nn.Module):
    """Takes a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(3, 6), nn.Linear(2, 6)

    def forward(self, inputs: tuple[Tensor, Tensor]) -> Tensor:
        return self.left(inputs[0]) * self.right(inputs[1])


def images(p: float = 0.0, middle: nn.Module | None = None) -> nn.Sequential:
    layers = nn.Linear(5, 8), nn.Dropout(p), nn.GELU(), middle or nn.Identity(), nn.Linear(8, 6)
    return nn.Sequential(*layers)


def aligner_of(p: float = 0.0, *, dtype: torch.dtype = torch.float64, **options: Any) -> Aligner:
    """Three modalities whose encoders take a dictionary, a tensor and a tuple."""
    torch.manual_seed(1)
    encoders = {"text": Words(), "image": images(p), "audio": Pair()}
    return Aligner(encoders, dim=6, **options).to(dtype)


def batch_of(count: int = 7, dtype: torch.dtype = torch.float64, device: Any = None) -> Any:
    g = torch.Generator().manual_seed(count)
    numbers = [torch.randn(count, n, generator=g).to(dtype) for n in (5, 3, 2)]
    ids = torch.randint(11, (count, 4), generator=g)
    mask = torch.rand(count, 4, generator=g) > 0.3
    text = {"ids": ids.to(device), "mask": mask.to(device)}
    image, *audio = (one.to(device) for one in numbers)
    return {"text": text, "image": image, "audio": tuple(audio)}


def gradients_of(model: nn.Module) -> dict[str, Tensor | None]:
    found = {name: one.grad for name, one in model.named_parameters()}
    model.zero_grad()
    return found


def same(found: dict[str, Any], expected: dict[str, Any], bound: float = 1e-12) -> None:
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        assert (found[name] is None) == (wanted is None), name
        if wanted is not None and wanted.numel():
            assert torch.isfinite(wanted).all()
            away = (found[name].double() - wanted.double()).abs().max()
            assert away <= bound * max(1.0, wanted.abs().max()), (name, away)


def in_chunks(aligner: Aligner, batch: Any, bounds: list[int], **options: Any) -> Any:
    """What caching must be equal to: all graphs at once, by the same pieces in the same order."""
    from accel.alignment.inputs import slice_rows

    embeddings = {}
    for name, inputs in batch.items():
        pieces = pairwise(bounds)
        embeddings[name] = torch.cat(
            [aligner.encode(name, slice_rows(inputs, start, stop)) for start, stop in pieces]
        )
    return aligner.loss(embeddings, **options)


# --- every gradient ------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
@pytest.mark.parametrize("chunk_size", [1, 2, 3, 7, 100])
def test_every_gradient_is_that_of_one_piece(chunk_size: int, loss: str) -> None:
    aligner, batch = aligner_of(loss=loss), batch_of()
    expected = aligner(batch)
    expected.loss.backward()
    wanted = gradients_of(aligner)
    assert all(one is not None for one in wanted.values())
    found = cached(aligner, batch, chunk_size=chunk_size)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-12, atol=0.0)
    assert found.pair_counts == expected.pair_counts
    found.loss.backward()
    same(gradients_of(aligner), wanted)


@pytest.mark.parametrize("whole_rows", [True, False])
def test_absent_modalities_groups_and_negatives(whole_rows: bool) -> None:
    from accel.alignment.inputs import select_rows

    aligner, batch = aligner_of(duplicates="ignore"), batch_of(9)
    presence = torch.rand(9, 3, generator=torch.Generator().manual_seed(3)) > 0.4
    options = {"presence": presence, "groups": torch.arange(9) % 4}
    if not whole_rows:
        batch = {
            name: select_rows(inputs, presence[:, column].nonzero().squeeze(1))
            for column, (name, inputs) in enumerate(batch.items())
        }
    negatives = {"image": batch_of(5)["image"]}
    expected = aligner(batch, negatives=negatives, **options)
    expected.loss.backward()
    wanted = gradients_of(aligner)
    found = cached(aligner, batch, chunk_size=2, negatives=negatives, **options)
    found.loss.backward()
    same(gradients_of(aligner), wanted)
    assert found.embeddings["text"].shape == expected.embeddings["text"].shape


def test_openclips_loop_has_the_scale_gradient_k_times_and_ours_has_it_once() -> None:
    """open_clip_train's `--accum-freq`: each of k backwards differentiates the whole loss."""
    aligner, batch = aligner_of(pairs=[("text", "image")]), batch_of(8)
    del batch["audio"]
    aligner(batch).loss.backward()
    exact = gradients_of(aligner)
    bounds = [0, 2, 4, 6, 8]
    from accel.alignment.inputs import slice_rows

    with torch.no_grad():
        kept = {name: aligner.encode(name, inputs) for name, inputs in batch.items()}
    for start, stop in pairwise(bounds):
        fresh = {
            name: torch.cat([
                kept[name][:start],
                aligner.encode(name, slice_rows(inputs, start, stop)),
                kept[name][stop:],
            ])
            for name, inputs in batch.items()
        }  # fmt: skip
        aligner.loss(fresh).loss.backward()
    theirs = gradients_of(aligner)
    scale = next(name for name in theirs if "log_scale" in name)
    torch.testing.assert_close(theirs[scale], 4.0 * exact[scale], rtol=1e-12, atol=0.0)
    same({**theirs, scale: exact[scale]}, exact)
    cached(aligner, batch, chunk_size=2).loss.backward()
    same(gradients_of(aligner), exact)


def test_gradients_accumulate_are_asked_for_and_reach_hooks_once_and_whole() -> None:
    aligner, batch = aligner_of(), batch_of()
    weight = aligner.encoders["image"][0].weight
    aligner(batch).loss.backward()
    exact = gradients_of(aligner)
    seen: list[Tensor] = []
    handles = [weight.register_hook(seen.append)]
    handles.append(weight.register_post_accumulate_grad_hook(lambda one: seen.append(one.grad)))
    output = cached(aligner, batch, chunk_size=3)
    output.loss.backward(retain_graph=True)
    assert len(seen) == 2
    name = "encoders.image.0.weight"
    same({str(n): one for n, one in enumerate(seen)}, dict.fromkeys("01", exact[name]))
    output.loss.backward()  # once more, into the same
    same(gradients_of(aligner), {key: 2 * one for key, one in exact.items()})
    for handle in handles:
        handle.remove()
    asked = torch.autograd.grad(cached(aligner, batch, chunk_size=3).loss, weight)
    same({name: asked[0]}, {name: exact[name]})
    assert weight.grad is None


def test_a_loss_of_ones_own_on_the_embeddings() -> None:
    aligner, batch = aligner_of(), batch_of()
    gradients = []
    for run in (aligner, CachedAligner(aligner, 2)):
        output = run(batch)
        (output.loss + output.embeddings["image"].pow(3).sum()).backward()
        gradients.append(gradients_of(aligner))
    same(gradients[1], gradients[0])


def test_a_locked_tower_and_one_that_two_modalities_share() -> None:
    shared = images(0.5).double()
    encoders = {"text": Words().double(), "image": shared, "sketch": shared}
    aligner = Aligner(encoders, dim=6).double()
    encoders["text"].requires_grad_(False)
    batch = batch_of()
    batch["sketch"] = batch.pop("audio")[0].new_ones(7, 5) * batch["image"].flip(0)
    gradients = []
    for run in (lambda: in_chunks(aligner, batch, [0, 2, 4, 7]), None):
        torch.manual_seed(5)
        (cached(aligner, batch, chunk_size=3) if run is None else run()).loss.backward()
        gradients.append(gradients_of(aligner))
    assert gradients[0]["encoders.text.head.weight"] is None
    same(gradients[1], gradients[0])


class Skipping(nn.Module):
    """A base that is frozen and, for rows that ask for it, an adapter; or a layer that drops."""

    def __init__(self, *, draws: bool) -> None:
        super().__init__()
        self.base, self.adapter = nn.Linear(5, 6).requires_grad_(False), nn.Linear(5, 6)
        self.draws, self.graphs = draws, list[bool]()

    def forward(self, inputs: Tensor) -> Tensor:
        skips = bool(torch.rand(()) < 0.5 if self.draws else inputs[0, 0] < 0)
        if torch.is_grad_enabled():
            self.graphs.append(not skips)
        return self.base(inputs) if skips else self.base(inputs) + self.adapter(inputs)


@pytest.mark.parametrize("draws", [True, False], ids=["layer drop", "adapter"])
def test_chunks_without_a_graph_leave_the_gradients_of_others(draws: bool) -> None:
    aligner, batch = aligner_of(), batch_of(9)
    encoder = aligner.encoders["image"] = Skipping(draws=draws).double()
    batch["image"][[0, 3, 6], 0] = torch.tensor([-1.0, 1.0, -1.0]).double()
    gradients = []
    for run in (partial(in_chunks, bounds=[0, 3, 6, 9]), partial(cached, chunk_size=3)):
        torch.manual_seed(0)
        run(aligner, batch).loss.backward()
        gradients.append(gradients_of(aligner))
    half = len(encoder.graphs) // 2
    assert encoder.graphs[:half] == encoder.graphs[half:]
    assert not encoder.graphs[0]
    assert any(encoder.graphs)
    assert gradients[0]["encoders.image.adapter.weight"].norm() > 0.01
    same(gradients[1], gradients[0])


def test_chunks_after_one_without_a_graph_are_compared_too() -> None:
    aligner, batch = aligner_of(), batch_of(9)
    aligner.encoders["image"] = Skipping(draws=False).double()
    batch["image"][[0, 3, 6], 0] = torch.tensor([-1.0, 1.0, -1.0]).double()
    output = cached(aligner, batch, chunk_size=3)
    with torch.no_grad():
        aligner.encoders["image"].adapter.bias.add_(1.0)
    with pytest.raises(RuntimeError, match="second run of the encoder of 'image'"):
        output.loss.backward()


def test_of_a_locked_tower_one_chunk_is_run_again() -> None:
    aligner, batch = aligner_of(), batch_of(9)
    aligner.encoders["image"].requires_grad_(False)
    runs: list[bool] = []
    aligner.encoders["image"].register_forward_hook(lambda *_: runs.append(torch.is_grad_enabled()))
    cached(aligner, batch, chunk_size=3).loss.backward()
    assert runs == [False, False, False, True]


# --- the second pass is the first again ----------------------------------------------------------


def test_dropout_is_the_same_in_both_passes_and_draws_are_left_alone(device) -> None:
    dtype = torch.float64 if device.family == "cpu" else torch.float32
    where = device.torch_device
    aligner = aligner_of(0.5, dtype=dtype).to(where)
    batch = batch_of(7, dtype, where)
    device.seed(3)
    in_chunks(aligner, batch, [0, 2, 4, 7]).loss.backward()
    wanted, after = gradients_of(aligner), torch.rand(3, device=where)
    device.seed(3)
    output = cached(aligner, batch, chunk_size=3)
    state = device.rng_state()
    torch.rand(5, device=where)  # what others draw before the backward does not matter
    device.set_rng_state(state)
    output.loss.backward()
    same(gradients_of(aligner), wanted, 1e-12 if dtype == torch.float64 else 1e-5)
    assert torch.equal(torch.rand(3, device=where), after), "the backward moved the generators"


def test_without_replay_the_gradients_would_be_wrong_and_that_is_an_error(monkeypatch) -> None:
    aligner, batch = aligner_of(0.5), batch_of()
    output = cached(aligner, batch, chunk_size=3)
    monkeypatch.setattr(Generators, "restore", lambda self, states: None)
    with pytest.raises(RuntimeError, match=r"second run of the encoder of 'image'.*relative"):
        output.loss.backward()


def test_parameters_that_changed_before_the_backward_are_an_error() -> None:
    aligner = aligner_of()
    output = cached(aligner, batch_of(), chunk_size=3)
    with torch.no_grad():
        aligner.encoders["audio"].left.weight.mul_(1.5)
    with pytest.raises(RuntimeError, match="'audio'"):
        output.loss.backward()


@dataclasses.dataclass
class Tokens:
    """A batch of a class of its own."""

    ids: Tensor
    mask: Tensor

    def __getitem__(self, key: str) -> Tensor:
        return getattr(self, key)


def test_inputs_that_changed_in_place_are_an_error_however_little(device) -> None:
    aligner = aligner_of(dtype=torch.float32).to(device.torch_device)
    for form in (dict, UserDict, lambda text: Tokens(**text)):
        batch = batch_of(7, torch.float32, device.torch_device)
        batch["text"] = form(batch["text"])
        tensors = batch["text"]["mask"], batch["image"][2:3], batch["audio"][1]  # one is a view
        for name, tensor in zip(batch, tensors, strict=True):
            with torch.autocast(device.torch_device.type, torch.bfloat16):
                output = cached(aligner, batch, chunk_size=3)
            tensor.mul_(tensor != 1e9)  # by one: no distance tells
            with pytest.raises(RuntimeError, match=rf"input of '{name}'.*changed in place"):
                output.loss.backward()
    assert all(one is None for one in gradients_of(aligner).values())
    cached(aligner, batch, chunk_size=3).loss.backward()
    batch["image"].zero_()


def test_a_change_of_what_was_not_encoded_is_none() -> None:
    """Rows of the samples that are present are a copy."""
    aligner, batch = aligner_of(), batch_of()
    presence = torch.ones(7, 3, dtype=torch.bool)
    presence[2, 1] = False
    options = {"presence": presence}
    aligner(batch, **options).loss.backward()
    wanted = gradients_of(aligner)
    output = cached(aligner, batch, chunk_size=3, **options)
    batch["image"].zero_()
    output.loss.backward()
    same(gradients_of(aligner), wanted)


def test_inference_tensors_have_no_version_and_are_taken() -> None:
    aligner, batch = aligner_of(), batch_of()
    aligner(batch).loss.backward()
    wanted = gradients_of(aligner)
    with torch.inference_mode():
        batch["image"] = batch["image"].clone()
    aligner.encoders["image"][0].requires_grad_(False)  # autograd would keep the input
    cached(aligner, batch, chunk_size=3).loss.backward()
    found = gradients_of(aligner)
    frozen = {name: None for name in wanted if name.startswith("encoders.image.0.")}
    assert len(frozen) == 2
    same(found, {**wanted, **frozen})


def test_an_encoder_that_changes_its_inputs_is_an_error() -> None:
    class Halving(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            return super().forward(inputs.mul_(1.0001))

    aligner = aligner_of(dtype=torch.float32)
    aligner.encoders["image"] = Halving(5, 6)
    with pytest.raises(RuntimeError, match=r"'image'.*must not change its inputs"):
        cached(aligner, batch_of(7, torch.float32), chunk_size=3).loss.backward()


def test_batch_norm_normalises_chunks_and_counts_each_once() -> None:
    """The documented difference: statistics are a chunk's, and the first pass keeps them."""
    runs = []
    for caches in (False, True):
        aligner = aligner_of()
        aligner.encoders["image"] = images(0.3, nn.BatchNorm1d(8)).double()
        aligner.encoders["image"].load_state_dict(runs[0][2] if runs else {}, strict=bool(runs))
        before = {n: t.clone() for n, t in aligner.encoders["image"].state_dict().items()}
        torch.manual_seed(7)
        output = (
            cached(aligner, batch_of(), chunk_size=3)
            if caches
            else in_chunks(aligner, batch_of(), [0, 2, 4, 7])
        )
        forward = {name: one.clone() for name, one in aligner.named_buffers()}
        output.loss.backward()
        buffers = dict(aligner.named_buffers())
        assert all(torch.equal(buffers[name], one) for name, one in forward.items())
        assert buffers["encoders.image.3.num_batches_tracked"] == 3
        runs.append((gradients_of(aligner), buffers, before))
    same(runs[1][0], runs[0][0])
    same(*({k: b.double() for k, b in run[1].items()} for run in runs))


def test_buffers_that_a_forward_reads_and_moves_are_as_they_were_then() -> None:
    """Spectral norm takes a power iteration from its buffers in each training forward."""
    results = []
    for caches in (False, True):
        aligner = aligner_of()
        torch.manual_seed(9)
        middle = spectral_norm(nn.Linear(8, 8))
        aligner.encoders["image"] = images(0.0, middle).double()
        output = (
            cached(aligner, batch_of(), chunk_size=3)
            if caches
            else in_chunks(aligner, batch_of(), [0, 2, 4, 7])
        )
        output.loss.backward()
        results.append((gradients_of(aligner), dict(aligner.named_buffers())))
    same(results[1][0], results[0][0])
    same(results[1][1], results[0][1])


def test_modes_of_the_first_pass_hold_in_the_second() -> None:
    aligner, batch = aligner_of(0.5), batch_of()
    torch.manual_seed(2)
    in_chunks(aligner, batch, [0, 2, 4, 7]).loss.backward()
    wanted = gradients_of(aligner)
    torch.manual_seed(2)
    output = cached(aligner, batch, chunk_size=3)
    aligner.eval()
    output.loss.backward()
    same(gradients_of(aligner), wanted)
    assert not any(module.training for module in aligner.modules())


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # in the first pass
def test_checkpointing_inside_an_encoder(reentrant: bool) -> None:
    class Checkpointed(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.first, self.inner = nn.Linear(5, 5), inner

        def forward(self, inputs: Tensor) -> Tensor:
            return checkpoint(self.inner, self.first(inputs), use_reentrant=reentrant)

    aligner, batch = aligner_of(), batch_of()
    aligner.encoders["image"] = Checkpointed(images(0.5)).double()
    gradients = []
    for caches in (False, True):
        torch.manual_seed(4)
        output = (
            cached(aligner, batch, chunk_size=3)
            if caches
            else in_chunks(aligner, batch, [0, 2, 4, 7])
        )
        output.loss.backward()
        gradients.append(gradients_of(aligner))
    same(gradients[1], gradients[0])


def test_one_chunk_is_alive_at_a_time() -> None:
    aligner = aligner_of()
    alive: list[weakref.ref[Tensor]] = []
    rows: list[int] = []

    def note(module: nn.Module, inputs: Any, output: Tensor) -> None:
        if output.requires_grad:
            assert all(one() is None for one in alive), "an earlier chunk is still kept"
            alive[:] = [weakref.ref(output)]
            rows.append(len(output))

    aligner.encoders["image"][0].register_forward_hook(note)
    output = cached(aligner, batch_of(10), chunk_size=3)
    assert rows == []
    output.loss.backward()
    assert rows == [2, 3, 2, 3]


class Recurrent(nn.Module):
    """Its LSTM keeps references to its weights besides the parameters themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.LSTM(5, 6, batch_first=True)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.cells(inputs.unsqueeze(1))[0][:, -1]


def compiled() -> nn.Module:
    torch._dynamo.reset()
    return torch.compile(images(), backend="aot_eager")


@pytest.mark.parametrize("make", [Recurrent, compiled], ids=["lstm", "compiled"])
def test_encoders_that_hold_on_to_their_parameters(make: Callable[[], nn.Module]) -> None:
    aligner, batch = aligner_of(), batch_of(8)
    aligner.encoders["image"] = make()
    aligner.double()
    hooked: list[Tensor] = []
    next(aligner.encoders["image"].parameters()).register_hook(hooked.append)
    gradients = []
    for run in (aligner, CachedAligner(aligner, 4), aligner):
        run(batch).loss.backward()
        gradients.append(gradients_of(aligner))
    assert len(hooked) == 3
    same(gradients[1], gradients[0])
    same(gradients[2], gradients[0])


# --- precision -----------------------------------------------------------------------------------


def test_autocast_of_the_first_pass_holds_in_the_second(device) -> None:
    where = device.torch_device
    kind = where.type
    aligner, batch = aligner_of(0.5, dtype=torch.float32), batch_of(7, torch.float32, where)
    aligner.to(where)
    gradients = []
    for caches in (False, True):
        device.seed(6)
        # Without its cache the sum over chunks is in float32, as that of caching is.
        with torch.autocast(kind, dtype=torch.bfloat16, cache_enabled=caches):
            output = (
                cached(aligner, batch, chunk_size=3)
                if caches
                else in_chunks(aligner, batch, [0, 2, 4, 7])
            )
            again = aligner(batch)  # weights cast without gradients must not serve it
        output.loss.backward()
        gradients.append(gradients_of(aligner))
        again.loss.backward()
        assert all(one is not None for one in gradients_of(aligner).values())
    same(gradients[1], gradients[0], 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_parameters_of_16_bits_have_sums_over_chunks_of_32(dtype: torch.dtype, device) -> None:
    where, count = device.torch_device, 256
    torch.manual_seed(0)
    encoders = {"a": nn.Linear(16, 8).to(dtype), "b": nn.Linear(16, 8).to(dtype)}
    aligner = Aligner(encoders, dim=8).to(where)
    g = torch.Generator().manual_seed(0)
    batch = {name: (torch.randn(count, 16, generator=g) + 3).to(where, dtype) for name in "ab"}
    exact = copy.deepcopy(aligner).cpu().double()
    exact({name: one.cpu().double() for name, one in batch.items()}).loss.backward()
    wanted = gradients_of(exact)
    errors = {}
    for chunk_size in (count, 16, 1):
        cached(aligner, batch, chunk_size=chunk_size).loss.backward()
        assert all(one.grad.dtype == one.dtype for one in aligner.parameters())
        found = gradients_of(aligner)
        errors[chunk_size] = max(
            float((found[n].cpu().double() - one).norm() / one.norm())
            for n, one in wanted.items()
            if "encoders" in n
        )
    assert errors[count] < 4 * torch.finfo(dtype).eps
    assert max(errors.values()) <= 1.5 * errors[count], errors


def test_a_gradient_is_of_the_dtype_that_its_parameter_asks_for() -> None:
    aligner, batch = aligner_of(dtype=torch.float32), batch_of(7, torch.float32)
    wide = aligner.encoders["image"].bfloat16()[0].weight
    wide.grad_dtype = torch.float32
    batch["image"] = batch["image"].bfloat16()
    cached(aligner, batch, chunk_size=1).loss.backward()
    assert wide.grad.dtype == torch.float32
    assert not torch.equal(wide.grad, wide.grad.bfloat16().float())


def test_the_portable_region_holds_in_the_second_pass_and_only_there() -> None:
    aligner, batch = aligner_of(dtype=torch.float32), batch_of(7, torch.float32)
    seen: list[tuple[bool, bool]] = []
    aligner.encoders["image"].register_forward_hook(
        lambda *_: seen.append((torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("ipu")))
    )
    with portable_autocast("cpu"):
        output = cached(aligner, batch, chunk_size=4)
    output.loss.backward()
    assert seen == [(True, True)] * 4
    output = cached(aligner, batch, chunk_size=4)
    with portable_autocast("cpu"):
        output.loss.backward()
        assert torch.is_autocast_enabled("ipu")
    assert seen[4:] == [(False, False)] * 4


POLICIES = ["compute=float16", "compute=bfloat16", "fp8_delayed,emulate", "fp8_rowwise,emulate"]


@pytest.mark.parametrize("policy", POLICIES)
def test_training_by_a_precision_policy(policy: str) -> None:
    """Gradients, loss scale, and what layers in eight bits keep: as if all graphs were kept."""
    results = []
    for caches in (False, True):
        aligner = aligner_of(0.2, dtype=torch.float32, temperature=5.0)
        controlled = {"controller": ControllerConfig(interval=1)} if "fp8" in policy else {}
        if policy == "compute=float16":
            controlled = {"loss_scale": DynamicLossScale(2.0**8)}
        precision = Precision(aligner, policy, **controlled)
        # Steps that move nothing: rounding to eight bits would make much of little.
        optimizer = torch.optim.SGD(aligner.parameters(), lr=0.0)
        torch.manual_seed(8)
        for step in range(3):
            batch = batch_of(7 + step, torch.float32)
            bounds = [(7 + step) * n // 3 for n in range(4)]
            with precision.autocast():
                torch.set_autocast_cache_enabled(caches)  # sums over chunks in float32, as above
                output = (
                    cached(aligner, batch, chunk_size=3)
                    if caches
                    else in_chunks(aligner, batch, bounds)
                )
            precision.backward(output.loss)
            gradients = {name: one.grad for name, one in aligner.named_parameters()}
            statistics = {
                f"{name} {role}": one.clone()
                for name, layer in precision.layers.items()
                for role, one in layer.statistics.items()
            }
            assert precision.step(optimizer)
            optimizer.zero_grad()
        layers = {
            f"{name} {kind} {role}": tensor
            for name, layer in precision.layers.items()
            for kind in ("supposed", "history", "pending")
            for role, tensor in getattr(layer, kind).items()
        }
        steps = {name: layer.steps for name, layer in precision.layers.items()}
        results.append((gradients, {**layers, **statistics}, steps, precision.loss_scale.factor))
        precision.close()
    assert results[0][2] == results[1][2]
    assert results[0][3] == results[1][3]
    same(results[1][0], results[0][0], 1e-5)
    same(results[1][1], results[0][1], 1e-6)
    if "delayed" in policy:
        assert max(one.max() for name, one in results[1][1].items() if "history" in name) > 0.1


def test_training_in_a_loop_of_others_under_a_loss_scale() -> None:
    """`attach` divides gradients by hooks of the parameters: once, also here."""
    aligner, batch = aligner_of(dtype=torch.float32), batch_of(7, torch.float32)
    aligner(batch).loss.backward()
    wanted = gradients_of(aligner)
    model = CachedAligner(aligner, 3)
    precision = Precision(model, "compute=float16", loss_scale=DynamicLossScale(1024.0))
    attached = attach(precision, torch.optim.SGD(model.parameters(), lr=0.1))
    model(batch).loss.backward()
    same(gradients_of(aligner), wanted, 5e-2)
    attached.detach()


# --- mistakes ------------------------------------------------------------------------------------


def test_mistakes() -> None:
    aligner, batch = aligner_of(), batch_of()
    for size in (0, -1, 2.0, True):
        with pytest.raises(ValueError, match="chunk_size must be a whole number of at least 1"):
            cached(aligner, batch, chunk_size=size)
    with pytest.raises(TypeError, match=r"not Linear.*CachedAligner\(aligner, chunk_size"):
        cached(nn.Linear(2, 2), batch, chunk_size=2)
    learned = {**batch, "image": batch["image"].requires_grad_()}
    with pytest.raises(ValueError, match="'image' requires a gradient"):
        cached(aligner, learned, chunk_size=2)
    batch["image"].requires_grad_(False)
    with pytest.raises(ValueError, match="'image' have no rows"):
        cached(aligner, {**batch, "image": object()}, chunk_size=2)
    with pytest.raises(ValueError, match="different batch sizes"):
        cached(aligner, {**batch, "image": batch["image"][:3]}, chunk_size=2)
    loss = cached(aligner, batch, chunk_size=2).loss
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss, list(aligner.parameters()), create_graph=True)


def test_lazy_modules_are_run_once_before() -> None:
    encoders = {"a": nn.Sequential(nn.LazyLinear(6), nn.LazyBatchNorm1d()), "b": nn.Linear(2, 6)}
    aligner = Aligner(encoders, dim=6)
    ran: list[int] = []
    aligner.encoders["b"].register_forward_hook(lambda *_: ran.append(1))
    batch = {"a": torch.randn(7, 4), "b": torch.randn(7, 2)}
    for run in (CachedAligner(aligner, 3), lambda one: cached(aligner, one, chunk_size=3)):
        with pytest.raises(
            ValueError, match=r"encoders\.a\.0\.weight.*call the aligner once first"
        ):
            run(batch)
    assert not ran
    with torch.no_grad():
        aligner(batch)
    cached(aligner, batch, chunk_size=3).loss.backward()
    assert aligner.encoders["a"][0].weight.grad.norm() > 0


def test_an_input_of_a_class_of_its_own_that_requires_a_gradient() -> None:
    aligner, batch = aligner_of(), batch_of()
    weights = torch.ones(7, 4, dtype=torch.float64, requires_grad=True)
    for form in (UserDict, lambda text: Tokens(**text)):
        text = form({**batch["text"], "mask": weights})
        with pytest.raises(ValueError, match="'text' requires a gradient"):
            cached(aligner, {**batch, "text": text}, chunk_size=3)


def test_without_gradients_it_is_encoding_in_chunks() -> None:
    aligner, batch = aligner_of(), batch_of()
    expected = aligner(batch)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            found = cached(aligner, batch, chunk_size=2)
        assert not found.loss.requires_grad
        torch.testing.assert_close(found.loss, expected.loss.detach(), rtol=1e-12, atol=0.0)


# --- several processes ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Callable[[str], list[Any]]:
    """What every rank of two found in a scenario."""
    out = tmp_path_factory.mktemp("shared")
    launched_well(WORKER, 2, str(out), *SCENARIOS)
    return lambda name: [torch.load(out / f"{name}-{rank}.pt") for rank in range(2)]


def one_process(**options: Any) -> tuple[Tensor, dict[str, int], dict[str, Tensor]]:
    """The whole batch, in one piece."""
    calls = worker.samples_of(2)
    batch = {
        name: torch.cat([call["batch"][name] for call in calls]) for name in ("text", "image")
    }  # fmt: skip
    batch["audio"] = tuple(
        torch.cat([call["batch"]["audio"][n] for call in calls]) for n in range(2)
    )
    others = {name: torch.cat([call[name] for call in calls]) for name in ("presence", "groups")}
    aligner = worker.model_of("local", **options)
    output = aligner(batch, **others)
    output.loss.backward()
    return output.loss.detach(), output.pair_counts, worker.gradients_of(aligner)


@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
@pytest.mark.parametrize("form", worker.FORMS)
def test_ddp_around_the_whole_reduces_once_what_one_process_has(
    form, loss, chunk_size, shared
) -> None:
    value, counts, gradients = one_process(loss=loss)
    for found in shared("data_parallel"):
        mine, pair_counts, averaged, reduced = found[f"{form} {loss} {chunk_size}"]
        torch.testing.assert_close(mine, value, rtol=1e-12, atol=0.0)
        assert pair_counts == counts
        same(averaged, gradients)
        assert reduced == sum(one.numel() for one in gradients.values())


def test_a_rank_whose_batch_lacks_a_modality_takes_part(shared) -> None:
    _, _, gradients = one_process()
    for averaged in shared("without_a_modality"):
        same(averaged, gradients)


@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("form", worker.FORMS)
def test_fsdp2_on_encoders_and_heads_has_what_one_process_has(form, chunk_size, shared) -> None:
    value, counts, gradients = one_process()
    for found in shared("sharded"):
        mine, pair_counts, averaged = found[f"{form} {chunk_size}"]
        torch.testing.assert_close(mine, value, rtol=1e-12, atol=0.0)
        assert pair_counts == counts
        same(averaged, gradients)


def test_a_sharded_aligner_is_refused(shared) -> None:
    for found in shared("sharded"):
        assert found["refused"] == (
            "fully_shard was applied to the aligner, whose forward caching does not call: apply it "
            "to the encoders and heads"
        )


def test_a_mistake_of_one_rank_is_an_error_on_every_rank(shared) -> None:
    for rank, found in enumerate(shared("mistakes_of_one_rank")):
        assert ("rank 1 cannot take part" in found["rows"]) == (rank == 0)
        assert "'image' has 0 rows" in found["rows"]
        assert ("rank 1 cannot take part" in found["learned"]) == (rank == 0)
        assert "'image' requires a gradient" in found["learned"]
    for found in shared("sharded"):
        assert found["lacking"] == (
            "every rank must call the loss alike, but what the batch holds is text, image, audio "
            "on rank 0 and text, image on rank 1"
        )
