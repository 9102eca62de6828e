"""hpo: finds image classifiers that stay right when their input is perturbed."""

__version__ = "0.1.0"
