"""The command ``gc-warm``: its arguments, options and help.

What a command does is in `gc_warm.commands`, and is imported when it runs: help, completion and
refusals need none of it, and answer at once.
"""

from __future__ import annotations

from typing import Any

import click
from click.shell_completion import CompletionItem

import gc_warm
from gc_warm.check.task_facts import DEFAULT_STRATEGY, NUMBERS, STRATEGIES
from gc_warm.commands.base import Group


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(gc_warm.__version__, prog_name="gc-warm")
def main() -> None:
    """Warm state on Globus Compute workers: loaded once, there for the next task."""


@main.command("demo")
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    default=2,
    show_default=True,
    help="Number of worker processes.",
)
@click.option(
    "--engine", is_flag=True, help="Use the endpoint's real engine in place of spawned workers."
)
@click.option(
    "--routing",
    is_flag=True,
    help="Watch the same tasks on two real engines, with and without warm_first.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")
def demo_command(workers: int, engine: bool, routing: bool, as_json: bool) -> None:
    """Watch real computations go from cold to warm, on this machine, with no account.

    Exit status 0 means that every result was right, and every call cold or warm as it should be.
    """
    from gc_warm.commands import demo

    if routing:
        demo.run_routing(workers, as_json)
    else:
        demo.run(workers, engine, as_json)


def _explain_rule(context: click.Context, _: click.Parameter, rule: str | None) -> None:
    if rule is None or context.resilient_parsing:
        return
    from gc_warm.commands import explain

    explain.run(rule)
    context.exit()


def _complete_path(
    _context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Let the shell complete the paths of files and folders, which a target may be."""
    return [CompletionItem(incomplete, type="file")]


_assignments = click.option(
    "-o",
    "assignments",
    multiple=True,
    metavar="NAME=VALUE",
    help="An option of the config; can be repeated.",
)
_options_file = click.option(
    "--options",
    "options_file",
    type=click.Path(exists=True, dir_okay=False),
    help="YAML or JSON file of options.",
)


@main.command("check")
@click.argument(
    "names", metavar="TARGET...", nargs=-1, required=True, shell_complete=_complete_path
)
@_assignments
@_options_file
@click.option(
    "--yaml", "as_yaml", is_flag=True, help="Print what the endpoint makes of it, and nothing else."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")
@click.option(
    "--here",
    is_flag=True,
    help="Also look whether this machine has what the config needs. Runs its `environment`.",
)
@click.option(
    "--module",
    "modules",
    multiple=True,
    help="Warmable module that workers have to import; implies --here.",
)
@click.option(
    "--fix",
    "is_fixing",
    is_flag=True,
    help="First mend in the config's file what is one value on one line; show what else to write.",
)
@click.option(
    "--with",
    "numbers",
    multiple=True,
    metavar="NAME=NUMBER",
    help=f"What you know of your tasks: {', '.join(NUMBERS)}.",
)
@click.option(
    "--strategy",
    type=click.Choice(STRATEGIES),
    default=DEFAULT_STRATEGY,
    show_default=True,
    help="How functions are to travel.",
)
@click.option(
    "--explain",
    metavar="RULE",
    is_eager=True,
    expose_value=False,
    callback=_explain_rule,
    help="Say all there is to a rule.",
)
def check_command(
    names: tuple[str, ...],
    as_yaml: bool,
    as_json: bool,
    here: bool,
    modules: tuple[str, ...],
    is_fixing: bool,
    **given: Any,
) -> None:
    """Say what can never be warm, or work, in each TARGET, and what a config means and costs.

    A TARGET is the folder of a config, or of an endpoint (~/.globus_compute/NAME), or the name of
    such an endpoint or of a config that comes with gc_warm (local, slurm, slurm-gpu, pbs); the YAML
    file of a user endpoint; or functions: a Python file, a notebook, or the dotted name of a
    module. Nothing is submitted, and no Python is run. Exit status 1 means that something cannot
    work, or can never be warm.
    """
    if as_yaml and (as_json or here or modules or len(names) > 1):
        raise click.UsageError(
            "--yaml prints the YAML of one config and nothing else: leave the others away"
        )
    if is_fixing and (as_yaml or as_json):
        raise click.UsageError("--fix prints the lines it changes: leave --yaml and --json away")

    from gc_warm.commands import check

    check.run(names, as_yaml, as_json, here or bool(modules), modules, is_fixing, **given)


@main.command("configure")
@click.argument("name")
@click.argument("config", shell_complete=_complete_path)
@_assignments
@_options_file
@click.option(
    "--dry-run", "is_dry", is_flag=True, help="Only show what would be written, as a difference."
)
def configure_command(
    name: str,
    config: str,
    assignments: tuple[str, ...],
    options_file: str | None,
    is_dry: bool,
) -> None:
    """Make the endpoint NAME of a CONFIG, with the options as its defaults, or update it.

    CONFIG is the folder of a config, or the name of one that comes with gc_warm (local, slurm,
    slurm-gpu, pbs). Tasks can still bring options of their own, which win. Called again, it writes
    what has changed, and refuses, with the difference, to write over what you have edited since.
    Nothing is started or submitted.
    """
    from gc_warm.commands import configure

    configure.run(name, config, assignments, options_file, is_dry)


@main.command("register")
@click.argument("module")
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option(
    "--book",
    default="functions.yaml",
    show_default=True,
    shell_complete=_complete_path,
    help="The function book; made if there is none.",
)
@click.option(
    "--strategy",
    type=click.Choice(STRATEGIES),
    default=DEFAULT_STRATEGY,
    show_default=True,
    help="How the functions travel.",
)
@click.option("--public", is_flag=True, help="Let anybody call them.")
@click.option("--group", metavar="ID", help="Let the members of a Globus group call them.")
@click.option("--recorded", is_flag=True, help="For a WarmExecutor, which then records the calls.")
@click.option(
    "--dry-run", "mode", flag_value="dry-run", help="Only say what would be sent, and why."
)
@click.option(
    "--check",
    "mode",
    flag_value="check",
    help="The same; exit status 1 means that the book is out of date.",
)
@click.option("--force", is_flag=True, help="Register also what can never be warm.")
def register_command(
    module: str,
    names: tuple[str, ...],
    book: str,
    strategy: str,
    mode: str | None,
    force: bool,
    **audience: Any,
) -> None:
    """Register the functions of MODULE, and keep their ids in a function book.

    MODULE is a dotted name, as the workers import it; without any NAME, its public functions are
    meant. Only what is new or has changed is sent. You are asked to log in if something has to be
    sent, and never with --dry-run and --check. What can never be warm, or fails on a worker, is
    refused, as `gc-warm check MODULE` shows it.
    """
    from gc_warm.commands import register

    register.run(module, names, book, strategy, mode, force, **audience)


@main.command("up")
@click.argument("folder", shell_complete=_complete_path)
def up_command(folder: str) -> None:
    """Run a service of your own and a real endpoint on this machine: no account, no network.

    FOLDER is that of a config or of an endpoint, or the name of a config that comes with gc_warm.
    Prints the lines that let any script use the endpoint, to be copied to where the script runs,
    and then, on stderr, a line for each task. Ctrl-C ends all of it.
    """
    from gc_warm.commands import up

    up.run(folder)


@main.command("report")
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option(
    "--picture",
    type=click.Path(dir_okay=False),
    help="Draw the calls over time into this file (PNG, SVG or PDF).",
)
def report_command(file: str, as_json: bool, picture: str | None) -> None:
    """Show what was warm, where, and what cold calls cost, by a WarmExecutor's FILE of records."""
    from gc_warm.commands import report

    report.run(file, as_json, picture)


if __name__ == "__main__":
    main(prog_name="gc-warm")
