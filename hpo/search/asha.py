"""Decides which trials end early: ASHA (Li et al., MLSys 2020, arXiv:1810.05934), Hyperband, or the median rule.

ASHA: a trial that reaches a rung goes on if it ranks among the best of all trials that reached it, otherwise it is
paused; a paused trial that later ranks among the best is promoted and resumed. This follows the paper, with three
differences. A trial that is the best so far goes on even if there are too few to compare with, so that some trial is
complete soon. There are no rungs in the second half of the steps, where stopping loses more than it saves. And at most
rungs.MAX_PAUSED trials stay paused, since each needs a checkpoint; beyond that, the worst are pruned.

Hyperband (Li et al., JMLR 2018, arXiv:1603.06560): each trial belongs to a bracket, and bracket b has no rung before
first_rung * reduction_factor^b steps; trials are compared within their bracket. Median: a trial ends if its best score
so far is below the median of the complete trials' scores at the same step.
"""

import math
from random import Random
from statistics import median
from typing import Literal

import sqlalchemy as sa

from hpo.search.sql import rungs
from hpo.study_file.spec import Spec

MIN_FOR_MEDIAN = 4

Verdict = Literal["goes on", "paused", "pruned"]


def brackets(spec: Spec) -> int:
    """The number of brackets in a study; more than one only with Hyperband."""
    if spec.pruner.name != "hyperband":
        return 1
    number, first = 1, spec.first_rung * spec.pruner.reduction_factor
    while first < spec.steps:
        number, first = number + 1, first * spec.pruner.reduction_factor
    return number


def bracket_of(spec: Spec, number: int) -> int | None:
    """The bracket of a trial, given its number or that of the first trial it continues; None without Hyperband.

    Brackets are drawn in proportion to Hyperband's numbers of trials: eta^s * (brackets / (s + 1)), where s is 0 for
    the last bracket.
    """
    if spec.pruner.name != "hyperband":
        return None
    n, eta = brackets(spec), spec.pruner.reduction_factor
    shares = [math.ceil(n / (s + 1) * eta**s) for s in reversed(range(n))]
    return Random(f"{spec.seed}/bracket/{number}").choices(range(n), shares)[0]  # noqa: S311 (not for secrets)


def rung_steps(spec: Spec, bracket: int | None = None) -> list[int]:
    """The steps after which a trial may be paused; each rung is reduction_factor times the one before."""
    eta = spec.pruner.reduction_factor
    found, step = [], spec.first_rung * eta ** (bracket or 0)
    while 2 * step <= spec.steps:
        found.append(step)
        step *= eta
    return found


def judge(engine: sa.Engine, study_id: int, spec: Spec, trial: rungs.Seen, step: int, score: float) -> Verdict:
    """Decides about a running trial after a step, from its score and those of other trials at that step."""
    match spec.pruner.name:
        case "asha" | "hyperband" if step in rung_steps(spec, trial.bracket):
            if math.isnan(score):
                return "pruned"
            better, others = rungs.compare(engine, study_id, trial, step, score)
            return "goes on" if better < max(1, (others + 1) // spec.pruner.reduction_factor) else "paused"
        case "median" if step >= spec.first_rung:
            others_at_step = rungs.complete_scores(engine, study_id, step)
            best = rungs.best_so_far(engine, trial.trial_id, score)
            enough = len(others_at_step) >= MIN_FOR_MEDIAN
            return "pruned" if enough and not best >= median(others_at_step) else "goes on"
    return "goes on"
