"""Kernels of Accel: implementations and what they share. Knows torch; never imports accel."""
