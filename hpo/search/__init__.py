"""Storage, study, budget, worker, queries. Knows Optuna and SQLAlchemy; never imports torch."""
