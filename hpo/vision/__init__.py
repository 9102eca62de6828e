"""Images, perturbations, network, training, evaluation. Knows PyTorch; knows nothing of Optuna or SQL."""
