"""Our own kernel in Triton; `kernel` is what dispatch loads, and imports Triton."""
