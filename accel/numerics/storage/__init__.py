"""Recordings on the disk: what they say, how they are written, how they are read and checked."""
