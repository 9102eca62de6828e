"""Peer: Syne Tune with ASHA on its local backend, after its README; two trials at once, a thread each.

    syne_tune_asha.py IMAGES SECONDS SEED EPOCHS TRACE

TRACE: a file of JSON lines, one a report.
"""

import os
import sys
from pathlib import Path

from fine_tuning import BATCH_SIZES
from syne_tune import StoppingCriterion, Tuner
from syne_tune.backend import LocalBackend
from syne_tune.config_space import choice, loguniform, randint, uniform
from syne_tune.optimizer.baselines import ASHA


def main(folder: Path, seconds: float, seed: int, epochs: int, trace: Path) -> None:
    space = {
        "batch_size": choice(BATCH_SIZES),
        "learning_rate": loguniform(1e-3, 1e-1),
        "frozen_layers": randint(0, 9),
        "augmentation_strength": uniform(0.0, 1.0),
        "folder": str(folder),
        "epochs": epochs,
        "seed": seed,
        "trace": str(trace),
    }
    os.environ["SYNETUNE_FOLDER"] = str(trace.parent)  # else in the home folder
    scheduler = ASHA(
        config_space=space, metric="score", time_attr="epoch", max_t=epochs, do_minimize=False, random_seed=seed
    )
    Tuner(
        trial_backend=LocalBackend(entry_point=str(Path(__file__).parent / "syne_tune_trial.py")),
        scheduler=scheduler,
        stop_criterion=StoppingCriterion(max_wallclock_time=seconds),
        n_workers=2,
    ).run()


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]))
