"""Peer: Ray Tune with its Optuna search and ASHA, after Ray's own PyTorch and Optuna examples; two trials at once.

    ray_tune.py IMAGES SECONDS SEED EPOCHS TRACE

TRACE: a file of JSON lines, one a report.
"""

import sys
from pathlib import Path

import ray
from fine_tuning import BATCH_SIZES, train
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch
from trace_file import note


def trainable(config: dict, folder: Path, seed: int, epochs: int, trace: Path) -> None:
    number = tune.get_context().get_trial_id()
    for epoch, measured in enumerate(train(config, folder, epochs, loader_workers=1, seed=seed), 1):
        note(trace, number, epoch, measured, config)
        tune.report(measured)


def main(folder: Path, seconds: float, seed: int, epochs: int, trace: Path) -> None:
    # workers of Ray do not find the modules that lie beside this script by themselves
    ray.init(num_cpus=2, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}})
    space = {
        "batch_size": tune.choice(BATCH_SIZES),
        "learning_rate": tune.loguniform(1e-3, 1e-1),
        "frozen_layers": tune.randint(0, 10),
        "augmentation_strength": tune.uniform(0.0, 1.0),
    }
    tuner = tune.Tuner(
        tune.with_parameters(trainable, folder=folder, seed=seed, epochs=epochs, trace=trace),
        param_space=space,
        tune_config=tune.TuneConfig(
            metric="score",
            mode="max",
            search_alg=OptunaSearch(seed=seed),
            scheduler=ASHAScheduler(max_t=epochs),
            num_samples=-1,
            time_budget_s=seconds,
        ),
        run_config=tune.RunConfig(storage_path=str(trace.parent / f"{trace.stem}-ray"), verbose=1),
    )
    tuner.fit()


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]))
