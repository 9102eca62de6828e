"""Peer: a plain Optuna script, after Optuna's own PyTorch examples: TPE, the median pruner, one trial after the other.

    plain_optuna.py IMAGES SECONDS SEED EPOCHS TRACE

TRACE: a file of JSON lines, one a report.
"""

import sys
from pathlib import Path

import optuna
from fine_tuning import BATCH_SIZES, train
from trace_file import note


def main(folder: Path, seconds: float, seed: int, epochs: int, trace: Path) -> None:
    def objective(trial: optuna.Trial) -> float:
        config = {
            "batch_size": trial.suggest_categorical("batch_size", BATCH_SIZES),
            "learning_rate": trial.suggest_float("learning_rate", 1e-3, 1e-1, log=True),
            "frozen_layers": trial.suggest_int("frozen_layers", 0, 9),
            "augmentation_strength": trial.suggest_float("augmentation_strength", 0.0, 1.0),
        }
        for epoch, measured in enumerate(train(config, folder, epochs, loader_workers=2, seed=seed), 1):
            note(trace, trial.number, epoch, measured, config)
            trial.report(measured["score"], epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return measured["score"]

    study = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed), pruner=optuna.pruners.MedianPruner()
    )
    study.optimize(objective, timeout=seconds)


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]))
