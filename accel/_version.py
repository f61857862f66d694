"""The version, readable without torch and without installed metadata."""

__version__ = "0.1.0"
