"""Which sampler and which kind of ASHA find a good configuration soonest: whole searches, played in seconds.

    python benchmarks/replay.py --seeds 20

A model of the trainings in `results/curves.jsonl` (a Gaussian process for each epoch, and the noise that it leaves)
stands in for the training; database, worker, sampler and rungs are the real ones. One worker, 20 minutes of a clock
that only the model's epochs move. The model is smooth where the truth may not be, which suits a sampler that is a
Gaussian process itself (`--surrogate forest` is a model that is not): it ranks ways of searching, and says nothing
about how good a configuration really is.
"""

import argparse
import contextlib
import hashlib
import statistics
import tempfile
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import optuna
from curves import read_results
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from time_to_target import STUDY

from hpo.artifacts import Artifacts
from hpo.doors.objective import Measurement, Objective, Trial
from hpo.search import samplers
from hpo.search.sql import rungs
from hpo.search.sql.storage import create_database
from hpo.search.sql.submitting import submit
from hpo.search.sql.trials_in_memory import with_estimates
from hpo.search.sql.url import parse_url
from hpo.search.worker import work
from hpo.study_file.reading import load_spec
from hpo.study_file.spec import Spec

TWO_THREADS = 0.56
"""What a worker with both cores needs of the time of one with a single thread."""
CHECKPOINTS_MIN = (2, 5, 10, 20)


def features(params: dict[str, Any]) -> list[float]:
    """Each 0 to 1."""
    return [
        (np.log2(params["batch_size"]) - 5) / 4,
        (np.log10(params["learning_rate"]) + 3) / 2,
        params["frozen_layers"] / 9,
        params["augmentation_strength"],
    ]


class Model:
    """Scores by epoch, and seconds an epoch, of any configuration."""

    def __init__(self, surrogate: str) -> None:
        lines = [line for line in read_results() if line["training"] == "all"]
        x = np.array([features(line["params"]) for line in lines])
        self.epochs = len(lines[0]["scores"])
        kernel = ConstantKernel(1.0) * RBF([1.0] * 4, (0.1, 20)) + WhiteKernel(0.03, (0.01, 1))
        self.scores, self.noise = [], []
        for epoch in range(self.epochs):
            y = [line["scores"][min(epoch, len(line["scores"]) - 1)] for line in lines]
            smooth = GaussianProcessRegressor(kernel, normalize_y=True, n_restarts_optimizer=3, random_state=0).fit(
                x, y
            )
            self.noise.append(float(np.sqrt(smooth.kernel_.k2.noise_level) * smooth._y_train_std))
            self.scores.append(ExtraTreesRegressor(200, random_state=0).fit(x, y) if surrogate == "forest" else smooth)
        seconds = [line["cpu_seconds"] * TWO_THREADS / self.epochs for line in lines]
        self.cost = GaussianProcessRegressor(kernel, normalize_y=True).fit(x, seconds)

    def curve(self, params: dict[str, Any], seed: int) -> list[float]:
        """Half of the noise is the training's own, the same in all its epochs; the other half each epoch's."""
        digest = hashlib.sha256(f"{params}{seed}".encode()).digest()
        generator = np.random.default_rng(list(digest))
        noise = (generator.normal() + generator.normal(size=self.epochs)) * np.array(self.noise) / np.sqrt(2)
        return [float(model.predict([features(params)])[0]) + n for model, n in zip(self.scores, noise, strict=True)]

    def secs_per_epoch(self, params: dict[str, Any]) -> float:
        return float(self.cost.predict([features(params)])[0])


class Played(Objective):
    """The model's curve, and a clock. A checkpoint is the number of its last epoch."""

    def __init__(self, model: Model, seed: int, seconds: float) -> None:
        self.model, self.seed, self.seconds = model, seed, seconds
        self.clock = 0.0
        self.seen: list[tuple[float, int, float]] = []

    def fingerprints(self) -> dict[str, str]:
        return {"images": "played", "weights": "played"}

    def run(self, trial: Trial) -> Iterator[Measurement]:
        done = int(trial.checkpoint or b"0")
        for step, score in list(enumerate(self.model.curve(dict(trial.params), self.seed), 1))[done:]:
            self.clock += self.model.secs_per_epoch(dict(trial.params))
            if self.clock > self.seconds:
                raise KeyboardInterrupt
            self.seen.append((self.clock, trial.number, score))
            yield Measurement(step, score, {"clean": score}, checkpoint=str(step).encode())


def play(model: Model, spec: Spec, seconds: float) -> Played:
    played = Played(model, spec.seed, seconds)
    with tempfile.TemporaryDirectory() as folder:
        engine = create_database(parse_url(f"sqlite:///{folder}/hpo.db"))
        submit(engine, spec)
        with contextlib.suppress(KeyboardInterrupt):
            store = Artifacts(folder)
            work(engine, [spec.name], lambda spec, store: played, "replay", lambda text: None, artifacts=store)
        engine.dispose()
    return played


def variants() -> dict[str, tuple[list[str], Callable[[], None]]]:
    """Settings, and what is changed in the code for it."""

    usual = samplers.STARTUP_TRIALS

    def change(startup: int | None = None, paused: int = rungs.MAX_PAUSED, estimate: bool = True) -> Callable[[], None]:
        def apply() -> None:
            samplers.STARTUP_TRIALS = {kind: startup or trials for kind, trials in usual.items()}
            samplers.with_estimates = with_estimates if estimate else lambda study, current: study
            rungs.MAX_PAUSED = paused

        return apply

    return {
        "as it is": ([], change()),
        "gp after 10 random trials": ([], change(startup=10)),
        "gp learns from complete trials only": ([], change(estimate=False)),
        "tpe": (["sampler.name=tpe"], change()),
        "tpe after 4 random trials": (["sampler.name=tpe"], change(startup=4)),
        "tpe, Optuna's own order of pruned": (["sampler.name=tpe"], change(estimate=False)),
        "random": (["sampler.name=random"], change()),
        "rung at epoch 1": (["pruner.min_epochs=1"], change()),
        "no pruning": (["pruner.name=none"], change()),
        "a half goes on": (["pruner.reduction_factor=2"], change()),
        "a quarter goes on": (["pruner.reduction_factor=4"], change()),
        "what is not among the best is stopped": ([], change(paused=0)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--surrogate", choices=["gp", "forest"], default="gp", help="what stands in for training")
    parser.add_argument("--only", help="variants whose name holds this")
    given = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")  # of scikit-learn, about the bounds of its kernels
    model = Model(given.surrogate)
    print(f"noise {[round(n, 4) for n in model.noise]}; medians over {given.seeds} seeds of the best score after")
    print(f"{'':38}" + "".join(f"{minutes:>7} min" for minutes in CHECKPOINTS_MIN) + f"{'trials':>8}")
    for name, (settings, apply) in variants().items():
        if given.only and given.only not in name:
            continue
        apply()
        bests, counts = [], []
        for seed in range(1000, 1000 + given.seeds):
            changes = [*settings, f"seed={seed}", "model.weights=none", "data.name=digits"]
            played = play(model, load_spec(STUDY, changes), given.minutes * 60)
            bests.append([max((s for t, _, s in played.seen if t <= 60 * m), default=0.0) for m in CHECKPOINTS_MIN])
            counts.append(len({number for _, number, _ in played.seen}))
        medians = [statistics.median(column) for column in zip(*bests, strict=True)]
        print(f"{name:38}" + "".join(f"{m:11.4f}" for m in medians) + f"{statistics.median(counts):8.0f}", flush=True)


if __name__ == "__main__":
    main()
