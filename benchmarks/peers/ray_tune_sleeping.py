"""Peer: Ray Tune with its Optuna search on a cluster, trials that sleep a second and report twice.

    ray_tune_sleeping.py ADDRESS TRIALS MAX_FAILURES FOLDER

Prints a JSON object: trials that ended with a result, and those with an error.
"""

import json
import sys
import time

import ray
from ray import tune
from ray.tune.search.optuna import OptunaSearch


def sleeping(config: dict) -> None:
    for step in (1, 2):
        time.sleep(0.5)
        tune.report({"score": config["x"] * step})


def main(address: str, trials: int, max_failures: int, folder: str) -> None:
    ray.init(address, log_to_driver=False)
    tuner = tune.Tuner(
        tune.with_resources(sleeping, {"cpu": 1}),
        param_space={"x": tune.uniform(0.0, 1.0)},
        tune_config=tune.TuneConfig(metric="score", mode="max", search_alg=OptunaSearch(seed=0), num_samples=trials),
        run_config=tune.RunConfig(
            storage_path=folder, verbose=0, failure_config=tune.FailureConfig(max_failures=max_failures)
        ),
    )
    found = tuner.fit()
    complete = sum(not each.error and each.metrics.get("training_iteration") == 2 for each in found)
    print(json.dumps({"trials": len(found), "complete": complete, "errors": found.num_errors}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
