"""Images, perturbations, networks, training, scoring. Knows PyTorch; knows nothing of Optuna or SQL."""
