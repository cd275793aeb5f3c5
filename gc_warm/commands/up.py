"""``gc-warm up``: a service and a real endpoint on this machine, until Ctrl-C."""

from __future__ import annotations

import contextlib
import logging
import shlex
import sys
from typing import NoReturn

import click
from rich.console import Console

from gc_warm.commands import interrupts
from gc_warm.exceptions import EndpointStartError
from gc_warm.local.cloud import LocalCloud
from gc_warm.local.daemon import EndpointDaemon

log = logging.getLogger("gc_warm")


def run(folder: str) -> None:
    """Run a service, and on it an endpoint, until this process is told to end.

    Args:
        folder: Folder of the endpoint's config.
    """
    console = Console(stderr=True, highlight=False)
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    log.setLevel(logging.INFO)

    with interrupts.in_order():
        try:
            with LocalCloud() as cloud, contextlib.ExitStack() as stack:
                with console.status("starting the endpoint"):
                    endpoint = stack.enter_context(EndpointDaemon(cloud, folder))
                stack.callback(console.print, "ending the endpoint and its workers")

                _say_how_to_use(cloud, endpoint)
                console.print(
                    "\nCopy these lines to where your script runs. Ctrl-C ends all of it. Tasks:"
                )
                try:
                    _keep_up(endpoint)
                except KeyboardInterrupt:  # the way to end it, and what it does has been said above
                    sys.exit(interrupts.STATUS)
        except (OSError, ValueError, EndpointStartError) as error:
            raise click.ClickException(str(error)) from error


def _say_how_to_use(cloud: LocalCloud, endpoint: EndpointDaemon) -> None:
    click.echo(f"# endpoint {endpoint.name}: {endpoint.endpoint_id}")
    click.echo(f"# its logs: {cloud.folder}/*/endpoint.log")
    for name, value in cloud.environment.items():
        click.echo(f"export {name}={shlex.quote(value)}")


def _keep_up(endpoint: EndpointDaemon) -> NoReturn:
    while True:
        status = endpoint.wait()
        log.warning("the endpoint's daemon has ended with status %d and is started again", status)
        endpoint.start()
