"""Conformance of backends, and assertions for tests; shipped, so that any machine can run them."""

from accel.testing.assertions import assert_within_budget as assert_within_budget
from accel.testing.checks import Check as Check
from accel.testing.stability import assert_backward_stable as assert_backward_stable
from accel.testing.suite import conformance as conformance

__all__ = ["Check", "assert_backward_stable", "assert_within_budget", "conformance"]
