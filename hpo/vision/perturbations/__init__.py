"""Perturbations, one per file: `gaussian-noise` is GaussianNoise in gaussian_noise.py, a subclass of hpo.Perturbation.

They may import hpo.doors.perturbation and, within `apply`, hpo.vision.random_bits and PyTorch.
"""
