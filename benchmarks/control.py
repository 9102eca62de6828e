"""The best trial of a study beside its baseline and a control: the best trial's parameters without perturbed images.

    python benchmarks/control.py STUDY --storage sqlite:///hpo.db --artifacts hpo-artifacts

The control is trained here, and scored on the study's own tuning images, those that are chosen by gradient against the
study's baseline among them; so run it where the study's workers ran. One seed, the study's.
"""

import argparse
from pathlib import Path

from real_objective import robust_accuracy

import hpo
from hpo.doors.objective import Trial
from hpo.search.sql.storage import open_engine
from hpo.search.sql.studies import find_studies
from hpo.search.sql.url import parse_url


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study")
    parser.add_argument("--storage", required=True)
    parser.add_argument("--artifacts", type=Path, required=True)
    given = parser.parse_args()
    spec = find_studies(open_engine(parse_url(given.storage)), [given.study])[0].spec
    best = hpo.best(given.study, given.storage)
    baseline = hpo.load_results(given.study, where="baseline = 1", storage=given.storage)[0]
    print(f"of {best.images_of}; best: trial {best.number}, {dict(best.params)}")
    for name, result in {"baseline": baseline, "best": best}.items():
        print(f"{name}: score {result.score:.4f}, {result.correct}")
    objective = robust_accuracy(spec, 1, given.artifacts)
    params = {**best.params, "augmentation_strength": 0.0}
    *_, control = objective.run(Trial(10**6, params, seed=spec.seed, steps=spec.steps))
    correct = {part: round(share * best.images_of[part]) for part, share in control.parts.items()}
    print(f"control: score {control.score:.4f}, {correct}")


if __name__ == "__main__":
    main()
