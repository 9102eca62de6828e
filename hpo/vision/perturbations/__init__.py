"""Perturbations, a file each: `gaussian-noise` is GaussianNoise in gaussian_noise.py. The contract is hpo.Perturbation.

They may import hpo.doors.perturbation and, within `apply`, hpo.vision.random_bits and PyTorch.
"""
