"""Everything that touches Optuna's tables: opening a database, queries, and every write."""
