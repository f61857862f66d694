"""Conformance of backends, and assertions for tests; shipped, so that any machine can run them."""

from accel.testing.assertions import assert_within_budget as assert_within_budget
from accel.testing.suite import Check as Check
from accel.testing.suite import conformance as conformance

__all__ = ["Check", "assert_within_budget", "conformance"]
