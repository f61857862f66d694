"""The tiles on accelerators that have no kernel of their own."""

from __future__ import annotations

from accel_kernels.contrastive_loss.tiles import Settings, passes

PASSES = passes(Settings(rows=2048, columns=4096))
"""Tiles of 32 MiB in float32: large enough to fill a device, and few launches."""
