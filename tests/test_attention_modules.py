"""The multi-head attention module: torch's own, number for number."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import Tensor, nn

import accel
from accel.attention import causal, key_lengths, window
from accel.attention.modules import MultiheadAttention, replace_attention
from accel.testing import assert_backward_stable

WIDTH, HEADS, BATCH, QUERIES, KEYS = 24, 3, 2, 7, 11


def pair(device=None, **options) -> tuple[nn.MultiheadAttention, MultiheadAttention]:
    """Torch's module and ours with its state dict, biases other than zero."""
    theirs = nn.MultiheadAttention(WIDTH, HEADS, **options)
    for parameter in theirs.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter)
    own = MultiheadAttention(WIDTH, HEADS, **options)
    own.load_state_dict(theirs.state_dict())
    place = device.torch_device if device else "cpu"
    return theirs, own.to(place)


def inputs(*, queries=QUERIES, keys=KEYS, kdim=WIDTH, vdim=WIDTH, first=False) -> list[Tensor]:
    shapes = [(queries, BATCH, WIDTH), (keys, BATCH, kdim), (keys, BATCH, vdim)]
    made = [torch.randn(shape) for shape in shapes]
    return [tensor.transpose(0, 1) for tensor in made] if first else made


def assert_same(theirs: nn.Module, own: nn.Module, given: list[Tensor], names=(), **fixed) -> None:
    """Output and the gradient of inputs and parameters, against torch's module in float64."""

    def run(module: nn.Module, query, key, value, *rest: Tensor) -> Tensor:
        extra = dict(zip(names, rest, strict=False))
        parameters = dict(zip(dict(module.named_parameters()), rest[len(names) :], strict=True))
        call = {**extra, **fixed, "need_weights": False}
        return torch.func.functional_call(module, parameters, (query, key, value), call)[0]

    parameters = [parameter.detach() for parameter in own.parameters()]
    place = parameters[0].device
    assert_backward_stable(
        functools.partial(run, own),
        *(tensor.to(place) for tensor in given),
        *parameters,
        reference=functools.partial(run, copy.deepcopy(theirs).double().cpu()),
    )


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_it_is_torchs_module(batch_first: bool, bias: bool, device) -> None:
    theirs, own = pair(device, batch_first=batch_first, bias=bias)
    assert_same(theirs, own, inputs(first=batch_first))


@pytest.mark.parametrize(("kdim", "vdim"), [(10, 13), (WIDTH, 13), (10, WIDTH)])
def test_other_widths_of_key_and_value(kdim: int, vdim: int, device) -> None:
    theirs, own = pair(device, kdim=kdim, vdim=vdim)
    assert_same(theirs, own, inputs(kdim=kdim, vdim=vdim))


def test_the_same_seed_makes_the_same_parameters() -> None:
    for options in ({}, {"kdim": 10, "vdim": 13}, {"bias": False}):
        torch.manual_seed(3)
        theirs = nn.MultiheadAttention(WIDTH, HEADS, **options).state_dict()
        torch.manual_seed(3)
        own = MultiheadAttention(WIDTH, HEADS, **options).state_dict()
        assert list(own) == list(theirs)
        assert all(torch.equal(own[name], theirs[name]) for name in own)


def test_without_a_batch() -> None:
    theirs, own = pair()
    given = [tensor[:, 0] for tensor in inputs()]
    assert_same(theirs, own, given)
    padding = torch.arange(KEYS) >= 8
    out, weights = own(*given, padding)
    assert weights is None
    assert out.shape == (QUERIES, WIDTH)
    assert torch.allclose(out, theirs(*given, padding)[0], atol=1e-5)


@pytest.mark.parametrize("queries", [1, 63])
@pytest.mark.parametrize("keys", [1, 100])
def test_odd_sizes(queries: int, keys: int) -> None:
    assert_same(*pair(), inputs(queries=queries, keys=keys))


PADDINGS = {
    "right": torch.arange(KEYS) >= torch.tensor([[6], [11]]),
    "left": torch.arange(KEYS) < torch.tensor([[4], [0]]),
    "holes": torch.arange(KEYS).expand(2, -1) % 3 == 1,
    "nothing": torch.zeros(BATCH, KEYS, dtype=torch.bool),
}


@pytest.mark.parametrize("kind", PADDINGS)
@pytest.mark.parametrize("floating", [False, True])
def test_key_padding_is_true_where_a_key_is_not_seen(kind: str, floating: bool, device) -> None:
    padding = PADDINGS[kind]
    if floating:
        padding = torch.zeros(padding.shape).masked_fill(padding, -torch.inf)
    theirs, own = pair(device)
    own_padding = padding.to(device.torch_device)
    assert_same(
        Fixed(theirs, {"key_padding_mask": padding.double() if floating else padding}),
        Fixed(own, {"key_padding_mask": own_padding}),
        inputs(),
    )


class Fixed(nn.Module):
    """A module with some arguments given, so that a mask is not taken for an input."""

    def __init__(self, module: nn.Module, fixed) -> None:
        super().__init__()
        self.module, self.fixed = module, fixed

    def forward(self, *given: Tensor, **named):
        return self.module(*given, **{**named, **self.fixed})


@pytest.mark.parametrize("heads", [None, BATCH * HEADS])
@pytest.mark.parametrize("padded", [False, True])
def test_a_bool_attn_mask_is_true_where_a_key_is_not_seen(heads, padded: bool) -> None:
    theirs, own = pair()
    hidden = torch.rand((QUERIES, KEYS) if heads is None else (heads, QUERIES, KEYS)) > 0.6
    hidden[..., 0] = False
    fixed = {"attn_mask": hidden}
    if padded:
        fixed["key_padding_mask"] = PADDINGS["right"]
    assert_same(Fixed(theirs, fixed), Fixed(own, fixed), inputs())


def test_the_polarity_shows() -> None:
    """The control: the other way round is another result, as is the mask of the other module."""
    theirs, own = pair()
    hidden = torch.rand(QUERIES, KEYS) > 0.5
    hidden[:, 0], hidden[:, 1] = False, True
    given = inputs()
    expected = theirs(*given, attn_mask=hidden)[0]
    assert torch.allclose(own(*given, attn_mask=hidden)[0], expected, atol=1e-5)
    assert torch.allclose(own(*given, mask=~hidden)[0], expected, atol=1e-5)
    assert not torch.allclose(own(*given, attn_mask=~hidden)[0], expected, atol=1e-2)
    assert not torch.allclose(own(*given, mask=hidden)[0], expected, atol=1e-2)


@pytest.mark.parametrize("heads", [None, BATCH * HEADS])
def test_a_floating_attn_mask_is_added_and_learns(heads) -> None:
    shape = (QUERIES, KEYS) if heads is None else (heads, QUERIES, KEYS)
    theirs, own = pair()
    assert_same(theirs, own, [*inputs(), torch.randn(shape)], names=["attn_mask"])


def test_a_floating_key_padding_mask_is_added() -> None:
    theirs, own = pair()
    both = [torch.randn(QUERIES, KEYS), torch.randn(BATCH, KEYS)]
    assert_same(theirs, own, [*inputs(), *both], names=["attn_mask", "key_padding_mask"])


@pytest.mark.parametrize("hint", [None, "bool", "floating"])
def test_is_causal(hint) -> None:
    theirs, own = pair()
    later = torch.ones(KEYS, KEYS).triu(1).bool()
    if hint == "floating":
        given = nn.Transformer.generate_square_subsequent_mask(KEYS)
    else:
        given = None if hint is None else later
    assert_same(
        Fixed(theirs, {"attn_mask": later}),
        Fixed(own, {"attn_mask": given, "is_causal": True}),
        inputs(queries=KEYS),
    )


@pytest.mark.parametrize(
    "wrong",
    [
        torch.ones(KEYS, KEYS).triu(2).bool(),
        torch.zeros(KEYS, KEYS).masked_fill(torch.ones(KEYS, KEYS).triu(1).bool(), -torch.inf)
        + torch.eye(KEYS),
    ],
)
def test_a_hint_that_is_wrong_is_found_out(wrong: Tensor) -> None:
    _, own = pair()
    with pytest.raises(ValueError, match="attn_mask is not the causal mask"):
        own(*inputs(queries=KEYS), attn_mask=wrong, is_causal=True)


@pytest.mark.parametrize(
    ("mask", "hidden"),
    [
        (window(2, 0), lambda i, j: (j > i) | (j < i - 2)),
        (causal() & key_lengths([11, 4]), lambda i, j: j > i),
    ],
)
def test_structured_masks(mask, hidden) -> None:
    theirs, _ = pair()
    own = MultiheadAttention(WIDTH, HEADS, mask=mask)
    own.load_state_dict(theirs.state_dict())
    i, j = torch.arange(KEYS).unsqueeze(1), torch.arange(KEYS)
    fixed = {"attn_mask": hidden(i, j)}
    if "key_lengths" in mask.kinds():
        fixed["key_padding_mask"] = torch.arange(KEYS) >= torch.tensor([[11], [4]])
    assert_same(Fixed(theirs, fixed), Fixed(own, {}), inputs(queries=KEYS))
    plain = MultiheadAttention(WIDTH, HEADS)
    plain.load_state_dict(theirs.state_dict())
    given = inputs(queries=KEYS)
    assert torch.equal(plain(*given, mask=mask)[0], own(*given)[0])


def test_fewer_heads_of_key_and_value() -> None:
    """As torch's module with each key and value head written out for its group."""
    own = MultiheadAttention(WIDTH, 6, num_kv_heads=2)
    assert own.in_proj_weight.shape == (WIDTH + 2 * 8, WIDTH)
    assert own.in_proj_bias.shape == (WIDTH + 2 * 8,)
    nn.init.normal_(own.in_proj_bias)
    theirs = nn.MultiheadAttention(WIDTH, 6)
    state = own.state_dict()
    for name in ("in_proj_weight", "in_proj_bias"):
        q, k, v = state[name].split([WIDTH, 8, 8])
        wide = [t.unflatten(0, (2, 4)).repeat_interleave(3, dim=0).flatten(0, 1) for t in (k, v)]
        state[name] = torch.cat([q, *wide])
    theirs.load_state_dict(state)
    given = inputs()
    actual, plain = own(*given)[0], theirs(*given)[0]
    truth = theirs.double()(*(tensor.double() for tensor in given))[0]
    accel.testing.assert_within_budget(actual, plain, truth)


def test_a_row_that_sees_nothing_gives_the_bias_of_the_output() -> None:
    theirs, own = pair()
    hidden = torch.zeros(QUERIES, KEYS, dtype=torch.bool)
    hidden[3] = True
    given = inputs()
    out = own(*given, attn_mask=hidden)[0]
    assert torch.equal(out[3], own.out_proj.bias.expand(BATCH, -1))
    assert out.isfinite().all()
    assert theirs(*given, attn_mask=hidden, need_weights=True)[0][3].isnan().all()


def test_dropout_is_in_training_only() -> None:
    own = MultiheadAttention(WIDTH, HEADS, dropout=0.5)
    given = inputs()
    own.eval()
    assert torch.equal(own(*given)[0], own(*given)[0])
    own.train()
    torch.manual_seed(0)
    first = own(*given)[0]
    assert not torch.equal(first, own(*given)[0])
    torch.manual_seed(0)
    assert torch.equal(first, own(*given)[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"add_bias_kv": True}, "add_bias_kv=True is not supported"),
        ({"add_zero_attn": True}, "add_zero_attn=True is not supported"),
        ({"num_heads": 5}, "must be a multiple of num_heads 5"),
        ({"num_heads": 0}, "must be a multiple of num_heads 0"),
        ({"num_kv_heads": 2}, "must be a multiple of num_kv_heads 2"),
    ],
)
def test_what_the_module_cannot_be(options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultiheadAttention(**{"embed_dim": WIDTH, "num_heads": HEADS, **options})


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"need_weights": True}, ValueError, "need_weights=True asks for .* torch.nn.Multi"),
        ({"is_causal": True}, ValueError, r"causal\('top_left'\)"),
        ({"attn_mask": torch.zeros(7, 11).long()}, TypeError, "attn_mask must be bool"),
        ({"key_padding_mask": torch.zeros(2, 11).byte()}, TypeError, "padding_mask must be bool"),
        ({"attn_mask": torch.zeros(7, 7)}, ValueError, r"must be \[7, 11\] or \[6, 7, 11\]"),
        ({"key_padding_mask": torch.zeros(2, 7)}, ValueError, r"must be \[2, 11\]"),
        ({"mask": torch.zeros(7, 11)}, TypeError, "a mask tensor is bool"),
    ],
)
def test_arguments_that_do_not_fit(given, error, message: str) -> None:
    _, own = pair()
    with pytest.raises(error, match=message):
        own(*inputs(), **given)


def test_inputs_that_do_not_fit() -> None:
    _, own = pair()
    query, key, value = inputs()
    with pytest.raises(ValueError, match="must all have three dimensions, or two"):
        own(query[:, 0], key, value)
    with pytest.raises(ValueError, match="value must be 24 wide, not 23"):
        own(query, key, value[..., 1:])


def test_a_backend_that_is_named_runs_or_raises() -> None:
    MultiheadAttention(WIDTH, HEADS, backend="reference")(*inputs())
    with pytest.raises(ValueError, match="no-such"):
        MultiheadAttention(WIDTH, HEADS, backend="no-such")(*inputs())


def transformer() -> nn.Transformer:
    torch.manual_seed(0)
    layers = {"num_encoder_layers": 2, "num_decoder_layers": 2}
    return nn.Transformer(WIDTH, 2, **layers, dim_feedforward=32, dropout=0.0, batch_first=True)


@pytest.mark.parametrize("training", [False, True])
def test_every_attention_of_a_module_is_replaced(training: bool) -> None:
    theirs, own = transformer().train(training), transformer().train(training)
    parameters = list(own.parameters())
    assert replace_attention(own) == 6
    assert not any(isinstance(m, nn.MultiheadAttention) for m in own.modules())
    assert {id(p) for p in own.parameters()} == {id(p) for p in parameters}
    assert list(own.state_dict()) == list(theirs.state_dict())
    assert all(module.training is training for module in own.modules())

    source, target = torch.randn(BATCH, KEYS, WIDTH), torch.randn(BATCH, QUERIES, WIDTH)
    call = {
        "src_key_padding_mask": PADDINGS["right"],
        "memory_key_padding_mask": PADDINGS["right"],
        "tgt_mask": torch.ones(QUERIES, QUERIES).triu(1).bool(),
        "tgt_is_causal": True,
    }
    outs = []
    for module in (own, theirs, transformer().train(training).double()):
        dtype = next(module.parameters()).dtype
        # With gradients on, torch's encoder takes no path around its attention modules.
        out = module(source.to(dtype), target.to(dtype), **call)
        out.square().sum().backward()
        outs.append([out.detach(), *(p.grad for p in module.parameters())])
    for actual, plain, truth in zip(*outs, strict=True):
        floor = accel.testing.assertions.budgets.deviation(outs[1][0], outs[2][0])
        accel.testing.assert_within_budget(actual, plain, truth, floor=floor)


@pytest.mark.parametrize("nested", [False, True])
def test_the_replacement_is_what_runs(nested: bool, monkeypatch) -> None:
    """Torch's encoder has a fused path around its attention in inference; it must not take it."""
    from accel.attention import modules

    calls = []
    original = modules.segmented_attention
    monkeypatch.setattr(
        modules, "segmented_attention", lambda *a, **k: calls.append(1) or original(*a, **k)
    )
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 32, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested).eval()
    x, padding = torch.randn(BATCH, KEYS, WIDTH), PADDINGS["right"]
    expected = encoder(x, src_key_padding_mask=padding)  # with gradients on: no path around
    with torch.no_grad():
        replace_attention(encoder)
        found = encoder(x, src_key_padding_mask=padding)
    assert len(calls) == 2
    assert torch.allclose(found, expected, atol=1e-5)


def test_what_cannot_be_replaced_leaves_everything() -> None:
    model = nn.ModuleList(
        [nn.MultiheadAttention(8, 2), nn.MultiheadAttention(8, 2, add_bias_kv=True)]
    )
    with pytest.raises(ValueError, match="add_bias_kv=True"):
        replace_attention(model)
    assert all(isinstance(child, nn.MultiheadAttention) for child in model)
