"""The commands that change what goes on: stop, resume or extend a study, and clean this machine."""

from pathlib import Path

import click

from hpo.cli.options import launch_command, open_study, storage_option


@click.command()
@click.argument("study")
@storage_option
def stop(study: str, storage: str) -> None:
    """Stop a study: its workers, wherever they are, give back what they run.

    `hpo resume` lets it go on.
    """
    from hpo.search.sql import heartbeats
    from hpo.search.sql.counts import count
    from hpo.search.sql.stopping import stop as stop_study

    engine, found = open_study(study, storage)
    counts = count(engine, found.study_id)
    if counts.finished >= found.budget:
        said = f"has used its budget of {found.budget}; nothing is left to stop"
    elif stop_study(engine, found, "`hpo stop` was said"):
        said = (
            f"is stopped; what runs now ({counts.running}) is given back within "
            f"{heartbeats.HEARTBEAT_INTERVAL_SECS:g} s. `hpo resume {study}` lets it go on from there"
        )
    else:
        said = f"was stopped before; `hpo resume {study}` lets it go on"
    click.echo(f"study {study} {said}", err=True)


@click.command()
@click.argument("study")
@storage_option
def resume(study: str, storage: str) -> None:
    """Let a stopped study go on, also one that stopped because trials failed."""
    from hpo.search.sql.stopping import resume as resume_study

    engine, found = open_study(study, storage)
    said = "goes on" if resume_study(engine, found) else "was not stopped; nothing changed"
    click.echo(f"study {study} {said}. Start workers with: {launch_command(study)}", err=True)


@click.command()
@click.argument("study")
@click.option("--budget", type=click.IntRange(1, 1_000_000), required=True, help="The new budget, in all.")
@storage_option
def extend(study: str, budget: int, storage: str) -> None:
    """Raise a study's budget, also a finished one's."""
    from hpo.search.sql.submitting import extend as extend_study

    engine, found = open_study(study, storage)
    added = extend_study(engine, found, budget)
    said = f"{added} {'trial' if added == 1 else 'trials'} added" if added else "nothing changed"
    start = f". Start workers with: {launch_command(study)}" if added else ""
    click.echo(f"study {study} has a budget of {budget}: {said}{start}", err=True)


@click.command()
@click.option("--cache", is_flag=True, required=True, help="The decoded images.")
@click.option(
    "--root",
    type=click.Path(path_type=Path),
    envvar="HPO_DATA_ROOT",
    default=Path("~/.cache/hpo"),
    show_default=True,
    show_envvar=True,
    help="The folder of a study file's data.root.",
)
def clean(cache: bool, root: Path) -> None:
    """Remove decoded images from this machine.

    They are made again when a study needs them. Archives and weights that were downloaded stay.
    """
    from hpo.vision.data.disk import remove_decoded_images

    count, size = remove_decoded_images(root.expanduser())
    sets = "1 image set" if count == 1 else f"{count} image sets"
    click.echo(f"{sets} removed from {root}/images, {size / 1e6:,.1f} MB", err=True)


CONTROL_COMMANDS = (stop, resume, extend, clean)
