"""hpo: finds image classifiers that stay right when their input is perturbed."""

__version__ = "0.1.0"
PROTOCOL = 1
"""Raised when workers of an older version may not share a study with this one: what is stored, or how trials train."""
