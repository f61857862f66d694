"""Losses over the batch of all ranks."""
