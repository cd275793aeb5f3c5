"""The command ``gc-warm``."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import click
import globus_sdk
from globus_compute_sdk import Client
from globus_compute_sdk.errors import ComputeError, TaskExecutionFailed
from globus_compute_sdk.sdk._environments import get_web_service_url
from globus_compute_sdk.serialize import DEFAULT_STRATEGY_CODE, ComputeSerializer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.status import Status
from rich.table import Table

import gc_warm
from gc_warm import demo
from gc_warm.check import config_rules, configs, environment, functions, options, rules, source, targets
from gc_warm.client import bookfile, registry
from gc_warm.testing.cloud import LocalCloud
from gc_warm.testing.daemon import EndpointDaemon, EndpointStartError
from gc_warm.testing.runners import WorkerStartError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(gc_warm.__version__, prog_name="gc-warm")
def main() -> None:
    """Warm state on Globus Compute workers: loaded once, there for the next task."""


@main.command("demo")
@click.option("--workers", type=click.IntRange(1, 64), default=2, show_default=True, help="Number of worker processes.")
@click.option("--engine", is_flag=True, help="Use the endpoint's real engine in place of spawned workers.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")
def demo_command(workers: int, engine: bool, as_json: bool) -> None:
    """Watch real computations go from cold to warm, on this machine, with no account.

    Exit status 0 means that every result was right, and every call cold or warm as it should be.
    """
    parts: list[demo.Part] = []
    console, error_console = Console(highlight=False), Console(stderr=True, highlight=False)
    begun = "starting the engine" if engine else f"starting {workers} worker{'s' * (workers > 1)}"
    try:
        # A terminal shows both, so that one console has to know of both; tables in a file leave the progress to stderr.
        with (console if console.is_terminal else error_console).status(begun) as status:
            for part in demo.run(workers, engine, lambda part: _tell(status, part)):
                parts.append(part)
                if not as_json:
                    _show(console, part)
    except (TaskExecutionFailed, WorkerStartError, OSError) as error:
        raise click.ClickException(str(error)) from error
    right = all(row.right for part in parts for row in part.rows)
    if as_json:
        click.echo(json.dumps({"right": right, "parts": [dataclasses.asdict(part) for part in parts]}, indent=2))
    elif right:
        console.print("Every result was right, and every call was cold or warm as it should be.")
    else:
        error_console.print("[bold red]Some calls, marked with !, did not give what they should have.[/]")
    sys.exit(0 if right else 1)


def _tell(status: Status, part: demo.Part) -> None:
    status.update(f"{escape(part.title.split(':')[0])}: call {min(len(part.rows) + 1, part.expected)} of {part.expected}")


def _show(console: Console, part: demo.Part) -> None:
    console.print(f"[bold]{escape(part.title)}[/]", soft_wrap=True)
    if part.note:
        console.print(escape(part.note), soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD if console.is_terminal else box.ASCII)
    for heading in ("call", "", "worker", "seconds", "result"):
        table.add_column(heading, justify="right" if heading in ("call", "seconds", "result") else "left", overflow="fold")
    for row in part.rows:
        state = "[green]warm[/]" if row.warm else "[blue]cold[/]"
        shown = f"{row.result:.6f}" if isinstance(row.result, float) else str(row.result)
        table.add_row(str(row.number), state, row.worker, f"{row.seconds:.6f}", shown + ("" if row.right else " !"))
    console.print(table)
    if part.ratio is not None:
        console.print(f"A cold call took {part.ratio:,.0f} times as long as a warm one.", soft_wrap=True)
    console.print()


def _explain_rule(context: click.Context, _: click.Parameter, rule: str | None) -> None:
    if rule is None or context.resilient_parsing:
        return
    known = {**config_rules.RULES, **functions.RULES}
    if rule not in known:
        raise click.BadParameter(f"there is no rule {rule}; there are {', '.join(known)}")
    click.echo(known[rule].explanation())
    context.exit()


@main.command("check")
@click.argument("names", metavar="TARGET...", nargs=-1, required=True)
@click.option("-o", "assignments", multiple=True, metavar="NAME=VALUE", help="An option of the config; can be repeated.")
@click.option("--options", "options_file", type=click.Path(exists=True, dir_okay=False), help="YAML or JSON file of options.")
@click.option("--yaml", "as_yaml", is_flag=True, help="Print what the endpoint makes of it, and nothing else.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")
@click.option("--here", is_flag=True, help="Also look whether this machine has what the config needs. Runs its `environment`.")
@click.option("--module", "modules", multiple=True, help="Warmable module that workers have to import; implies --here.")
@click.option("--with", "numbers", multiple=True, metavar="NAME=NUMBER", help=f"What you know of your tasks: {', '.join(targets.NUMBERS)}.")
@click.option(
    "--strategy", type=click.Choice(list(registry.STRATEGIES)), default=functions.DEFAULT_STRATEGY, help="How functions are to travel."
)
@click.option("--explain", metavar="RULE", is_eager=True, expose_value=False, callback=_explain_rule, help="Say all there is to a rule.")
def check_command(names: tuple[str, ...], as_yaml: bool, as_json: bool, here: bool, modules: tuple[str, ...], **given: Any) -> None:
    """What can never be warm, or work, in each TARGET; and what a config means for warm state, and costs.

    A TARGET is the folder of a config, or of an endpoint (~/.globus_compute/NAME), or the name of such an endpoint or of a config that
    comes with gc_warm (local, slurm, slurm-gpu, pbs); the YAML file of a user endpoint; or functions: a Python file, or the dotted name of
    a module. Nothing is submitted, and no Python is run. Exit status 1 means that something cannot work, or can never be warm.
    """
    if as_yaml and (as_json or here or modules or len(names) > 1):
        raise click.UsageError("--yaml prints the YAML of one config and nothing else: leave the others away")
    looked = [_look_at(name, **given) for name in names]
    if as_yaml:
        click.echo(looked[0].text)
        return
    findings = [_look(target, modules) if here or modules else [] for target in looked]
    if as_json:
        shown = [_as_json(target, found) for target, found in zip(looked, findings, strict=True)]
        click.echo(json.dumps({"targets": shown}, indent=2))
    else:
        for target, found in zip(looked, findings, strict=True):
            _explain(target, found)
        _sum_up([problem for target in looked for problem in target.problems])
    levels = {problem.level for target in looked for problem in target.problems} | {said.level for found in findings for said in found}
    sys.exit(1 if "error" in levels else 0)


def _look_at(name: str, assignments: tuple[str, ...], options_file: str | None, numbers: tuple[str, ...], strategy: str) -> targets.Target:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # so that modules are found which lie here
    try:
        return targets.look_at(name, assignments, options_file, targets.numbers(numbers), strategy)
    except (options.ConfigError, source.SourceError, OSError) as error:
        raise click.ClickException(str(error)) from error


def _as_json(target: targets.Target, findings: list[environment.Finding]) -> dict[str, Any]:
    meaning = {} if target.config is None else dataclasses.asdict(configs.meaning(target.config))
    figures = {name: None if value == math.inf else value for name, value in meaning.items()}
    said = {name: [dataclasses.asdict(one) for one in each] for name, each in (("problems", target.problems), ("findings", findings))}
    return {"target": target.name, **figures, **said}


def _look(target: targets.Target, modules: tuple[str, ...]) -> list[environment.Finding]:
    if target.text is None:
        return []
    if target.config is None:
        return [environment.Finding("warning", "environment", "not looked at, since the config cannot be relied on")]
    with _ended_in_order(), Console(stderr=True, highlight=False).status("looking at the worker's environment"):
        return list(environment.look(target.config, modules))


@contextlib.contextmanager
def _ended_in_order() -> Iterator[None]:
    """When this process is told to end, what it has started is ended, too."""
    ends = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, lambda number, _: sys.exit(128 + number)) for number in ends}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _explain(target: targets.Target, findings: list[environment.Finding]) -> None:
    console = Console(highlight=False)
    meaning = [] if target.config is None else configs.in_words(configs.meaning(target.config))
    rows = [("functions" if target.text is None else "config", target.name), *meaning]
    if not target.problems:
        rows.append(("rules broken", "none"))
    width = max(len(heading) for heading, _ in rows)
    for heading, sentence in rows:
        console.print(f"[bold]{escape(heading):{width}}[/]  {escape(sentence)}", soft_wrap=True)
    colours = {"ok": "green", "warning": "yellow", "error": "red"}
    if target.problems and meaning:
        console.print()
    for problem in target.problems:
        where = escape(f"{problem.file}:{problem.line}")
        console.print(f"{where}: [{colours[problem.level]}]{problem.rule} {problem.level}[/]: {escape(problem.text)}", soft_wrap=True)
    for finding in findings:
        indented = finding.text.replace("\n", "\n    ")
        console.print(f"[{colours[finding.level]}]{finding.level:7}[/]  {escape(finding.about)}: {escape(indented)}", soft_wrap=True)
    folder = Path(target.name)
    installed = not target.is_folder or (folder / "user_environment.yaml").exists()
    if findings:
        home = folder if installed else "~/.globus_compute/my-endpoint"
        console.print(f"\n[bold]what the logs in {escape(str(home))} know[/]\n{escape(environment.LOGS)}", soft_wrap=True)
    if not installed:
        console.print(
            f"\n[bold]make an endpoint of it (options are not part of it) with[/]\n{configs.deploy_command(folder)}", soft_wrap=True
        )


def _sum_up(problems: list[rules.Problem]) -> None:
    if not problems:
        return
    count = {level: sum(problem.level == level for problem in problems) for level in ("error", "warning")}
    said = ", ".join(f"{number} {level}{'s' * (number > 1)}" for level, number in count.items() if number)
    click.echo(f"\n{said}. `gc-warm check --explain {problems[0].rule}` says why, and how it is known.")


@main.command("register")
@click.argument("module")
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--book", default="functions.yaml", show_default=True, help="The function book; made if there is none.")
@click.option(
    "--strategy",
    type=click.Choice(list(registry.STRATEGIES)),
    default=type(DEFAULT_STRATEGY_CODE).__name__,
    show_default=True,
    help="How the functions travel.",
)
@click.option("--public", is_flag=True, help="Let anybody call them.")
@click.option("--group", metavar="ID", help="Let the members of a Globus group call them.")
@click.option("--dry-run", "mode", flag_value="dry-run", help="Only say what would be sent, and why.")
@click.option("--check", "mode", flag_value="check", help="The same; exit status 1 means that the book is out of date.")
@click.option("--force", is_flag=True, help="Register also what can never be warm.")
def register_command(module: str, names: tuple[str, ...], book: str, strategy: str, mode: str | None, force: bool, **audience: Any) -> None:
    """Register the functions of MODULE, and keep their ids in a function book.

    MODULE is a dotted name, as the workers import it; without any NAME, its public functions are meant. Only what is new or has changed is
    sent. You are asked to log in if something has to be sent, and never with --dry-run and --check. What can never be warm, or fails on a
    worker, is refused, as `gc-warm check MODULE` shows it.
    """
    sys.path.insert(0, os.getcwd())  # so that modules are found which lie here
    sent: list[registry.Step] = []
    with _ended_in_order(), _registration_explained(book, sent):
        serializer = ComputeSerializer(strategy_code=registry.STRATEGIES[strategy])
        terms = registry.Terms(serializer, get_web_service_url(), **audience)
        chosen = registry.functions_of(module, names)
        entries = bookfile.read(book)
        steps = registry.plan(entries, chosen, terms)
        _refuse_cold(functions.examine_functions(chosen, strategy), force)
        if mode:
            _foretell(steps, book)
        elif not Path(book).absolute().parent.is_dir():  # better known before a login is asked for
            raise bookfile.BookError(f"there is no folder for {book}")
        elif any(step.why for step in steps) or registry.is_local(terms.service):
            _register(steps, book, _client(strategy), terms, sent)
        else:
            _show_steps(steps, "registered")
    for name in registry.gone(entries, module):
        click.echo(f"{name} is no longer in {module}; its entry is kept: remove it from {book} if nobody uses it")
    if mode:
        sys.exit(1 if mode == "check" and any(step.why for step in steps) else 0)
    click.echo(f"\n{book}: {len(sent)} registered, {len(steps) - len(sent)} unchanged. In Python:\n")
    click.echo(f"    from gc_warm import FunctionBook\n    from {module} import {steps[0].name}\n")
    click.echo(f"    FunctionBook.load({book!r}).prime(executor)    # then executor.submit({steps[0].name}) uses its id")


def _refuse_cold(problems: list[rules.Problem], is_forced: bool) -> None:
    for problem in problems:
        click.echo(str(problem), err=True)
    if any(problem.level == "error" for problem in problems) and not is_forced:
        raise click.ClickException("nothing is registered: mend what can never be warm, silence a rule in its line, or add --force")


def _client(strategy: str) -> Client:
    try:
        return Client(code_serialization_strategy=registry.STRATEGIES[strategy]())
    except ValueError as error:  # half of the variables of a client identity, say
        raise click.ClickException(str(error)) from error


def _foretell(steps: list[registry.Step], book: str) -> None:
    _show_steps(steps, "would be registered")
    number = sum(bool(step.why) for step in steps)
    click.echo(f"{book} is out of date: {number} of {len(steps)} would be sent" if number else f"{book} is up to date")


def _register(steps: list[registry.Step], book: str, client: Client, terms: registry.Terms, sent: list[registry.Step]) -> None:
    width = max(len(step.name) for step in steps)
    console = Console(highlight=False)
    shown = console if console.is_terminal else Console(stderr=True, highlight=False)
    with Progress(console=shown, transient=True, redirect_stdout=False, disable=not shown.is_terminal or len(steps) < _MANY) as progress:
        bar = progress.add_task("registering", total=len(steps))

        def report(step: registry.Step) -> None:
            if step.why:
                sent.append(step)
            console.print(_line(step, width, "registered"), markup=False, soft_wrap=True)
            progress.advance(bar)

        chosen = [step.function for step in steps]
        registry.FunctionBook.register(book, client, chosen, public=terms.public, group=terms.group, report=report)


_MANY = 10  # functions that are worth a progress bar


def _show_steps(steps: list[registry.Step], word: str) -> None:
    width = max(len(step.name) for step in steps)
    for step in steps:
        click.echo(_line(step, width, word))


def _line(step: registry.Step, width: int, word: str) -> str:
    return f"{step.name:{width}}  {step.function_id or '':36}  {f'{word}: {step.why}' if step.why else 'unchanged'}"


@contextlib.contextmanager
def _registration_explained(book: str, sent: list[registry.Step]) -> Iterator[None]:
    def so_far() -> str:
        names = ", ".join(step.name for step in sent)
        return f"\nRegistered before that, and in {book}: {names}. Run the command again for the others." if sent else ""

    try:
        yield
    except KeyboardInterrupt:
        click.echo(f"Interrupted; one function may have been on its way.{so_far()}", err=True)
        sys.exit(130)
    except globus_sdk.GlobusAPIError as error:
        raise click.ClickException(f"the service answered {error.http_status} {error.code}: {error.message}{so_far()}") from error
    except globus_sdk.NetworkError as error:
        raise click.ClickException(f"the service cannot be reached: {error.underlying_exception or error}{so_far()}") from error
    except (bookfile.BookError, globus_sdk.GlobusError, ComputeError, OSError) as error:
        raise click.ClickException(f"{error}{so_far()}") from error


@main.command("up")
@click.argument("folder")
def up_command(folder: str) -> None:
    """A service of your own and a real endpoint, on this machine: no account, no network.

    FOLDER is that of a config or of an endpoint, or the name of a config that comes with gc_warm. Prints the lines that let any script
    use the endpoint, to be copied to where the script runs, and then, on stderr, a line for each task. Ctrl-C ends all of it.
    """
    console = Console(stderr=True, highlight=False)
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("gc_warm").setLevel(logging.INFO)
    with _ended_in_order():
        try:
            with LocalCloud() as cloud, contextlib.ExitStack() as stack:
                with console.status("starting the endpoint"):
                    endpoint = stack.enter_context(EndpointDaemon(cloud, folder))
                stack.callback(console.print, "ending the endpoint and its workers")
                _say_how_to_use(cloud, endpoint)
                console.print("\nCopy these lines to where your script runs. Ctrl-C ends all of it. Tasks:")
                _keep_up(endpoint)
        except (OSError, ValueError, EndpointStartError) as error:
            raise click.ClickException(str(error)) from error
        except KeyboardInterrupt:
            sys.exit(130)


def _say_how_to_use(cloud: LocalCloud, endpoint: EndpointDaemon) -> None:
    click.echo(f"# endpoint {endpoint.name}: {endpoint.endpoint_id}\n# its logs: {cloud.folder}/*/endpoint.log")
    for name, value in cloud.environment.items():
        click.echo(f"export {name}={shlex.quote(value)}")


def _keep_up(endpoint: EndpointDaemon) -> NoReturn:
    while True:
        status = endpoint.wait()
        logging.getLogger("gc_warm").warning("the endpoint's daemon has ended with status %d and is started again", status)
        endpoint.start()


if __name__ == "__main__":
    main()
