"""Conformance of backends, and assertions for tests; shipped, so that any machine can run them."""

from accel.testing.assertions import assert_within_budget as assert_within_budget

__all__ = ["assert_within_budget"]
