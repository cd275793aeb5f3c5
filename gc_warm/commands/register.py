"""``gc-warm register``: send what is new or has changed, and keep the ids in a function book."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import globus_sdk
from globus_compute_sdk import Client
from globus_compute_sdk.errors import ComputeError
from globus_compute_sdk.sdk._environments import get_web_service_url
from globus_compute_sdk.serialize import ComputeSerializer
from rich.console import Console
from rich.progress import Progress

from gc_warm.check import function_rules, rules
from gc_warm.client import book_storage, registry
from gc_warm.commands import interrupts
from gc_warm.exceptions import BookError

_MANY = 10  # functions that are worth a progress bar


def run(
    module: str,
    names: tuple[str, ...],
    book: str,
    strategy: str,
    mode: str | None,
    force: bool,
    **audience: Any,
) -> None:
    """Register functions, or say what would be sent.

    Args:
        module: The module's dotted name.
        names: Names of its functions; all public ones if there is none.
        book: File of the function book.
        strategy: Name of a serialization strategy.
        mode: "dry-run" to send nothing, "check" to exit with status 1 besides if something would be
            sent.
        force: Register also functions that can never be warm.
        **audience: Who may call them, and whether it is recorded; see `registry.Terms`.
    """
    if strategy not in registry.STRATEGIES:
        known = ", ".join(registry.STRATEGIES)
        raise click.BadParameter(
            f"this version of globus-compute-sdk has no {strategy}; it has {known}",
            param_hint="'--strategy'",
        )

    sys.path.insert(0, os.getcwd())  # so that modules are found which lie here

    sent: list[registry.Step] = []
    with interrupts.in_order(), _explained(book, sent):
        serializer = ComputeSerializer(strategy_code=registry.STRATEGIES[strategy])
        terms = registry.Terms(serializer, get_web_service_url(), **audience)
        chosen = registry.functions_of(module, names)
        entries = book_storage.read(book)
        steps = registry.plan(entries, chosen, terms)
        _refuse_cold(function_rules.examine_functions(chosen, strategy), force)

        if mode:
            _foretell(steps, book)
        elif not Path(book).absolute().parent.is_dir():  # better known before a login is asked for
            raise BookError(f"there is no folder for {book}")
        elif any(step.why for step in steps) or registry.is_local(terms.service):
            _register(steps, book, _client(strategy), terms, sent)
        else:
            _show_steps(steps, "registered")

        for name in registry.gone(entries, module):
            kept = f"its entry is kept: remove it from {book} if nobody uses it"
            click.echo(f"{name} is no longer in {module}; {kept}")
        if not mode:
            _show_use(steps, len(sent), module, book)

    is_stale = any(step.why for step in steps)
    sys.exit(1 if mode == "check" and is_stale else 0)


def _refuse_cold(findings: list[rules.Finding], is_forced: bool) -> None:
    for finding in findings:
        click.echo(str(finding), err=True)

    if any(finding.level == "error" for finding in findings) and not is_forced:
        raise click.ClickException(
            "nothing is registered: mend what can never be warm, "
            "silence a rule in its line, or add --force"
        )


def _client(strategy: str) -> Client:
    try:
        return Client(code_serialization_strategy=registry.STRATEGIES[strategy]())
    except ValueError as error:  # half of the variables of a client identity, say
        raise click.ClickException(str(error)) from error


def _foretell(steps: list[registry.Step], book: str) -> None:
    _show_steps(steps, "would be registered")
    number = sum(bool(step.why) for step in steps)
    if number:
        click.echo(f"{book} is out of date: {number} of {len(steps)} would be sent")
    else:
        click.echo(f"{book} is up to date")


def _register(
    steps: list[registry.Step],
    book: str,
    client: Client,
    terms: registry.Terms,
    sent: list[registry.Step],
) -> None:
    """Register the functions, and show each when the book has it.

    Those that had to be sent are appended to *sent*.
    """
    width = max(len(step.name) for step in steps)
    console = Console(highlight=False)
    shown = console if console.is_terminal else Console(stderr=True, highlight=False)
    is_plain = not shown.is_terminal or len(steps) < _MANY

    progress = Progress(console=shown, transient=True, redirect_stdout=False, disable=is_plain)
    # older versions of rich end also one that is not shown by an empty line
    with contextlib.nullcontext() if is_plain else progress:
        bar = progress.add_task("registering", total=len(steps))

        def report(step: registry.Step) -> None:
            if step.why:
                sent.append(step)
            console.print(_line(step, width, "registered"), markup=False, soft_wrap=True)
            progress.advance(bar)

        chosen = [step.function for step in steps]
        audience: Any = {
            "public": terms.public,
            "group": terms.group,
            "recorded": terms.recorded,
        }
        try:
            registry.FunctionBook.register(book, client, chosen, report=report, **audience)
        except KeyboardInterrupt:
            on_its_way = "Interrupted; one function may have been on its way."
            interrupts.tell(f"{on_its_way}{_so_far(sent, book)}")
            sys.exit(interrupts.STATUS)


def _show_steps(steps: list[registry.Step], word: str) -> None:
    width = max(len(step.name) for step in steps)
    for step in steps:
        click.echo(_line(step, width, word))


def _line(step: registry.Step, width: int, word: str) -> str:
    state = f"{word}: {step.why}" if step.why else "unchanged"
    return f"{step.name:{width}}  {step.function_id or '':36}  {state}"


def _show_use(steps: list[registry.Step], number: int, module: str, book: str) -> None:
    """Print how many were registered, and the lines that use them."""
    name = steps[0].name
    click.echo(f"\n{book}: {number} registered, {len(steps) - number} unchanged. In Python:\n")
    click.echo(f"    from gc_warm import FunctionBook\n    from {module} import {name}\n")
    use = f"FunctionBook.load({book!r}).prime(executor)"
    click.echo(f"    {use}    # then executor.submit({name}) uses its id")


@contextlib.contextmanager
def _explained(book: str, sent: list[registry.Step]) -> Iterator[None]:
    """Turn expected errors into one line, which also names the functions registered before."""
    try:
        yield
    except (BookError, globus_sdk.GlobusError, ComputeError, OSError) as error:
        raise click.ClickException(f"{_in_words(error)}{_so_far(sent, book)}") from error


def _in_words(error: Exception) -> str:
    if isinstance(error, globus_sdk.GlobusAPIError):
        return f"the service answered {error.http_status} {error.code}: {error.message}"
    if isinstance(error, globus_sdk.NetworkError):
        return f"the service cannot be reached: {error.underlying_exception or error}"
    return str(error)


def _so_far(sent: list[registry.Step], book: str) -> str:
    if not sent:
        return ""
    names = ", ".join(step.name for step in sent)
    return f" Registered before that, and in {book}: {names}. Run the command again for the others."
