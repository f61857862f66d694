"""Batches larger than memory: embeddings cached, encoders run twice."""
