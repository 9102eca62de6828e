"""Starting, supervising and stopping worker processes. Depends neither on Optuna nor on PyTorch."""
