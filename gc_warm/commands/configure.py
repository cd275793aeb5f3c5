"""``gc-warm configure``: an endpoint of a config, with options as its defaults."""

from __future__ import annotations

import difflib
import shlex
import tempfile
from collections.abc import Iterable
from pathlib import Path

import click
from globus_compute_endpoint.endpoint.endpoint import Endpoint

from gc_warm.check import config_targets
from gc_warm.commands import interrupts
from gc_warm.configs import folders, installing, rendering
from gc_warm.configs.options import Options, gather, schema_of
from gc_warm.exceptions import ConfigError


def run(
    name: str, config: str, assignments: tuple[str, ...], options_file: str | None, is_dry: bool
) -> None:
    """Make or update an endpoint, or show what would be written.

    Args:
        name: The endpoint's name.
        config: Its config, by folder or name.
        assignments: Options, ``name=value``.
        options_file: A file of such options.
        is_dry: Write nothing.
    """
    with interrupts.in_order():
        try:
            folder = installing.endpoint_folder(name)
            source = _source(config, folder)
            options = _options(source, assignments, options_file)
            planned = installing.plan(folder, source, options)
        except (ConfigError, OSError) as error:
            raise click.ClickException(_explain(error)) from error

        if is_dry:
            _show(planned, planned.changed)
        _refuse_edited(planned)
        if is_dry:
            click.echo(f"{folder}: nothing was written")
            return

        try:
            installing.write(planned)
        except OSError as error:
            raise click.ClickException(
                f"{folder} cannot be written, and nothing was changed: {error.strerror}"
            ) from error
        _say(planned, len(options))


def _explain(error: ConfigError | OSError) -> str:
    """Return the text of an error, with the place of temporary files where it names no file."""
    if isinstance(error, OSError) and error.errno is not None and error.filename is None:
        return f"a temporary file in {tempfile.gettempdir()}: {error.strerror}"
    return str(error)


def _source(config: str, folder: Path) -> Path:
    source = folders.find_folder(config)
    if source.resolve() == folder.resolve():
        raise ConfigError(f"{config} is the endpoint itself: give the config that it is made of")
    return source


def _options(source: Path, assignments: tuple[str, ...], options_file: str | None) -> Options:
    """Return the options, once the endpoint's own function has rendered the template with them."""
    schema = schema_of(folders.schema_path(source))
    options, origin = gather(schema, assignments, options_file)
    rendering.render(source, options, origin, config_targets.client_runtime())
    return options


def _refuse_edited(planned: installing.Plan) -> None:
    if not planned.edited:
        return

    _show(planned, planned.edited)
    names = ", ".join(planned.edited)
    raise click.ClickException(
        f"{planned.folder}: edited since it was written, and nothing was changed: {names}. Above "
        "is what would be: put your edits into the options, or remove the file, and call this again"
    )


def _show(planned: installing.Plan, names: Iterable[str]) -> None:
    """Print the difference that writing makes to files, as `diff -u` does."""
    for name in names:
        present = planned.present(name)
        before = [] if present is None else _lines(present)
        after = _lines(planned.files[name])

        path = str(planned.folder / name)
        former = "/dev/null" if present is None else path
        difference = difflib.unified_diff(before, after, former, path, lineterm="")
        for line in difference:
            click.echo(line)


def _lines(data: bytes) -> list[str]:
    *lines, last = data.decode(errors="replace").split("\n")
    return [*lines, f"{last} (and no new line)"] if last else lines


def _say(planned: installing.Plan, number: int) -> None:
    """Print what was done, and what to do next."""
    folder = planned.folder
    options = "option" if number == 1 else "options"
    if planned.is_new:
        click.echo(f"{folder}: made, with {number} {options} as defaults")
    elif planned.changed:
        click.echo(f"{folder}: updated, {', '.join(planned.changed)}")
    else:
        click.echo(f"{folder}: up to date")
    for name in planned.kept:
        click.echo(f"{folder / name}: edited since, and left as it is")

    click.echo(f"\n    gc-warm check {_target(folder)} --here")
    command = installing.start_command()
    if not Endpoint.check_pidfile(folder)["active"]:
        click.echo(f"    {command} start {folder.name}")
    elif planned.changed:
        click.echo(f"    {command} restart {folder.name}")
        click.echo("\nIt is running: until then, what runs keeps what it has started with.")

    if installing.is_for_root_alone(folder):
        click.echo(
            f"\nRun by root, it needs an `email` in {folder / 'config.yaml'}, and its tasks run as "
            "root, too. To run them as those who send them, set "
            "`identity_mapping_config_path` there as well: see endpoint_configs/ADMINS.md."
        )


def _target(folder: Path) -> str:
    """Return the word by which `gc-warm check` finds an endpoint; its name, if that is enough."""
    try:
        is_found = folders.find_folder(folder.name).resolve() == folder.resolve()
    except (FileNotFoundError, ConfigError):
        is_found = False
    return folder.name if is_found else shlex.quote(str(folder))
