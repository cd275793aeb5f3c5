"""The endpoint's own daemon, ``globus-compute-endpoint start`` as it is, on a `LocalCloud`."""

from __future__ import annotations

import contextlib
import inspect
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml
from globus_compute_endpoint.endpoint.utils import is_privileged

from gc_warm import processes
from gc_warm.configs import folders
from gc_warm.configs.options import schema_of
from gc_warm.exceptions import ConfigError, EndpointStartError
from gc_warm.local.cloud import LocalCloud

log = logging.getLogger("gc_warm")

_START_TIMEOUT = 60  # seconds
# seconds: ten for each of its user endpoints, and as much for what these have to say
_STOP_TIMEOUT = 30
_WATCH_INTERVAL = 0.05  # seconds between looks at whether the endpoint is online
_LINES_QUOTED = 12  # lines of a log
# these lead to the real service, to other users, and to the files that were copied
_LEFT_OUT = (
    "amqp_port",
    "identity_mapping_config_path",
    "pam",
    "user_config_template_path",
    "user_config_schema_path",
)


class EndpointDaemon:
    """An endpoint's daemon and, once there are tasks, its user endpoints and their workers.

    The config is copied to the service's folder, so that nothing is left in the folder it comes
    from or in the home directory. The endpoint lives until `close`; usable with ``with``.

    Args:
        cloud: The service that the endpoint registers with.
        config: The folder of a config or of an installed endpoint, or the name of one.

    Attributes:
        name: Name of the endpoint in the service's folder.
        folder: The folder that the daemon works in.
        log: The daemon's own log. Its user endpoints have theirs in ``uep.*`` beside its folder.

    Raises:
        FileNotFoundError: There is no such config.
        ConfigError: The config cannot be read.
        EndpointStartError: The endpoint could not be started.

    Example:
        A script of one's own, unchanged, in an environment of its own::

            with LocalCloud() as cloud, EndpointDaemon(cloud, "local") as endpoint:
                command = [sys.executable, "script.py", endpoint.endpoint_id]
                environment = {**os.environ, **cloud.environment}
                subprocess.run(command, env=environment, check=True)
    """

    def __init__(self, cloud: LocalCloud, config: str | os.PathLike[str]) -> None:
        source = folders.find_folder(config)
        # of a schema that cannot be read, the daemon only shows a traceback
        schema_of(folders.schema_path(source))

        self._cloud = cloud
        self._process: subprocess.Popen[bytes] | None = None
        self.folder = _new_folder(Path(cloud.folder), source.resolve().name)
        self.name = self.folder.name
        self.log = self.folder / "endpoint.log"
        self._output = self.folder / "start.log"
        # where its processes begin; the name is short since Parsl makes sockets there
        self._place = Path(cloud.folder, "t")
        self._place.mkdir(exist_ok=True)

        _install(source, self.folder, self._environment())
        try:
            self.start()
        except BaseException:
            self.close()
            raise

    @property
    def endpoint_id(self) -> str:
        """Id of the endpoint, which it keeps when it is started again."""
        return str(json.loads((self.folder / "endpoint.json").read_text())["endpoint_id"])

    @property
    def pid(self) -> int:
        """Process id of the daemon."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start the daemon, for the first time or again, and wait until it is online.

        Raises:
            EndpointStartError: The daemon ended before it was online, or took too long.
        """
        self._clear_up()

        environment = {**os.environ, **self._cloud.environment, **self._environment()}
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                [os.path.join(_SCRIPTS, "globus-compute-endpoint"), "start", self.name],
                env=environment,
                cwd=self._place,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # at its end it signals its whole group
            )

        end = time.monotonic() + _START_TIMEOUT
        while not self.online:
            if self._process.poll() is not None:
                status = self._process.returncode
                raise EndpointStartError(
                    f"the endpoint {self.name} ended with status {status}:\n{self._log_end()}"
                )
            if time.monotonic() > end:
                raise EndpointStartError(
                    f"the endpoint {self.name} is not online after {_START_TIMEOUT} s:\n"
                    f"{self._log_end()}"
                )
            time.sleep(_WATCH_INTERVAL)

    @property
    def online(self) -> bool:
        """Whether the service knows the endpoint to listen."""
        # suppressed: it has not registered, or is just writing that down
        with contextlib.suppress(FileNotFoundError, ValueError):
            return self._cloud.online(self.endpoint_id)
        return False

    def wait(self) -> int:
        """Wait until the daemon ends, which it does not do by itself.

        Returns:
            The daemon's exit status, below 0 if it was killed.
        """
        assert self._process is not None
        return self._process.wait()

    def stop(self) -> None:
        """End the daemon, as a service manager would, with its user endpoints and their workers.

        Tasks wait until `start`.
        """
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_TIMEOUT)

        self._clear_up()

    close = stop

    def __enter__(self) -> EndpointDaemon:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _clear_up(self) -> None:
        """Wait for the processes that a killed daemon has left: user endpoints notice it, and end.

        As long as they live, another daemon of the same name would refuse to start.
        """
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

        names = [self.name]
        if (self.folder / "endpoint.json").exists():
            names.append(f"uep.{self.endpoint_id}.*")

        for name in names:
            left = processes.endpoints(self._cloud.mark, self._cloud.folder, name)
            processes.kill_after(_STOP_TIMEOUT, left)

            # for a while, a file that is left would keep another daemon from starting
            for path in Path(self._cloud.folder).glob(f"{name}/daemon.pid"):
                path.unlink(missing_ok=True)

    def _environment(self) -> dict[str, str]:
        """Return the variables that the daemon and its user endpoints have in common.

        With these they find this Python's programs, and are found when they have to end.
        """
        return {
            "PATH": os.pathsep.join([_SCRIPTS, os.environ.get("PATH", os.defpath)]),
            "GLOBUS_COMPUTE_USER_DIR": self._cloud.folder,
            "TMPDIR": str(self._place),
            "CWD": str(self._place),
            **processes.marked_environment(self._cloud.mark),
        }

    def _log_end(self) -> str:
        """Return the last lines of the daemon's output, or else of its log."""
        for path in (self._output, self.log):
            with contextlib.suppress(FileNotFoundError):
                if words := path.read_text(errors="replace").strip():
                    return "\n".join(words.splitlines()[-_LINES_QUOTED:])
        return "it left no word"


_SCRIPTS = os.path.dirname(sys.executable)


def _new_folder(parent: Path, name: str) -> Path:
    """Make and return a new folder in *parent*, called *name* if that fits and is free."""
    # with another name the daemon, or what lies beside its folder, stumbles
    if not re.fullmatch(r"(?!uep\.|t$)[A-Za-z0-9][A-Za-z0-9_-]{0,60}", name):
        name = "endpoint"

    names = [name, *(f"{name}-{number}" for number in range(2, 1000))]
    folder = next(parent / name for name in names if not (parent / name).exists())
    folder.mkdir(mode=0o700)
    return folder


def _install(source: Path, folder: Path, environment: dict[str, str]) -> None:
    """Copy a config, changed and completed for a daemon on a local service.

    Args:
        source: The config's folder.
        folder: The daemon's folder.
        environment: Variables that the daemon's user endpoints start with.
    """
    shutil.copyfile(folders.template_path(source), folder / "user_config_template.yaml.j2")
    if folders.schema_path(source).exists():
        shutil.copyfile(folders.schema_path(source), folder / "user_config_schema.json")

    config = _read_mapping(source / "config.yaml")
    for option in _LEFT_OUT:
        config.pop(option, None)

    variables = _read_mapping(source / "user_environment.yaml")
    # a privileged daemon starts user endpoints with an empty environment, and insists on an
    # address, if it has that option
    if is_privileged():
        if "email" in inspect.signature(folders.CoreEndpointConfig).parameters:
            config.setdefault("email", "root@localhost")
        variables = {**os.environ, **variables}

    # a user endpoint needs no secrets
    no_secrets = {"GLOBUS_COMPUTE_CLIENT_ID": "", "GLOBUS_COMPUTE_CLIENT_SECRET": ""}
    variables = {**variables, **environment, **no_secrets}

    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "user_environment.yaml").touch(mode=0o600)
    (folder / "user_environment.yaml").write_text(yaml.safe_dump(variables))


def _read_mapping(path: Path) -> dict[str, Any]:
    """Return what a YAML file holds: names and values, none if there is no such file."""
    content = yaml.safe_load(path.read_text()) if path.exists() else {}
    if not isinstance(content or {}, dict):
        raise ConfigError(f"{path} has to hold names and values, and not {content!r:.100}")
    return content or {}
