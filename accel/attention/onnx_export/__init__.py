"""Segmented attention in exported ONNX models (see `translations`)."""
