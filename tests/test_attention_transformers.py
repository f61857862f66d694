"""Models of transformers on segmented attention: the same numbers as with eager attention."""

from __future__ import annotations

import copy
import functools
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import accel
from accel.attention import causal, window
from accel.attention.hugging_face import interface
from accel.attention.hugging_face.interface import attention_for_transformers
from accel.testing import assert_within_budget
from accel_kernels import budgets

transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed: pip install 'accel-torch[transformers]'"
)
masking_utils = pytest.importorskip("transformers.masking_utils")

LENGTH = 19
SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    # Attention must look at something, or a mask that is dropped does not show.
    "initializer_range": 0.3,
}
WINDOWS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 5}


def decoder(name: str, **extra):
    config = getattr(transformers, f"{name}Config")(**{**SMALL, **extra})
    return config, getattr(transformers, f"{name.removesuffix('Text')}ForCausalLM")


def decoders():
    return {
        "llama": decoder("Llama"),
        "mistral": decoder("Mistral", sliding_window=5),
        "qwen2": decoder("Qwen2", use_sliding_window=True, max_window_layers=1, sliding_window=4),
        "gemma2": decoder("Gemma2", head_dim=8, attn_logit_softcapping=2.0, **WINDOWS),
        "gemma3": decoder("Gemma3Text", head_dim=8, **WINDOWS),
        "gpt_oss": decoder(
            "GptOss",
            head_dim=8,
            num_local_experts=2,
            num_experts_per_tok=2,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            **WINDOWS,
        ),
        "llama4": decoder(
            "Llama4Text",
            head_dim=8,
            attention_chunk_size=5,
            intermediate_size_mlp=48,
            num_local_experts=2,
            num_experts_per_tok=2,
            no_rope_layers=[1, 0],
        ),
    }


DECODERS = ["llama", "mistral", "qwen2", "gemma2", "gemma3", "gpt_oss", "llama4"]


def built(config, cls, dtype=torch.float32, **changes):
    """A model on eager attention and one on accel's, with the same parameters."""
    name = attention_for_transformers()
    made = []
    for implementation, change in (("eager", {}), (name, changes)):
        own = copy.deepcopy(config)
        for key, value in change.items():
            setattr(own, key, value)
        torch.manual_seed(0)
        made.append(cls._from_config(own, attn_implementation=implementation).eval())
    eager, ours = made
    for parameter in eager.parameters():
        if parameter.dim() < 2:  # norms, biases and sinks, which begin as ones and zeros
            parameter.data += torch.randn_like(parameter) * 0.3
    ours.load_state_dict(eager.state_dict())
    return eager.to(dtype), ours.to(dtype)


def in_float64(model):
    double = copy.deepcopy(model).double()
    if double._can_set_experts_implementation():
        double.set_experts_implementation("eager")  # the default has no float64
    return double


def results(model, calls, weights: list[Tensor]) -> list[Tensor]:
    """Outputs of several calls, and the gradient of their weighted sum for every parameter."""
    model.zero_grad()
    found = [call(model) for call in calls]
    total = sum((f * w.to(f.dtype)).sum() for f, w in zip(found, weights, strict=True))
    total.backward()
    return [*(f.detach() for f in found), *gradients_by_layer(model)]


def gradients_by_layer(model) -> list[Tensor]:
    """A layer's weight and bias are judged together: a key's bias has no gradient but rounding."""
    found = []
    for layer in model.modules():
        own = [p.grad.flatten() for p in layer.parameters(recurse=False) if p.grad is not None]
        found += [torch.cat(own)] if own else []
    return found


def assert_same(eager, ours, calls, alone=None) -> None:
    """Within twice eager's own error from eager in float64, of each sequence on its own.

    Args:
        eager: In float32.
        ours: Likewise, with the same parameters.
        calls: Functions of a model to its outputs.
        alone: The same for the float64 model; without padding, since eager attention in float64
            makes NaN of rows that see nothing.
    """
    weights = [torch.randn_like(call(eager)) for call in calls]
    truth = results(in_float64(eager), alone or calls, weights)
    reference, actual = results(eager, calls, weights), results(ours, calls, weights)
    errors = [budgets.deviation(r, t) for r, t in zip(reference, truth, strict=True)]
    # Rounding in one layer is carried into the gradients of all before it.
    floor = budgets.Deviation(max(e.rms for e in errors), max(e.worst for e in errors))
    assert len(actual) == len(reference) == len(truth)
    for a, r, t in zip(actual, reference, truth, strict=True):
        assert_within_budget(a, r, t, floor=floor)


def padded_batch(side: str) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, padding mask and positions of two sequences, of which one is shorter."""
    tokens = torch.randint(3, 64, (2, LENGTH))
    mask = torch.ones(2, LENGTH, dtype=torch.long)
    if side != "none":
        mask[0, slice(12, None) if side == "right" else slice(0, 7)] = 0
    return tokens, mask, (mask.cumsum(1) - 1).clamp(min=0)


def padded_calls(side: str):
    """Calls of a model with a padded batch, and with each sequence on its own."""
    tokens, mask, positions = padded_batch(side)
    keep = mask.bool()
    given = {} if side == "none" else {"attention_mask": mask}

    def together(model) -> Tensor:
        return model(tokens, position_ids=positions, use_cache=False, **given).logits[keep]

    def apart(model) -> Tensor:
        found = [
            model(tokens[b, keep[b]][None], position_ids=positions[b, keep[b]][None]).logits[0]
            for b in range(2)
        ]
        return torch.cat(found)

    return [together], [apart]


@pytest.mark.parametrize("side", ["none", "right", "left"])
@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_equals_eager_attention(name: str, side: str) -> None:
    assert_same(*built(*decoders()[name]), *padded_calls(side))


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("mistral", {"mask": causal()}),
        ("qwen2", {"mask": causal()}),
        ("gemma2", {"softcap": None}),
        ("gemma3", {"scale": 0.3}),
        ("llama4", {"mask": causal()}),
    ],
)
def test_an_argument_that_is_dropped_shows(name: str, fault, monkeypatch) -> None:
    """The control: with one argument of attention ignored, the comparison above fails."""
    original = interface.segmented_attention
    monkeypatch.setattr(
        interface, "segmented_attention", lambda *a, **k: original(*a, **{**k, **fault})
    )
    with pytest.raises(AssertionError, match="the result"):
        assert_same(*built(*decoders()[name]), *padded_calls("none"))


def test_sinks_that_are_dropped_show(monkeypatch) -> None:
    monkeypatch.setattr(interface, "_with_sink", lambda out, lse, sink: out + sink.sum() * 0)
    with pytest.raises(AssertionError, match="the result"):
        assert_same(*built(*decoders()["gpt_oss"]), *padded_calls("none"))


@pytest.mark.parametrize("sliding_window", [4, 6])
def test_a_window_that_is_off_by_one_shows(sliding_window: int) -> None:
    config, cls = decoders()["mistral"]
    with pytest.raises(AssertionError, match="the result"):
        assert_same(*built(config, cls, sliding_window=sliding_window), *padded_calls("none"))


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2"])
@pytest.mark.parametrize("how", ["position_ids", "cu_seq_lens"])
def test_packed_sequences(name: str, how: str) -> None:
    """Sequences in one row, told apart by positions or by the arguments of flash attention."""
    lengths = [7, 1, 11]
    tokens = torch.randint(3, 64, (1, sum(lengths)))
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    given = {"position_ids": positions, "use_cache": False}
    ends = torch.tensor([0, 7, 8, 19], dtype=torch.int32)
    if how == "cu_seq_lens":
        given |= {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": 11}

    def apart(model) -> Tensor:
        parts = [model(part, use_cache=False).logits for part in tokens.split(lengths, dim=1)]
        return torch.cat(parts, dim=1)

    eager, ours = built(*decoders()[name])
    assert_same(eager, ours, [lambda model: model(tokens, **given).logits], [apart])


def test_packed_sequences_of_a_batch_are_refused() -> None:
    _, ours = built(*decoders()["llama"])
    ends = torch.tensor([0, 3, 5], dtype=torch.int32)
    tokens = torch.randint(3, 64, (2, 5))
    with pytest.raises(ValueError, match="need a batch of one row, not 2"):
        ours(tokens, cu_seq_lens_q=ends, cu_seq_lens_k=ends)
    with pytest.raises(ValueError, match="must be given together"):
        ours(tokens, cu_seq_lens_q=ends)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3"])
def test_a_decoder_made_bidirectional(name: str) -> None:
    config, cls = decoders()[name]
    config.is_causal = False
    assert_same(*built(config, cls), *padded_calls("right"))


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("name", DECODERS)
def test_generated_tokens_are_those_of_eager_attention(name: str, cache: str) -> None:
    eager, ours = built(*decoders()[name])
    tokens, mask, _ = padded_batch("left")
    given = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    if cache == "static":
        given |= {"cache_implementation": "static", "disable_compile": True}
    found, expected = (model.generate(tokens, **given) for model in (ours, eager))
    assert found.shape == (2, LENGTH + 12)
    assert torch.equal(found, expected)


def test_generation_by_beams() -> None:
    eager, ours = built(*decoders()["mistral"])
    tokens, mask, _ = padded_batch("left")
    given = {"attention_mask": mask, "max_new_tokens": 8, "num_beams": 3, "do_sample": False}
    assert torch.equal(ours.generate(tokens, **given), eager.generate(tokens, **given))


def bert(name: str = "Bert", **extra):
    plain = {k: v for k, v in SMALL.items() if k not in ("num_key_value_heads", "bos_token_id")}
    config = getattr(transformers, f"{name}Config")(**{**plain, **extra})
    return config, getattr(transformers, f"{name}ForMaskedLM")


@pytest.mark.parametrize("side", ["none", "right", "left"])
def test_an_encoder_equals_eager_attention(side: str) -> None:
    together, alone = padded_calls(side)

    def without_cache(calls):
        # An encoder knows no use_cache.
        return [functools.partial(_call_encoder, call) for call in calls]

    assert_same(*built(*bert()), without_cache(together), without_cache(alone))


def _call_encoder(call, model) -> Tensor:
    return call(lambda tokens, use_cache=False, **given: model(tokens, **given))


@pytest.mark.parametrize("side", ["none", "right"])
def test_an_encoder_with_windows_on_both_sides(side: str) -> None:
    layers = ["full_attention", "sliding_attention"]
    config, cls = bert("ModernBert", local_attention=6, layer_types=layers, cls_token_id=1)
    config.sep_token_id = config.bos_token_id = 1
    together, alone = padded_calls(side)
    assert_same(
        *built(config, cls),
        [functools.partial(_call_encoder, call) for call in together],
        [functools.partial(_call_encoder, call) for call in alone],
    )


SEQ2SEQ = {
    "vocab_size": 64,
    "d_model": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
LAYERS = {
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "init_std": 0.3,
}


def seq2seq(name: str):
    if name == "t5":
        config = transformers.T5Config(
            **SEQ2SEQ,
            d_kv=8,
            d_ff=48,
            num_layers=2,
            num_heads=4,
            relative_attention_num_buckets=8,
            relative_attention_max_distance=20,
        )
        return config, transformers.T5ForConditionalGeneration
    if name == "bart":
        config = transformers.BartConfig(**SEQ2SEQ, **LAYERS, max_position_embeddings=64)
        return config, transformers.BartForConditionalGeneration
    config = transformers.WhisperConfig(
        **SEQ2SEQ, **LAYERS, num_mel_bins=8, max_source_positions=20, max_target_positions=64
    )
    return config, transformers.WhisperForConditionalGeneration


@pytest.mark.parametrize("name", ["bart", "t5"])
def test_cross_attention_with_padding(name: str) -> None:
    tokens, mask, _ = padded_batch("right")
    answer = torch.randint(3, 64, (2, 9))

    def together(model) -> Tensor:
        given = {"attention_mask": mask, "decoder_input_ids": answer}
        return model(tokens, **given, use_cache=False).logits

    def apart(model) -> Tensor:
        found = [
            model(tokens[b, mask[b].bool()][None], decoder_input_ids=answer[b][None]).logits
            for b in range(2)
        ]
        return torch.cat(found)

    assert_same(*built(*seq2seq(name)), [together], [apart])


def test_cross_attention_without_a_mask() -> None:
    sound, answer = torch.randn(2, 8, 40), torch.randint(3, 64, (2, 9))

    def call(model) -> Tensor:
        return model(sound.to(model.dtype), decoder_input_ids=answer, use_cache=False).logits

    assert_same(*built(*seq2seq("whisper")), [call])


def test_a_position_bias_that_is_dropped_shows(monkeypatch) -> None:
    original = interface.segmented_attention

    def without(*inputs, bias=None, **given):
        return original(*inputs, bias=None if bias is None else bias * 0, **given)

    monkeypatch.setattr(interface, "segmented_attention", without)
    with pytest.raises(AssertionError, match="the result"):
        test_cross_attention_with_padding("t5")


@pytest.mark.parametrize("name", ["bart", "t5"])
def test_a_translation_is_that_of_eager_attention(name: str) -> None:
    eager, ours = built(*seq2seq(name))
    tokens, mask, _ = padded_batch("right")
    given = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False}
    assert torch.equal(ours.generate(tokens, **given), eager.generate(tokens, **given))


@pytest.mark.parametrize("kind", ["bool", "floating", "holes"])
def test_masks_that_the_caller_made(kind: str) -> None:
    eager, ours = built(*decoders()["llama"])
    tokens = torch.randint(3, 64, (2, LENGTH))
    allowed = (torch.rand(2, 1, LENGTH, LENGTH) > 0.5) | torch.eye(LENGTH, dtype=torch.bool)
    added = torch.where(allowed, torch.randn(2, 1, LENGTH, LENGTH), torch.finfo(torch.float32).min)
    if kind == "holes":
        given = {kind: (torch.arange(LENGTH) % 3 != 1).long().expand(2, -1) for kind in "ab"}
    elif kind == "floating":
        given = {"a": added, "b": added}
    else:  # eager attention takes no bool
        given = {"a": torch.where(allowed, 0.0, torch.finfo(torch.float32).min), "b": allowed}

    def call(model) -> Tensor:
        mask = given["b" if model is ours else "a"]
        mask = mask.to(model.dtype) if mask.dtype.is_floating_point else mask
        return model(tokens, attention_mask=mask, use_cache=False).logits

    assert_same(eager, ours, [call])


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing(use_reentrant: bool) -> None:
    _, ours = built(*decoders()["mistral"])
    tokens = torch.randint(3, 64, (2, LENGTH))

    def call(model) -> Tensor:
        return model(tokens, use_cache=False).logits

    weights = [torch.randn(2, LENGTH, 64)]
    plain = results(ours, [call], weights)
    ours.train()
    ours.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    for a, b in zip(results(ours, [call], weights), plain, strict=True):
        assert torch.equal(a, b)


def test_dropout_is_in_training_only_and_follows_the_seed() -> None:
    config, cls = decoders()["llama"]
    config.attention_dropout = 0.5
    eager, ours = built(config, cls)
    tokens = torch.randint(3, 64, (2, LENGTH))
    assert torch.allclose(ours(tokens).logits, eager(tokens).logits, atol=1e-4)
    ours.train()
    torch.manual_seed(1)
    first = ours(tokens).logits
    torch.manual_seed(1)
    again, other = ours(tokens).logits, ours(tokens).logits
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_model_is_switched_in_place() -> None:
    eager, _ = built(*decoders()["llama"])
    tokens = torch.randint(3, 64, (2, LENGTH))
    expected = eager(tokens).logits
    assert attention_for_transformers(eager) == "accel"
    assert eager.config._attn_implementation == "accel"
    assert torch.allclose(eager(tokens).logits, expected, atol=1e-4)


def test_a_model_that_computes_attention_itself_is_refused() -> None:
    """It would run its own attention without a word, or with a mask that it misreads."""
    config = transformers.XLNetConfig(vocab_size=64, d_model=32, n_layer=1, n_head=4, d_inner=48)
    model = transformers.XLNetModel(config)
    with pytest.raises(ValueError, match="XLNetModel computes attention on its own"):
        attention_for_transformers(model)
    for name, extra in (("Bloom", {"n_layer": 1}), ("Mpt", {"n_layers": 1})):
        config = getattr(transformers, f"{name}Config")(vocab_size=64, n_heads=4, **extra)
        model = getattr(transformers, f"{name}Model")._from_config(
            config, attn_implementation="accel"
        )
        with pytest.raises(accel.BackendError, match="computes attention itself"):
            model(torch.arange(5)[None])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"output_attentions": True}, "output_attentions=True asks for the .* probabilities"),
        ({"frobnicate": 3}, "passes frobnicate to attention"),
        ({"attention_mask": torch.ones(2, 1, 5, 5, dtype=torch.int64)}, "bool or added to scores"),
        ({"attention_mask": torch.ones(2, 1, 5, 4, dtype=torch.bool)}, "does not broadcast"),
    ],
)
def test_what_is_not_understood_is_named(given, message: str) -> None:
    _, ours = built(*decoders()["llama"])
    with pytest.raises((ValueError, TypeError), match=message):
        ours(torch.arange(10).view(2, 5), **given)


@pytest.mark.parametrize("name", ["", "flash_accel", "accel|x", "eager", "my-sdpa"])
def test_names_that_mean_something_already(name: str) -> None:
    with pytest.raises(ValueError, match="is empty or holds one of"):
        attention_for_transformers(name=name)


def test_a_backend_that_is_named_runs_or_raises() -> None:
    attention_for_transformers(name="accel-reference", backend="reference")
    attention_for_transformers(name="accel-wrong", backend="no-such")
    config, cls = decoders()["llama"]
    model = cls._from_config(config, attn_implementation="accel-reference")
    tokens = torch.arange(5)[None]
    model(tokens)
    model.set_attn_implementation("accel-wrong")
    with pytest.raises(ValueError, match="no-such"):
        model(tokens)


def test_without_transformers_the_error_names_the_extra() -> None:
    code = (
        "import sys; sys.modules['transformers'] = None\n"
        "import accel.attention.hugging_face.interface as i\n"
        "try: i.attention_for_transformers()\n"
        "except ModuleNotFoundError as e: assert 'accel-torch[transformers]' in str(e), e\n"
        "else: raise SystemExit('no error')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# The attention function itself.


class Module(torch.nn.Module):
    def __init__(self, is_causal: bool) -> None:
        super().__init__()
        self.is_causal = is_causal


def forward(module, query, key, value, mask=None, **given) -> Tensor:
    options = interface._Options(None, None)
    return interface._forward(module, query, key, value, mask, options=options, **given)[0]


def test_without_a_mask_the_module_says_whether_it_is_causal() -> None:
    q, k = torch.randn(1, 2, 6, 8), torch.randn(1, 2, 6, 8)
    for is_causal, mask in ((True, causal()), (False, None)):
        expected = accel.segmented_attention(q, k, k, mask=mask).transpose(1, 2)
        assert torch.equal(forward(Module(is_causal), q, k, k), expected)
        assert torch.equal(forward(Module(not is_causal), q, k, k, is_causal=is_causal), expected)
    full = accel.segmented_attention(q[:, :, :1], k, k).transpose(1, 2)
    assert torch.equal(forward(Module(True), q[:, :, :1], k, k), full)
    with pytest.raises(ValueError, match="where the queries stand is not known"):
        forward(Module(True), q[:, :, :2], k, k)


def test_without_a_mask_a_window_holds_its_query() -> None:
    q, k = torch.randn(1, 2, 6, 8), torch.randn(1, 2, 6, 8)
    for is_causal, mask in ((True, window(2, 0)), (False, window(2, 2))):
        expected = accel.segmented_attention(q, k, k, mask=mask).transpose(1, 2)
        assert torch.equal(forward(Module(is_causal), q, k, k, sliding_window=3), expected)


def test_a_mask_of_two_dimensions_is_padding() -> None:
    q, k = torch.randn(2, 2, 6, 8), torch.randn(2, 2, 6, 8)
    tokens = torch.ones(2, 6, dtype=torch.long)
    tokens[0, 4:] = 0
    mask = causal() & accel.attention.key_lengths([4, 6])
    expected = accel.segmented_attention(q, k, k, mask=mask).transpose(1, 2)
    assert torch.equal(forward(Module(True), q, k, k, tokens), expected)
    with pytest.raises(ValueError, match="there are 6 keys"):
        forward(Module(True), q, k, k, tokens[:, :5])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sliding_window": 3}, "asks for sliding_window=3, but its mask holds none"),
        ({"mask_size": (6, 5)}, "made for 6 queries and 5 keys"),
        ({"s_aux": torch.zeros(3)}, "a number for each of 2 heads"),
        ({"mask_dims": 3}, r"must be \[B, S\] or \[B, 1, T, S\]"),
    ],
)
def test_arguments_that_contradict_one_another(given, message: str) -> None:
    q = torch.randn(1, 2, 6, 8)
    mask = interface.structured_mask(1, *given.pop("mask_size", (6, 6)))
    if given.pop("mask_dims", 4) == 3:
        mask = torch.ones(1, 6, 6, dtype=torch.bool)
    with pytest.raises(ValueError, match=message):
        forward(Module(True), q, q, q, mask, **given)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_a_sink_is_one_more_key_without_a_value(dtype: torch.dtype) -> None:
    def formula(q, k, v, sink):
        scores = (q @ k.mT / 8**0.5).masked_fill(torch.ones(7, 7).triu(1).bool(), -torch.inf)
        more = torch.cat([scores, sink.view(1, -1, 1, 1).expand(2, -1, 7, 1)], dim=-1)
        return (more.softmax(-1)[..., :-1] @ v).transpose(1, 2)

    inputs = [torch.randn(2, 3, 7, 8).to(dtype) for _ in range(3)]
    accel.testing.assert_backward_stable(
        lambda q, k, v, sink: forward(Module(True), q, k, v, s_aux=sink),
        *inputs,
        torch.randn(3).to(dtype),
        reference=formula,
    )


def test_a_sink_of_a_row_that_sees_nothing() -> None:
    q = torch.randn(1, 2, 3, 8, requires_grad=True)
    sink = torch.zeros(2, requires_grad=True)
    mask = torch.ones(1, 1, 3, 3, dtype=torch.bool)
    mask[:, :, 1] = False
    out = forward(Module(False), q, q, q, mask, s_aux=sink)
    out.sum().backward()
    assert not out[:, 1].any()
    assert q.grad.isfinite().all()
    assert sink.grad.isfinite().all()


# Compiled code.


@pytest.mark.parametrize(("name", "padding"), [("mistral", "right"), ("gemma2", "left")])
def test_a_compiled_model_is_whole_and_the_same(name: str, padding: str) -> None:
    _, ours = built(*decoders()[name])
    tokens, mask, positions = padded_batch(padding)
    given = {"position_ids": positions, "attention_mask": mask, "use_cache": False}
    torch._dynamo.reset()
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    keep = mask.bool()
    outs = []
    for model in (compiled, ours):
        ours.zero_grad()
        out = model(tokens, **given).logits[keep]
        out.square().sum().backward()
        outs.append([out.detach(), *gradients_by_layer(ours)])
    truth = in_float64(ours)
    truth.zero_grad()
    exact = truth(tokens, **given).logits[keep]
    exact.square().sum().backward()
    floor = budgets.deviation(outs[1][0], exact)
    for a, r, t in zip(*outs, [exact, *gradients_by_layer(truth)], strict=True):
        assert_within_budget(a, r, t, floor=floor)


def test_masks_in_compiled_code_keep_their_structure() -> None:
    """With padding given; without, transformers looks for packed sequences in the positions."""
    found = []
    config = SimpleNamespace(sliding_window=5)

    def traced(tokens: Tensor, shown: Tensor, function, local_size) -> Tensor:
        mask = interface.structured_mask(
            2,
            LENGTH,
            LENGTH,
            mask_function=function,
            attention_mask=shown,
            local_size=local_size,
            config=config,
            allow_is_causal_skip=True,
        )
        found.append(mask)
        return tokens + 1

    tokens, shown, _ = padded_batch("left")
    torch._dynamo.reset()
    compiled = torch.compile(traced, backend="eager", fullgraph=True)
    compiled(tokens, shown.bool(), masking_utils.causal_mask_function, None)
    compiled(tokens, shown.bool(), masking_utils.sliding_window_causal_mask_function(5), 5)
    assert [str(mask) for mask in found] == [
        f"(causal('bottom_right') & Dense((2, 1, 1, {LENGTH})))",
        f"(window(4, 0, sinks=0, align='bottom_right') & Dense((2, 1, 1, {LENGTH})))",
    ]


def test_a_mask_made_before_goes_into_compiled_code() -> None:
    """As generation with a static cache makes them, where it compiles."""
    _, ours = built(*decoders()["mistral"])
    tokens, shown, _ = padded_batch("left")
    function = masking_utils.sliding_window_causal_mask_function(5)
    mask = interface.structured_mask(2, LENGTH, LENGTH, 0, 0, function, shown.bool(), local_size=5)
    torch._dynamo.reset()
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    given = {"attention_mask": mask, "use_cache": False}
    assert torch.allclose(compiled(tokens, **given).logits, ours(tokens, **given).logits, atol=1e-4)
