"""The command `hpo`: parses, calls, prints. Imports lazily, so that only commands that train load torch.

stdout is data, stderr is talk. Exit codes: hpo.errors.
"""

import contextlib
import errno
import os
import sys
from typing import NoReturn

import click

from hpo import __version__
from hpo.cli.control import CONTROL_COMMANDS
from hpo.cli.groups import Commands
from hpo.cli.read import READING_COMMANDS
from hpo.cli.run import RUN_COMMANDS
from hpo.errors import HpoError, StorageError
from hpo.stopping import INTERRUPTED_EXIT_CODE


def main() -> NoReturn:
    """Runs a command; every error that a user can mend is one line on stderr."""
    try:
        cli(prog_name="hpo", standalone_mode=False)
    except HpoError as error:
        _fail(str(error), error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        sys.exit(error.exit_code)
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted", INTERRUPTED_EXIT_CODE)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _fail(f"no space left for what is written: {error.filename or 'the output'}", HpoError.exit_code)
    except Exception as error:
        _fail_if_of_database(error)
        raise
    sys.exit(0)


def _fail(message: str, exit_code: int) -> NoReturn:
    with contextlib.suppress(OSError):
        click.echo(f"hpo: {' '.join(message.split())}", err=True)
    _forget_what_cannot_be_written()
    sys.exit(exit_code)


def _forget_what_cannot_be_written() -> None:
    """What is still in a buffer before a full disk, for which Python would end with a traceback of its own."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail_if_of_database(error: Exception) -> None:
    """A server that is gone, a file that was deleted or is full: one line, without SQL."""
    from sqlalchemy.exc import SQLAlchemyError

    from hpo.search.sql.outages import first_line

    if isinstance(error, SQLAlchemyError):
        _fail(f"the database failed: {first_line(error)}", StorageError.exit_code)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="hpo")
def cli() -> None:
    """Find image classifiers that stay right when their input is perturbed.

    A study file says what to search; `hpo run` searches it on this machine. Any number of `hpo worker` on any number
    of machines can share the work through one database.
    """


for command in (*RUN_COMMANDS, *CONTROL_COMMANDS, *READING_COMMANDS):
    cli.add_command(command)
