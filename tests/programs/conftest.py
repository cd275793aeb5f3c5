"""A PostgreSQL for the tests of psql."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import wait_until


@pytest.fixture(scope="session")
def server() -> Iterator[None]:
    """A PostgreSQL that psql finds, if there is one."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        yield
        return

    # Where a socket's path is short enough, and that user can enter
    folder = Path(tempfile.mkdtemp(prefix="gc_warm-postgres-", dir="/tmp"))
    become: list[str | Path] = []
    if os.getuid() == 0:
        become = ["runuser", "-u", "postgres", "--"]
        shutil.chown(folder, "postgres")
    data = folder / "data"
    options = ["-D", str(data), "-U", "tester", "-A", "trust"]
    subprocess.run([*become, found[-1], *options], check=True, capture_output=True, cwd="/")
    server = found[-1].with_name("postgres")
    command = [*become, server, "-D", data, "-k", folder, "-h", ""]
    environment = {"PGHOST": str(folder), "PGUSER": "tester", "PGDATABASE": "postgres"}
    with (
        pytest.MonkeyPatch.context() as patch,
        subprocess.Popen(command, cwd="/", stderr=subprocess.DEVNULL) as postgres,
    ):
        for name, value in environment.items():
            patch.setenv(name, value)
        wait_until((folder / ".s.PGSQL.5432").exists, "it listens")
        try:
            yield
        finally:
            postgres.terminate()
    shutil.rmtree(folder)
