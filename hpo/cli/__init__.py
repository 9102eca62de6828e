"""The command `hpo`: commands, options, tables and progress in the terminal. May import everything below."""
