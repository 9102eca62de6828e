"""The search: workers, samplers, ASHA. Uses Optuna and SQL; never imports PyTorch, and knows nothing of vision."""
