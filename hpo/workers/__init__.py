"""Starting, supervising and stopping workers, on this machine or on a Ray cluster. Depends neither on Optuna nor on
PyTorch.
"""
