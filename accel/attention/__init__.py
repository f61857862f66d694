"""Exact attention whose memory grows linearly, behind one contract on every backend."""

from accel.attention.api import segmented_attention as segmented_attention
from accel.attention.state import AttentionState as AttentionState

__all__ = ["AttentionState", "segmented_attention"]
