"""`python -m hpo` is the command `hpo`; workers are started this way, with the interpreter of their parent."""

from hpo.cli.main import main

main()
