"""Starting, tending and stopping worker processes on a machine. Knows neither Optuna nor PyTorch."""
