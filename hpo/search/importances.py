"""Importances of the parameters, from Optuna's evaluator over the trials in memory."""

import optuna
import sqlalchemy as sa
from optuna.trial import TrialState

from hpo.errors import HpoError
from hpo.search.sql.studies import Study
from hpo.search.sql.trials_in_memory import History

MIN_TRIALS = 4


def parameter_importances(engine: sa.Engine, study: Study) -> dict[str, float]:
    """The searched parameters' importances, which sum to 1, largest first. Raises HpoError for too few trials."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    history = History(engine, study.study_id, study.name).study()
    finished = history.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    if len(finished) < MIN_TRIALS:
        raise HpoError(
            f"importances need at least {MIN_TRIALS} complete trials; study '{study.name}' has {len(finished)}"
        )
    return optuna.importance.get_param_importances(history, params=study.spec.search.searched)
