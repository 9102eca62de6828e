"""The search: workers, samplers, ASHA. Knows Optuna and SQL; never imports PyTorch, and knows no word of vision."""
