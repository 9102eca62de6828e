"""Images, perturbations, networks, training, scoring. Depends on PyTorch, not on Optuna or SQL."""
