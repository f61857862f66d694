"""The masks of transformers, as structure: the same as its own tensors."""

from __future__ import annotations

import logging

import pytest
import torch

import accel
from accel.attention import window
from accel.attention.hugging_face import interface, masks
from accel.attention.hugging_face import structured_mask as lazy
from accel.attention.hugging_face.structured_mask import StructuredMask
from accel_kernels.masks import Dense, RowIntervals

masking_utils = pytest.importorskip(
    "transformers.masking_utils",
    reason="transformers is not installed: pip install 'accel-torch[transformers]'",
)

CAUSAL = masking_utils.causal_mask_function
SLIDING = masking_utils.sliding_window_causal_mask_function
BOTH_SIDES = masking_utils.sliding_window_bidirectional_mask_function
PADDING = {
    "none": None,
    "all": torch.ones(2, 40, dtype=torch.bool),
    "short": torch.ones(2, 3, dtype=torch.bool),
    "right": torch.arange(40) < torch.tensor([[5], [0]]),
    "left": torch.arange(40) >= torch.tensor([[3], [0]]),
    "both": (torch.arange(40) >= 2) & (torch.arange(40) < torch.tensor([[6], [9]])),
    "holes": torch.arange(40).expand(2, -1) % 3 != 1,
}
GRIDS = [(7, 7, 0, 0), (1, 7, 6, 0), (3, 9, 6, 0), (5, 12, 0, 0), (1, 5, 11, 7), (4, 9, 8, 3)]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("padding", PADDING)
@pytest.mark.parametrize(
    "function",
    [
        CAUSAL,
        masking_utils.bidirectional_mask_function,
        SLIDING(1),
        SLIDING(3),
        BOTH_SIDES(2),
        masking_utils.chunked_causal_mask_function(4, torch.tensor([0, 3])),
        masking_utils.or_masks(SLIDING(2), lambda b, h, q, k: k == 0),
        masking_utils.or_masks(CAUSAL, masking_utils.sliding_window_bidirectional_overlay(2)),
    ],
    ids=lambda f: f.__qualname__,
)
def test_a_mask_is_that_of_transformers(function, padding: str, grid, caplog) -> None:
    t, s, q0, k0 = grid
    given = {
        "batch_size": 2,
        "q_length": t,
        "kv_length": s,
        "q_offset": q0,
        "kv_offset": k0,
        "mask_function": function,
        "attention_mask": PADDING[padding],
    }
    found = interface.structured_mask(**given)
    expected = masking_utils.sdpa_mask(**given, allow_is_causal_skip=False)
    assert isinstance(found, StructuredMask)
    assert found.shape == expected.shape == (2, 1, t, s)
    assert torch.equal(found.dense(), expected)
    assert not caplog.records
    tensor = interface.structured_mask(**{**given, "q_offset": torch.tensor(q0)})
    assert torch.equal(tensor.dense(), expected)


@pytest.mark.parametrize(
    ("function", "padding", "kind"),
    [
        (CAUSAL, "none", "causal('bottom_right')"),
        (CAUSAL, "all", "causal('bottom_right')"),
        (SLIDING(3), "none", "window(2, 0, sinks=0, align='bottom_right')"),
        (BOTH_SIDES(3), "none", "window(3, 3, sinks=0, align='bottom_right')"),
        (CAUSAL, "right", "(causal('bottom_right') & key_lengths((5, 0)))"),
        (SLIDING(3), "left", "RowIntervals((1, 2, 2, 40))"),
        (masking_utils.bidirectional_mask_function, "none", "None"),
    ],
)
def test_the_structure_is_kept(function, padding: str, kind: str) -> None:
    found = interface.structured_mask(2, 40, 40, 0, 0, function, PADDING[padding])
    assert str(found.mask) == kind


def test_a_mask_of_many_tokens_takes_a_few_numbers_a_row() -> None:
    length = 30_000  # 900 MB as a tensor
    padding = torch.arange(length) >= torch.tensor([[7], [0]])
    found = interface.structured_mask(2, length, length, 0, 0, SLIDING(512), padding)
    assert isinstance(found.mask, RowIntervals)
    assert found.mask.bounds.numel() == 2 * 2 * length


def test_a_name_that_means_something_else_is_found_out(monkeypatch, caplog) -> None:
    """As another version of transformers might have it: the window without the query's place."""
    monkeypatch.setitem(
        masks._KNOWN, "sliding_window_overlay", lambda grid, sliding_window: window(3, None)
    )
    found = interface.structured_mask(1, 9, 9, 0, 0, SLIDING(3))
    expected = masking_utils.sdpa_mask(1, 9, 9, 0, 0, SLIDING(3), allow_is_causal_skip=False)
    assert torch.equal(found.dense(), expected)
    assert "is not what it was" in caplog.text


def test_a_mask_of_many_ranges_is_kept_dense_and_logged(caplog) -> None:
    def every_other(b, h, q, k):
        return (k - q) % 2 == 0

    found = interface.structured_mask(1, 30, 30, 0, 0, every_other)
    expected = masking_utils.sdpa_mask(1, 30, 30, 0, 0, every_other, allow_is_causal_skip=False)
    assert isinstance(found.mask, Dense)
    assert torch.equal(found.dense(), expected)
    assert "up to 15 separate ranges" in caplog.text


def test_values_are_read_a_band_at_a_time(monkeypatch) -> None:
    monkeypatch.setattr(masks, "_BAND", 100)  # 3 rows
    rule = masking_utils.or_masks(SLIDING(2), lambda b, h, q, k: (k < 4) & (k != q % 3))
    found = interface.structured_mask(1, 31, 31, 0, 0, rule)
    expected = masking_utils.sdpa_mask(1, 31, 31, 0, 0, rule, allow_is_causal_skip=False)
    assert isinstance(found.mask, RowIntervals)
    assert torch.equal(found.dense(), expected)


def test_a_mask_that_is_read_is_written_out_and_logged_once(monkeypatch, caplog) -> None:
    monkeypatch.setattr(lazy, "_warned", False)
    found = interface.structured_mask(2, 5, 7, 2, 0, CAUSAL, PADDING["left"])
    dense = found.dense()
    for kept in (found[:, :, :, :7], found[:], found.detach(), found.to("cpu"), found.clone()):
        assert isinstance(kept, StructuredMask)
        assert torch.equal(kept.dense(), dense)
    assert not caplog.records
    with caplog.at_level(logging.WARNING, "accel"):
        assert torch.equal(found[:, :, 1:, :3], dense[:, :, 1:, :3])
        assert torch.equal(~found, ~dense)
        assert torch.equal(torch.where(found, 1.0, 2.0), torch.where(dense, 1.0, 2.0))
        assert torch.equal(found & dense, dense)
    assert len(caplog.records) == 1
    assert "quadratic in memory" in caplog.text
    for wrong in (
        lambda: torch.zeros(5, 7) + found,
        lambda: found + torch.zeros(5, 7),
        lambda: found.float(),
        lambda: torch.zeros(5, 7).masked_fill(found, 1.0),
    ):
        with pytest.raises(accel.BackendError, match="computes attention itself"):
            wrong()
