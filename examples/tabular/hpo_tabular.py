"""The objective `noisy-tabular`: a linear classifier of tables that stays right when its features are noisy.

A trial trains on scikit-learn's bundled breast-cancer table, one pass over the training rows a step, and is scored on
rows that it has not seen: as they are ("clean") and with Gaussian noise on every standardised feature ("noise").
"""

import hashlib
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

import hpo

if TYPE_CHECKING:
    from sklearn.linear_model import SGDClassifier


class NoisyTabular(hpo.Objective):
    """Score: the mean of the accuracies on clean and on noisy rows."""

    class Settings(hpo.Section):
        """[objective] of the study file, beside name and steps."""

        noise: Annotated[float, Field(ge=0)] = 0.5
        """Standard deviation of the noise, in standard deviations of a feature."""
        max_clean_drop: Annotated[float, Field(ge=0, le=1)] | None = None
        """A trial is feasible if its clean accuracy is at most this far below the baseline's."""

    def __init__(self, settings: Settings, context: hpo.Context) -> None:
        from sklearn.datasets import load_breast_cancer  # here: commands that only read settings need not wait for it

        table = load_breast_cancer()
        self.settings = settings
        self.digest = hashlib.sha256(table.data.tobytes() + table.target.tobytes()).hexdigest()
        rows = np.random.default_rng(0).permutation(len(table.data))
        train, tuning, test = np.split(rows, [340, 455])
        features = (table.data - table.data[train].mean(axis=0)) / table.data[train].std(axis=0)
        learned = np.concatenate([train, tuning])
        self.train = {split: (features[of], table.target[of]) for split, of in (("tuning", train), ("test", learned))}
        self.scored = {split: (features[of], table.target[of]) for split, of in (("tuning", tuning), ("test", test))}

    def fingerprints(self) -> dict[str, str]:
        return {"table": self.digest}

    def run(self, trial: hpo.Trial) -> Iterator[hpo.Measurement]:
        from sklearn.linear_model import SGDClassifier

        model = SGDClassifier(
            loss=trial.params["loss"],
            alpha=trial.params["alpha"],
            learning_rate="constant",
            eta0=trial.params["learning_rate"],
            average=trial.params["average_after"],
            random_state=trial.seed,
        )
        features, labels = self.train[trial.split]  # scored on test rows, it may learn from the tuning rows too
        done = self._restore(model, trial.checkpoint) if trial.checkpoint else 0
        for step in range(done + 1, trial.steps + 1):
            order = np.random.default_rng([trial.seed, step]).permutation(len(labels))
            model.partial_fit(features[order], labels[order], classes=[0, 1])
            if trial.split == "test" and step < trial.steps:  # test rows are looked at once
                yield hpo.Measurement(step=step, score=np.nan, checkpoint=self._checkpoint(model, step))
                continue
            right = self._right(model, trial)
            parts = {name: float(each.mean()) for name, each in right.items()}
            limit = self.settings.max_clean_drop
            yield hpo.Measurement(
                step=step,
                score=(parts["clean"] + parts["noise"]) / 2,
                parts=parts,
                checkpoint=self._checkpoint(model, step),
                constraints={} if limit is None else {"clean_drop": hpo.BelowBaseline("clean", limit)},
                attributes={"rows": len(self.scored[trial.split][1])},
                outcomes=[hpo.Outcome(name, parts[name], each) for name, each in right.items()],
            )

    def _right(self, model: "SGDClassifier", trial: hpo.Trial) -> dict[str, Any]:
        """Which rows are classified correctly, bool (rows,). In a search the noise is the same in all trials, so that
        they are compared on equal terms; each seed of a confirmation has its own.
        """
        features, labels = self.scored[trial.split]
        drawn = np.random.default_rng(1 if trial.split == "tuning" else [1, trial.seed])
        noise = drawn.normal(scale=self.settings.noise, size=features.shape)
        return {"clean": model.predict(features) == labels, "noise": model.predict(features + noise) == labels}

    STATE = (
        *("coef_", "intercept_", "t_"),
        *("_standard_coef", "_standard_intercept", "_average_coef", "_average_intercept"),
    )
    """Attributes of scikit-learn's model that a checkpoint holds."""

    def _checkpoint(self, model: "SGDClassifier", step: int) -> bytes:
        """Arrays alone: nothing that could run when it is read, as a pickle could."""
        state = {name: getattr(model, name) for name in self.STATE if getattr(model, name, None) is not None}
        stream = io.BytesIO()
        np.savez(stream, step=step, **state)
        return stream.getvalue()

    def _restore(self, model: "SGDClassifier", checkpoint: bytes) -> int:
        """The step that the checkpoint was taken after."""
        features, labels = self.train["tuning"]
        model.partial_fit(features[:2], labels[:2], classes=[0, 1])  # makes what the state is written into
        with np.load(io.BytesIO(checkpoint), allow_pickle=False) as kept:
            state: dict[str, Any] = {name: kept[name] for name in kept.files}
        step = int(state.pop("step"))
        for name, value in state.items():
            setattr(model, name, value if value.ndim else value.item())
        return step
