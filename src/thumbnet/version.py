"""The version of thumbnet."""

__version__ = "0.1.0"
