"""The tiles on Ascend NPUs."""

from __future__ import annotations

from accel_kernels.contrastive_loss.tiles import Settings, passes

PASSES = passes(Settings(rows=2048, columns=4096, has_float64=False))
"""Tiles of 32 MiB in float32: few launches, and most of a tile stays in the second-level cache."""
