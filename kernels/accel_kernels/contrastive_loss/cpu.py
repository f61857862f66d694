"""The tiles on CPUs."""

from __future__ import annotations

from accel_kernels.contrastive_loss.tiles import Settings, passes

PASSES = passes(Settings(rows=512, columns=512))
"""Tiles that stay in a core's second-level cache, or nearly, in float32."""
