"""The command `hpo`: its commands and options, tables and progress. May import everything below it."""
