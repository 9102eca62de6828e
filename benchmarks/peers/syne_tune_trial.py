"""One trial of syne_tune_asha.py: Syne Tune starts it as a process of its own."""

import argparse
import os
from pathlib import Path

from fine_tuning import train
from syne_tune import Reporter
from trace_file import note

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch_size", type=int)
    parser.add_argument("--learning_rate", type=float)
    parser.add_argument("--frozen_layers", type=int)
    parser.add_argument("--augmentation_strength", type=float)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--trace", type=Path)
    given, _ = parser.parse_known_args()
    config = {
        "batch_size": given.batch_size,
        "learning_rate": given.learning_rate,
        "frozen_layers": given.frozen_layers,
        "augmentation_strength": given.augmentation_strength,
    }
    reporter = Reporter()
    for epoch, measured in enumerate(train(config, given.folder, given.epochs, loader_workers=1, seed=given.seed), 1):
        note(given.trace, os.getpid(), epoch, measured, config)
        reporter(epoch=epoch, score=measured["score"])
