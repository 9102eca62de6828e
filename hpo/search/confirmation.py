"""What a confirmation consists of: the baseline, candidates and their controls, each trained on several fresh seeds.

It is kept in the database as a study of its own, linked to the search whose best trials it trains again, so that the
same workers run it with the same guarantees. Its trials are planned here, one by one, and scored on locked test data.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

Role = Literal["baseline", "control", "candidate"]
SUFFIX = "@confirmation"
"""A confirmation is called like its search, followed by this."""


def name_of(role: str, trial: int) -> str:
    """`baseline`, `trial 7`, `control of trial 7`."""
    return {"baseline": "baseline", "control": f"control of trial {trial}"}.get(role, f"trial {trial}")


def run_name(confirms: Mapping[str, Any]) -> str:
    """Of a run, given what is kept with its trial."""
    return f"{name_of(confirms['role'], confirms['trial'])}, seed {confirms['seed']}"


@dataclass(frozen=True)
class Configuration:
    """What is trained again. role: what it is first of all; trial: its number in the search, of a control that of its
    candidate; params: all of them.
    """

    role: Role
    trial: int
    params: dict[str, Any]


@dataclass(frozen=True)
class Candidate:
    """trial: its number in the search; configuration, control: positions among the configurations. Without perturbed
    training images a candidate may be what the baseline is, and be its own control; None where an objective has none.
    """

    trial: int
    configuration: int
    control: int | None


@dataclass(frozen=True)
class Run:
    """One training: a position among the configurations, and the seed of everything random in it."""

    configuration: int
    seed: int


@dataclass(frozen=True)
class Confirmation:
    """study, uid: the search; configurations: the baseline first; candidates: the best first; runs: what is trained,
    seed by seed, so that whatever part is done is balanced; test_sets: absolute paths of further test data; looks: how
    often the locked data were asked for anew.
    """

    study: str
    uid: str | None
    configurations: tuple[Configuration, ...]
    candidates: tuple[Candidate, ...]
    runs: tuple[Run, ...] = ()
    test_sets: tuple[str, ...] = ()
    looks: int = 0

    @classmethod
    def of(
        cls, study: str, uid: str | None, number: int, params: Mapping[str, Any], test_sets: tuple[str, ...]
    ) -> "Confirmation":
        """Of a search whose baseline has this number and these parameters; without any run."""
        return cls(study, uid, (Configuration("baseline", number, dict(params)),), (), test_sets=test_sets)

    def as_json(self) -> dict[str, Any]:
        """In JSON's types."""
        return asdict(self)

    @classmethod
    def from_json(cls, kept: Mapping[str, Any]) -> "Confirmation":
        """What `as_json` gave. Raises pydantic.ValidationError."""
        from pydantic import TypeAdapter  # which takes a while to learn of a class, and few databases hold any

        return TypeAdapter(cls).validate_python(kept)

    def seeds_of(self, configuration: int) -> list[int]:
        """In the order in which they are run."""
        return [run.seed for run in self.runs if run.configuration == configuration]

    def about(self, run: Run) -> dict[str, Any]:
        """What is kept with the run's trial."""
        configuration = self.configurations[run.configuration]
        return {**asdict(run), "role": configuration.role, "trial": configuration.trial}

    def with_candidate(
        self, trial: int, params: Mapping[str, Any], control: Mapping[str, Any] | None
    ) -> "Confirmation":
        """Also of this trial of the search. What it and its control have in common with others is trained once."""
        if any(candidate.trial == trial for candidate in self.candidates):
            return self
        known = list(self.configurations)

        def position(role: Role, wanted: Mapping[str, Any]) -> int:
            for place, configuration in enumerate(known):
                if configuration.params == wanted:
                    return place
            known.append(Configuration(role, trial, dict(wanted)))
            return len(known) - 1

        place = position("candidate", params)
        candidate = Candidate(trial, place, None if control is None else position("control", control))
        return replace(self, configurations=tuple(known), candidates=(*self.candidates, candidate))

    def with_runs(self, trials: Sequence[int], seeds: Sequence[int]) -> "Confirmation":
        """With the runs that these candidates, their controls and the baseline lack of these seeds."""
        chosen = [candidate for candidate in self.candidates if candidate.trial in trials]
        places = [0, *(place for each in chosen for place in (each.configuration, each.control) if place is not None)]
        wanted = [Run(place, seed) for seed in seeds for place in dict.fromkeys(places)]
        return replace(self, runs=(*self.runs, *(run for run in wanted if run not in self.runs)))
