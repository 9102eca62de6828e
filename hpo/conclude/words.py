"""What a confirmation says, in words that its numbers allow: what holds, what it costs, what cannot be told."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hpo.conclude.confirmed import Confirmed
from hpo.conclude.results import Condition, Difference, Result
from hpo.conclude.statistics import Interval, fewest_seeds, images_needed, seeds_needed
from hpo.counted import counted
from hpo.search.confirmation import Candidate
from hpo.study_file.images import ImageSpec
from hpo.study_file.perturbations import against
from hpo.study_file.spec import Spec
from hpo.trial_result import CLEAN

MORE_IMAGES = {2: "twice", 5: "five times", 10: "ten times"}


@dataclass
class Conclusions:
    """Sentences. holds: gains that are claimed; costs: losses that are, and what may be lost; unknown: what cannot be
    told, and what could tell it; measured: what does not count in the score; about: how the numbers came about, and
    what to beware of.
    """

    holds: list[str] = field(default_factory=list)
    costs: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    measured: list[str] = field(default_factory=list)
    about: list[str] = field(default_factory=list)

    def as_headed(self) -> Mapping[str, Sequence[str]]:
        """By heading, but for empty ones."""
        headed = {
            "What holds": self.holds,
            "What it costs": self.costs,
            "What cannot be told": self.unknown,
            "What was measured besides": self.measured,
            "How it was measured": self.about,
        }
        return {heading: sentences for heading, sentences in headed.items() if sentences}


def conclusions(confirmed: Confirmed) -> Conclusions:
    """Of all candidates, the best first."""
    said = Conclusions()
    for candidate in confirmed.candidates:
        _say_of(confirmed, candidate, said)
    _say_how(confirmed, said)
    return said


def _say_of(confirmed: Confirmed, candidate: Candidate, said: Conclusions) -> None:
    controls = {each.condition.key: each for each in confirmed.of("control", candidate.trial)}
    for result in confirmed.of("candidate", candidate.trial):
        difference = result.to_baseline
        if difference is None or not result.condition.claimed:
            continue
        change = f"trial {candidate.trial}, {where(confirmed, result.condition)}: {_shown(confirmed, difference)}"
        if difference.holds and difference.interval.mean > 0:
            control = controls.get(result.condition.key)
            said.holds.append(_sentence(f"{change}{_due_to(confirmed, candidate, result, control)}"))
        elif difference.holds:
            said.costs.append(_sentence(change))
        elif _can_be_claimed(confirmed, difference):
            said.unknown.append(_sentence(f"{change}; {_needed(confirmed, difference)}"))
        else:
            said.unknown.append(_sentence(change))
        if result.condition.name == CLEAN and (limit := max_clean_drop(confirmed)) is not None:
            _say_of_limit(confirmed, candidate, difference.interval, limit, said)
    _say_of_others(confirmed, candidate, said)


def _say_of_others(confirmed: Confirmed, candidate: Candidate, said: Conclusions) -> None:
    """Of conditions that nothing is claimed of: those of the study, and others where the candidate seems worse."""
    others = [each for each in confirmed.of("candidate", candidate.trial) if not each.condition.claimed]
    measured = [each for each in others if each.condition.main]
    worse = [
        each for each in others if not each.condition.main and each.to_baseline and each.to_baseline.interval.high < 0
    ]
    against = f"Trial {candidate.trial} against the baseline"
    if measured:
        said.measured.append(f"{against}, where nothing counts in the score: {_listed(confirmed, measured)}.")
    if worse:
        said.measured.append(
            f"{against}, where it seems worse at other severities or in other ways: {_listed(confirmed, worse)}."
        )
    if measured or worse:
        said.measured.append("Nothing is claimed of these: their intervals are not corrected for being many.")


def _listed(confirmed: Confirmed, results: Sequence[Result]) -> str:
    return "; ".join(
        f"{where(confirmed, each.condition)} {_between(confirmed, each.to_baseline.interval)}"
        for each in results
        if each.to_baseline
    )


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def named(spec: Spec, part: str) -> str:
    """`fog`, `fog (held out)`, `adversarial-noise (against the search's baseline)`."""
    made = against("baseline", spec.objective.perturbations) if isinstance(spec, ImageSpec) else []
    remarks = [
        *(["against the search's baseline"] if part in [each.name for each in made] else []),
        *(["held out"] if part in spec.hold_outs else []),
    ]
    return f"{part} ({', '.join(remarks)})" if remarks else part


def is_held_out(confirmed: Confirmed, condition: Condition) -> bool:
    return condition.name in confirmed.search.spec.hold_outs


def _held_out(spec: Spec, part: str) -> str:
    scored = isinstance(spec, ImageSpec) and any(
        each.name == part and each.weight for each in spec.objective.perturbations
    )
    counted_too = ", but it counted in the score" if scored else ", and it did not count in the score"
    return f"held out: nothing was trained on it{counted_too}"


def where(confirmed: Confirmed, condition: Condition) -> str:
    """`under gaussian-noise 0.1`, `on clean images`; of a hold-out it is said."""
    held_out = f" ({_held_out(confirmed.search.spec, condition.name)})" if is_held_out(confirmed, condition) else ""
    if condition.name == CLEAN and confirmed.search.spec.shows_percent:
        return "on clean images"
    severity = "" if condition.severity is None else f" {condition.severity:g}"
    return f"under {condition.name}{severity}{held_out}"


def amount(confirmed: Confirmed, value: float, sign: bool = True) -> str:
    """`+2.1`, in percentage points where parts are shares."""
    if confirmed.search.spec.shows_percent:
        return f"{100 * value:+.1f}" if sign else f"{100 * value:.1f}"
    return f"{value:+.4g}" if sign else f"{value:.4g}"


def points(confirmed: Confirmed) -> str:
    """The unit of a difference: ` points` where parts are shares."""
    return " points" if confirmed.search.spec.shows_percent else ""


def mean_and_ends(confirmed: Confirmed, interval: Interval, sign: bool = True) -> tuple[str, str]:
    """`+2.1` and `+1.0 to +3.2`."""
    mean, low, high = (amount(confirmed, value, sign) for value in (interval.mean, interval.low, interval.high))
    return mean, f"{low} to {high}"


def with_ends(confirmed: Confirmed, interval: Interval) -> str:
    """`+2.1 (+1.0 to +3.2)`, of a difference."""
    mean, ends = mean_and_ends(confirmed, interval)
    return f"{mean} ({ends})"


def _between(confirmed: Confirmed, interval: Interval) -> str:
    mean, ends = mean_and_ends(confirmed, interval)
    return f"{mean}{points(confirmed)} ({ends})"


def _can_be_claimed(confirmed: Confirmed, difference: Difference) -> bool:
    """Whether there are seeds enough for any claim."""
    return len(difference.table) >= fewest_seeds(max(1, confirmed.claims))


def _shown(confirmed: Confirmed, difference: Difference) -> str:
    has_p = difference.p_value is not None and _can_be_claimed(confirmed, difference)
    p = f", p = {difference.p_value:.2g}" if has_p else ""
    return f"{_between(confirmed, difference.interval)} against the baseline{p}"


def _due_to(confirmed: Confirmed, candidate: Candidate, result: Result, control: Result | None) -> str:
    """How much of a gain is due to what the search is for: the control has the rest."""
    if candidate.control == candidate.configuration:
        return "; it trains on no perturbed images, so this is due to its other parameters"
    if candidate.control == 0:
        return "; its control, the same without perturbed training images, is the baseline itself"
    if control is None or result.to_control is None or control.to_baseline is None:
        return ""
    gain = _between(confirmed, control.to_baseline.interval)
    against = _between(confirmed, result.to_control.interval)
    without = f"its control, the same without perturbed training images, has {gain}"
    if result.to_control.holds and result.to_control.interval.mean > 0:
        return f"; {without}, so that {against} are due to these"
    return f"; but {without}: that it is due to these cannot be told ({against} against the control)"


def _needed(confirmed: Confirmed, difference: Difference) -> str:
    """How many seeds or images would tell a difference like this one, if it is real."""
    claims = max(1, confirmed.claims)
    seeds, images = len(difference.table), difference.table.shape[1]
    if difference.interval.mean == 0:
        return "no difference was seen at all"
    if (more := seeds_needed(difference.table, claims)) is not None and more <= 100:
        if more <= seeds:
            return "it is not claimed, as a comparison before it does not hold, or the seeds disagree"
        return f"if it is real, about {more} seeds would tell, instead of {seeds}"
    if images > 1 and (enough := images_needed(difference.table, claims)) is not None:
        return f"if it is real, about {enough:,} images would tell, instead of {images:,}"
    for factor in MORE_IMAGES if images > 1 else ():
        if (more := seeds_needed(difference.table, claims, factor * images)) is not None and more <= 100:
            return f"if it is real, about {more} seeds on {MORE_IMAGES[factor]} as many images would tell"
    return "if there is a difference as small as this, 100 seeds would not suffice to tell"


def max_clean_drop(confirmed: Confirmed) -> float | None:
    """What the study allows."""
    spec = confirmed.search.spec
    return spec.objective.max_clean_drop if isinstance(spec, ImageSpec) else None


def _say_of_limit(
    confirmed: Confirmed, candidate: Candidate, interval: Interval, limit: float, said: Conclusions
) -> None:
    allowed = f"the study allows a clean drop of {amount(confirmed, limit, sign=False)} points"
    if -interval.low <= limit:
        lost = amount(confirmed, max(0.0, -interval.low), sign=False)
        said.holds.append(f"Trial {candidate.trial} loses at most {lost} points of clean accuracy; {allowed}.")
    elif -interval.high > limit:
        lost = amount(confirmed, -interval.high, sign=False)
        said.costs.append(f"Trial {candidate.trial} loses at least {lost} points of clean accuracy; {allowed}.")
    else:
        lost = amount(confirmed, -interval.low, sign=False)
        said.unknown.append(
            f"Whether trial {candidate.trial} keeps to what the study allows: it may lose up to {lost} points of clean "
            f"accuracy; {allowed}."
        )


def _say_how(confirmed: Confirmed, said: Conclusions) -> None:
    spec, claims = confirmed.search.spec, confirmed.claims
    seeds = confirmed.seeds
    images = max((each.condition.images or 0 for each in confirmed.results), default=0)
    data = f"{images:,} locked test images" if images else "locked test data"
    said.about.append(
        f"Each configuration was trained again on {counted(seeds, 'fresh seed')}, on all training data, and scored on "
        f"{data} when its training had ended. Intervals (95 %) are over seeds and images; differences are paired on "
        "both."
    )
    if claims and seeds < (fewest := fewest_seeds(claims)):
        said.about.append(
            f"{counted(seeds, 'seed')} {'is' if seeds == 1 else 'are'} too few to claim anything of "
            f"{counted(claims, 'condition')}: the exact sign-flip test needs at least {fewest} (--seeds {fewest})."
        )
    elif claims:
        said.about.append(
            "p: the larger of an exact sign-flip test over seeds and a test over seeds and images, corrected for "
            f"{counted(claims, 'condition')} (Holm), so that with {counted(seeds, 'seed')} it is never below "
            f"{min(1.0, claims * 2.0 ** (1 - seeds)):.2g}; claimed where it is at most 0.05."
        )
    for trial, promised in confirmed.promised.items():
        said.about.append(_luck(confirmed, trial, promised))
    if confirmed.missing:
        said.about.append(f"{counted(confirmed.missing, 'run')} of this confirmation did not finish yet.")
    looked = f"The test {'images' if isinstance(spec, ImageSpec) else 'data'} have been looked at"
    if (looks := confirmed.confirmation.looks) == 1:
        said.about.append(f"{looked} once.")
    else:
        chosen = "if what was asked for last was chosen by what was seen before, these claims are too good"
        said.about.append(f"{looked} {looks} times: {chosen}.")


def _luck(confirmed: Confirmed, trial: int, promised: float) -> str:
    kept = confirmed.gains[trial]
    scale = confirmed.search.spec.shows_percent
    lost = promised - kept.mean
    unit = " points" if scale else ""
    if promised > kept.high:
        verdict = f"about {amount(confirmed, lost, sign=False)} of it were luck, or are due to the other data"
    elif promised < kept.low:
        verdict = "more than was promised"
    else:
        verdict = "as promised, as far as can be told" if kept.low > 0 else "how much of it holds cannot be told"
    return (
        f"The score of trial {trial} less the baseline's: {amount(confirmed, promised)}{unit} when it was chosen, "
        f"{_between(confirmed, kept)} here: {verdict}."
    )
