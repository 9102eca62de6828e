"""The entry point of the command `hpo`: the group of commands, and how errors are reported.

Results go to stdout, everything else to stderr. Exit codes: hpo.errors. Commands import what they need when they run,
so that `hpo --help` is fast and only commands that train load torch.
"""

import contextlib
import errno
import os
import sys
from typing import NoReturn

import click

from hpo import __version__
from hpo.cli.conclude import CONCLUDING_COMMANDS
from hpo.cli.control import CONTROL_COMMANDS
from hpo.cli.dashboard import dashboard
from hpo.cli.groups import Commands
from hpo.cli.read import READING_COMMANDS
from hpo.cli.run import RUN_COMMANDS
from hpo.errors import HpoError, StorageError
from hpo.stopping import INTERRUPTED_EXIT_CODE


def main() -> NoReturn:
    """Runs a command. Every error that the user can fix is reported as one line on stderr."""
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
        _fail(f"no space left on the device: cannot write {error.filename or 'the output'}", HpoError.exit_code)
    except Exception as error:
        _fail_on_database_error(error)
        raise
    sys.exit(0)


def _fail(message: str, exit_code: int) -> NoReturn:
    with contextlib.suppress(OSError):
        click.echo(f"hpo: {' '.join(message.split())}", err=True)
    _discard_unwritable_output()
    sys.exit(exit_code)


def _discard_unwritable_output() -> None:
    """When the disk is full, Python would fail to flush stdout at exit and print a traceback of its own."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail_on_database_error(error: Exception) -> None:
    """A server that is down, a database file that was deleted, a full disk: one line, without SQL."""
    from sqlalchemy.exc import SQLAlchemyError

    from hpo.search.sql.outages import first_line

    if isinstance(error, SQLAlchemyError):
        _fail(f"the database failed: {first_line(error)}", StorageError.exit_code)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="hpo")
def cli() -> None:
    """Find image classifiers that stay accurate when their input is perturbed.

    A study file defines the search; `hpo run` runs it on this machine. Any number of workers (`hpo worker`) on any
    number of machines can share a study through one database.
    """


for command in (*RUN_COMMANDS, *CONTROL_COMMANDS, *READING_COMMANDS, dashboard, *CONCLUDING_COMMANDS):
    cli.add_command(command)
