"""Segmented attention in the models of Hugging Face's transformers (see `interface`)."""
