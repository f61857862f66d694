"""Watching a run: every operator, module call and gradient, without changing a bit of it."""
