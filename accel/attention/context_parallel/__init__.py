"""Attention over a sequence that several devices share (see `api`)."""
