"""The configs of gc_warm, with the endpoint's own functions.

Whatever options come, each arrives at its place or is refused by name.
"""

from __future__ import annotations

import copy
import functools
import json
import math
import os
import pickle
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import jsonschema
import parsl.providers.cluster_provider
import pytest
import yaml
from globus_compute_endpoint.endpoint.config import UserEndpointConfig
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from gc_warm.check import config_rules
from gc_warm.configs import containers, folders, loading, meaning, rendering
from gc_warm.configs.options import parse, read
from gc_warm.exceptions import ConfigError

Values = dict[str, Any]

TEMPLATE = "user_config_template.yaml.j2"
SCHEMA = "user_config_schema.json"
FOLDERS = folders.shipped()
SCHEMAS: dict[str, Values] = {
    name: json.loads((folder / SCHEMA).read_text()) for name, folder in FOLDERS.items()
}
PROPERTIES: dict[str, Values] = {name: schema["properties"] for name, schema in SCHEMAS.items()}
TEMPLATES = {name: (folder / TEMPLATE).read_text() for name, folder in FOLDERS.items()}
CLUSTERS = {"slurm": "#SBATCH", "slurm-gpu": "#SBATCH", "pbs": "#PBS"}
SAME_EVERY_TIME = settings(
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    # an example is a rendering: to find the smallest one that fails would take minutes
    phases=[Phase.explicit, Phase.generate],
)


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Compile each template, check each schema and parse each text once, and ask no scheduler.

    Most of the time would go there, and the result is the same every time.
    """
    compiled: dict[str, Any] = {}
    checked: set[str] = set()
    parsed: dict[str, Any] = {}
    compile_template = jinja2.Environment.compile
    check_schema = jsonschema.Draft202012Validator.check_schema
    parse = yaml.safe_load

    def compile_once(environment: jinja2.Environment, source: str) -> Any:
        if source not in compiled:
            compiled[source] = compile_template(environment, source)
        return compiled[source]

    def check_once(schema: Values) -> None:
        text = json.dumps(schema)
        if text not in checked:
            check_schema(schema)
            checked.add(text)

    def parse_once(text: str) -> Any:
        if text not in parsed:
            parsed[text] = parse(text)
        return copy.deepcopy(parsed[text])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jinja2.Environment, "compile", compile_once)
        patch.setattr(jsonschema.Draft202012Validator, "check_schema", check_once)
        patch.setattr(yaml, "safe_load", parse_once)
        patch.setattr(
            parsl.providers.cluster_provider,
            "execute_wait",
            lambda command, timeout: (127, "", f"{command}: not found"),
        )
        yield


def loaded(name: str, options: Values) -> UserEndpointConfig:
    return loading.load(rendering.render(FOLDERS[name], options), FOLDERS[name] / TEMPLATE)


def refusal(name: str, options: Values) -> str:
    with pytest.raises(ConfigError) as caught:
        rendering.render(FOLDERS[name], options)
    return str(caught.value)


def make_folder(
    path: Path, template: str = "a: 1\n", schema: object = None, core: str = ""
) -> Path:
    path.mkdir(exist_ok=True)
    (path / TEMPLATE).write_text(template)
    (path / "config.yaml").write_text(core)
    if schema is not None:
        (path / SCHEMA).write_text(schema if isinstance(schema, str) else json.dumps(schema))
    return path


@functools.cache  # to understand a pattern takes longer than to make text of it
def text_like(pattern: str, longest: float) -> st.SearchStrategy[str]:
    return st.from_regex(pattern).filter(lambda text: len(text) <= longest)


def any_value(kind: Values) -> st.SearchStrategy[Any]:
    """Whatever a schema allows for one option."""
    low, high = kind.get("minimum"), kind.get("maximum")
    if "enum" in kind:
        return st.sampled_from(kind["enum"])
    if kind["type"] == "integer":
        return st.integers(low, high)
    if kind["type"] == "number":
        return st.integers(low, high) | st.floats(low, high)
    if kind["type"] == "boolean":
        return st.booleans()
    if kind["type"] == "array":
        size = {"min_size": kind.get("minItems", 0), "max_size": min(kind["maxItems"], 4)}
        return st.lists(any_value(kind["items"]), unique=kind.get("uniqueItems", False), **size)
    assert kind["type"] == "string", kind
    return text_like(kind["pattern"], kind.get("maxLength", math.inf))


def no_cores(options: Values) -> bool:
    """Whether some worker is bound to ranges of cores that end before they begin."""
    return any(
        all(int(low) > int(high or low) for low, high in re.findall(r"(\d+)(?:-(\d+))?", cores))
        for cores in options.get("cpu_affinity", "").split(":")[1:]
    )


def limit(kind: Values, end: int) -> st.SearchStrategy[Any]:
    """The lower (0) or upper (-1) end of what a schema allows for one option; any text for text."""
    ends = [kind.get("minimum"), kind.get("maximum")]
    if "enum" in kind:
        return st.just(kind["enum"][end])
    if kind["type"] in ("integer", "number"):
        return st.just(ends[end])
    if kind["type"] == "boolean":
        return st.just([False, True][end])
    if kind["type"] == "array":
        size = [kind.get("minItems", 0), kind["maxItems"]][end]
        return limit(kind["items"], end).map(
            lambda one: [one if isinstance(one, int) else f"{one}{n}" for n in range(size)]
        )
    return any_value(kind)


DRAWS: dict[str, tuple[int, Callable[[Values], st.SearchStrategy[Values]]]] = {
    "none": (1, lambda known: st.just({})),
    "every": (
        3,
        lambda known: st.fixed_dictionaries(
            {name: any_value(kind) for name, kind in known.items()}
        ),
    ),
    "some": (
        6,
        lambda known: st.fixed_dictionaries(
            {}, optional={name: any_value(kind) for name, kind in known.items()}
        ),
    ),
    "lowest": (
        1,
        lambda known: st.fixed_dictionaries({name: limit(kind, 0) for name, kind in known.items()}),
    ),
    "highest": (
        1,
        lambda known: st.fixed_dictionaries(
            {name: limit(kind, -1) for name, kind in known.items()}
        ),
    ),
}


def device_names(name: str, options: Values) -> list[str]:
    gpus = options.get("gpus_per_node", PROPERTIES[name].get("gpus_per_node", {}).get("default", 0))
    return options.get("accelerators") or [str(number) for number in range(gpus)]


def workers(name: str, options: Values) -> int:
    return (
        options.get("workers_per_node")
        or len(device_names(name, options))
        or (2 if name == "local" else 1)
    )


def walltime(options: Values) -> str:
    return str(options.get("walltime", "01:00:00"))


def wall_seconds(options: Values) -> int:
    hours, minutes, _ = walltime(options).split(":")
    return int(hours) * 3600 + int(minutes) * 60


def refusals(name: str, options: Values) -> list[str]:
    """The rules between options that these options break, as what the template says of each."""
    devices = device_names(name, options)
    low_and_high = options.get("worker_port_range")
    wall = wall_seconds(options)

    broken = []
    if low_and_high and low_and_high[0] > low_and_high[1]:
        broken.append(f"worker_port_range {low_and_high} has to begin with its lower end")
    if devices and workers(name, options) % len(devices):
        of = "gpus_per_node" if name == "local" else "the number of devices"
        broken.append(
            f"workers_per_node ({workers(name, options)}) has to be a multiple of {of} "
            f"({len(devices)})"
        )
    if options.get("bind_cores") and "cpu_affinity" in options:
        broken.append(
            "bind_cores and cpu_affinity both say to which cores workers are bound: give one of "
            "them"
        )
    needs_quotes = [one for one in options.get("python_path", []) if shlex.quote(one) != one]
    if "container_uri" in options and needs_quotes:
        broken.append(
            "python_path has a folder that cannot be named to a container: a shell would need "
            "quotes for it"
        )
    bound = options.get("cpu_affinity", "").count(":")
    if bound and bound != workers(name, options):
        broken.append(
            f"cpu_affinity is for {bound} workers, and a node has {workers(name, options)}"
        )
    if name in CLUSTERS and options.get("task_timeout", 0) + min(wall // 10, 60) >= wall:
        broken.append(
            f"task_timeout ({options['task_timeout']} s) leaves no time before walltime "
            f"({walltime(options)})"
        )
    return broken


def reconcile(name: str, options: Values) -> Values:
    """The same options, changed where they break a rule."""
    if "worker_port_range" in options:
        options["worker_port_range"].sort()
    if devices := device_names(name, options):
        # not above the largest allowed
        options["workers_per_node"] = max(workers(name, options) // len(devices), 1) * len(devices)
    if "container_uri" in options and "python_path" in options:
        options["python_path"] = [
            re.sub(r"[^\w@%+=,./-]", "_", folder, flags=re.ASCII)
            for folder in options["python_path"]
        ]
    if "cpu_affinity" in options:
        options["bind_cores"] = False
        parts = options["cpu_affinity"].split(":")[1:]
        chosen = [parts[rank % len(parts)] for rank in range(workers(name, options))]
        options["cpu_affinity"] = ":".join(["list", *chosen])
    if name in CLUSTERS and "task_timeout" in options:
        options["task_timeout"] = min(options["task_timeout"], wall_seconds(options) // 2)
    return options


@st.composite
def all_options(draw: st.DrawFn, name: str, how: str) -> Values:
    options = draw(DRAWS[how][1](PROPERTIES[name]))
    either = SCHEMAS[name].get("not", {}).get("required", [])
    if either and set(either) <= set(options):
        del options[draw(st.sampled_from(either))]
    return reconcile(name, options) if draw(st.booleans()) else options


@pytest.mark.parametrize("times", [1, pytest.param(5, marks=pytest.mark.engine)])
@pytest.mark.parametrize("how", DRAWS)
@pytest.mark.parametrize("name", FOLDERS)
def test_all_that_a_schema_allows_is_rendered_loaded_and_means_what_the_options_say(
    name: str, how: str, times: int, tmp_path: Path
) -> None:
    @settings(SAME_EVERY_TIME, max_examples=DRAWS[how][0] * times)
    @given(all_options(name, how))
    def check(options: Values) -> None:
        if broken := refusals(name, options):
            found = re.fullmatch(r"(.+):\d+: (.+)", refusal(name, options))
            assert found
            assert found[1] == str(FOLDERS[name] / TEMPLATE)
            assert found[2] in broken
            return

        examined = config_rules.examine(
            rendering.render(FOLDERS[name], options), FOLDERS[name] / TEMPLATE
        )
        # a program that the user starts in the background
        asked_for = {"GCW022"} if "&" in options.get("environment", "") else set()
        asked_for |= {"GCW007"} if no_cores(options) else set()
        asked_for |= {"GCW041"} if has_no_room_for_handover(options) else set()
        # managers on some of the nodes only, or with one core each
        asked_for |= (
            {"GCW010", "GCW039"} if options.get("launcher_overrides", "").strip() else set()
        )
        assert {problem.rule for problem in examined.findings} <= asked_for
        config = examined.config
        assert config is not None
        means_what_is_said(name, options, meaning.warmth_profile(config))
        has_what_is_said(name, options, config)
        if name in CLUSTERS:
            asks_for_what_is_said(name, options, config.engine.executor.provider, tmp_path)

    check()


def has_no_room_for_handover(options: Values) -> bool:
    jobs = options.get("max_jobs", 1) + options.get("overlap_jobs", 0)
    return bool(options.get("handover")) and jobs < 2


def means_what_is_said(name: str, options: Values, profile: meaning.WarmthProfile) -> None:
    nodes = options.get("nodes", 1)
    jobs = options.get("max_jobs", 1)
    wall = wall_seconds(options) if name in CLUSTERS else None
    assert profile.copies_per_node == workers(name, options)
    # options of srun's own, such as -n4, may ask for fewer managers
    has_own = bool(options.get("launcher_overrides", "").strip())
    managers = profile.managers_per_job if has_own else nodes
    assert profile.copies == workers(name, options) * managers * jobs
    assert (profile.nodes_per_job, profile.max_jobs, profile.walltime) == (nodes, jobs, wall)

    # never less, and a tenth more at most
    asked = options.get("keep_warm", 10)
    assert 60 * asked - 0.001 <= profile.keep_warm <= 60 * asked + max(5, 6 * asked) + 0.001
    assert profile.endpoint_idle >= profile.keep_warm
    assert profile.task_timeout == options.get("task_timeout")
    overlap = options.get("overlap_jobs", 0) if options.get("handover") else None
    assert profile.overlap_jobs == overlap

    costs = [profile.idle_hour, profile.idle_cost, profile.worst_case]
    if wall is None:
        assert profile.drain is None
        assert costs == [None, None, None]
    else:
        assert profile.drain is not None
        assert 0 < profile.drain < wall - (profile.task_timeout or 0)
        until_cold = min(profile.keep_warm + (30 if asked >= 5 else 5), wall)
        assert costs == pytest.approx(
            [nodes * jobs, nodes * jobs * until_cold / 3600, nodes * jobs * wall / 3600]
        )


def has_what_is_said(name: str, options: Values, config: UserEndpointConfig) -> None:
    executor = config.engine.executor
    each = workers(name, options) // (len(device_names(name, options)) or 1)
    devices = [device for device in device_names(name, options) for _ in range(each)]
    given_names = device_names(name, options)
    gpus = options.get("gpus_per_node", len(given_names))
    is_amd = options.get("amd_gpus", False)
    share = 1 if is_amd else workers(name, options) // (gpus or 1)
    if options.get("accelerators") and share > 1:
        shift = each if len(given_names) == gpus else 1
        devices = [
            str(int(device) * share + rank % shift) if device.isdigit() else device
            for rank, device in enumerate(devices)
        ]
    if devices and not is_amd and not options.get("accelerators"):
        devices = [str(number) for number in range(workers(name, options))]
    low, high = options.get("worker_port_range", [0, 0])

    assert executor.available_accelerators == devices
    assert executor.max_workers_per_node == (len(devices) or workers(name, options))
    assert config.amqp_port == options.get("amqp_port")
    assert low <= (executor.worker_port or 0) <= high
    address = options.get("address", "hostname")
    assert executor.address == ("127.0.0.1" if address == "hostname" else address)
    assert executor.provider.min_blocks == 0
    assert config.engine.run_in_sandbox is options.get("run_in_sandbox", False)
    if name in CLUSTERS:
        assert executor.cores_per_worker == options.get("cores_per_worker", 1)
        block = "block" if options.get("bind_cores") else "none"
        assert executor.cpu_affinity == options.get("cpu_affinity", block)
        has_the_container_that_is_said(options, config.engine)
    assert executor.provider.worker_init.removesuffix("\n") + "\n" in (
        shell_text(name, options),
        shell_text(name, options) + "\n",
    )


def has_the_container_that_is_said(options: Values, engine: Any) -> None:
    image = options.get("container_uri")
    assert engine.container_uri == image
    assert engine.container_type == (options.get("container_type", "podman") if image else None)
    if image:
        words = engine.container_cmd_options.split()
        more = options.get("container_cmd_options", "").split()
        assert words[len(words) - len(more) :] == more
        for folder in options.get("python_path", []):
            assert f"--volume {folder}:{folder}:ro " in engine.container_cmd_options
        for variable in meaning.exports(engine.executor.provider):
            if variable.startswith(("PYTHONPATH", "GC_", "PARSL_")):
                assert not containers.hides(engine, variable)


def shell_text(name: str, options: Values) -> str:
    # an empty line on both sides keeps its spaces, and a backslash at its end
    lines = ["", options.get("environment", ""), ""]
    if options.get("handover"):
        lines.insert(0, f"# gc_warm.hooks.handover overlap_jobs={options.get('overlap_jobs', 0)}")
    if name == "pbs":
        lines.insert(0, """trap 'rm -f "${JOBNAME-}.nodes"' EXIT""")
        lines.append(
            f"export PARSL_CORES={workers(name, options) * options.get('cores_per_worker', 1)}"
        )
    if options.get("python_path"):
        folders = ":".join(shlex.quote(folder) for folder in options["python_path"])
        lines.append(f'export PYTHONPATH={folders}"${{PYTHONPATH:+:$PYTHONPATH}}"')
    if options.get("task_timeout"):
        lines.append(f"export GC_TASK_TIMEOUT={options['task_timeout']}")
    node = options.get("preload_node", [])
    words = [f"--preload-node={','.join(node)}"] * bool(node)
    warm_first = options.get("warm_first", False)
    words += ["--survive-idle-kill"] * (options.get("survive_idle_kill", False) or warm_first)
    words += ["--warm-first"] * warm_first
    words += ["--amd-gpus"] * options.get("amd_gpus", False)
    words += options.get("preload", [])
    if words:
        otherwise = "echo 'echo gc_warm cannot be started here: workers start cold >&2'"
        boot = f"globus-compute-endpoint python-exec gc_warm.worker.boot {' '.join(words)}"
        if "container_uri" in options:
            kind = options.get("container_type", "podman")
            more = options.get("container_cmd_options", "")
            image = options["container_uri"]
            boot = f"{kind} run --rm --network host {more} {image} {boot}"
        lines.append(f'eval "$({boot} || {otherwise})"')
    if name in CLUSTERS:
        lines.append(f"export GC_WARM_SECONDS_LEFT=$(({wall_seconds(options)} - SECONDS))")
    return "\n".join(lines) + "\n"


def job(provider: Any, folder: Path) -> tuple[str, str]:
    """The command that would submit a job, and the job's script.

    The script's name, which has the time in it, is ``SCRIPT``.
    """
    commands: list[str] = []
    provider.script_dir = str(folder)

    def answer(command: str) -> tuple[int, str, str]:
        commands.append(command)
        return 0, "Submitted batch job 7\n", ""

    provider.execute_wait = answer
    provider.submit("the command", 1)
    path = Path(commands[0].split()[-1])
    script = path.read_text()
    path.unlink()

    script = script.replace(str(path), "SCRIPT").replace(path.name, "NAME")
    return commands[0].replace(str(path), "SCRIPT"), script


def asks_for_what_is_said(name: str, options: Values, provider: Any, folder: Path) -> None:
    command, script = job(provider, folder)
    kind = CLUSTERS[name]
    cores = workers(name, options) * options.get("cores_per_worker", 1)

    lines = script.split("\n\nexport JOBNAME=")[0].split("\n")
    head = [line for line in lines if line.startswith(f"{kind} ")]
    lines = options.get("environment", "").split("\n")
    in_shell_text = [line for line in lines if line.startswith(f"{kind} ")]
    more = [line for line in options.get("scheduler_options", "").split("\n") if line]
    asked = slurm_head(name, options, cores) if kind == "#SBATCH" else pbs_head(options, cores)
    assert sorted(head) == sorted([*asked, *more, *in_shell_text])

    flags = [
        word
        for flag, key in [("-q", "queue"), ("-A", "account")]
        if key in options
        for word in (flag, options[key])
    ]
    submit = ["sbatch"] if kind == "#SBATCH" else ["qsub", *flags]
    assert command.split() == [*submit, "SCRIPT"]

    launch = next(
        line for line in reversed(script.split("\n")) if line.startswith(("srun ", "mpiexec "))
    )
    chosen = options.get("launcher_overrides", "")
    if kind == "#SBATCH":
        overrides = f"-c {cores} --kill-on-bad-exit=0 --wait=0 {chosen}"
        assert launch.startswith(f"srun --ntasks {options.get('nodes', 1)} -l {overrides} bash ")
    else:
        bind, overrides = mpiexec_words(options, cores)
        assert launch.startswith(f"mpiexec {bind} none {overrides} {chosen} -n $WORKERCOUNT ")


def slurm_head(name: str, options: Values, cores: int) -> list[str]:
    asked: Values = {
        key: options[key]
        for key in ("partition", "account", "qos", "constraint", "reservation")
        if key in options
    }
    asked |= {
        "job-name": "NAME",
        "output": "SCRIPT.stdout",
        "error": "SCRIPT.stderr",
        "ntasks-per-node": 1,
        "cpus-per-task": cores,
    }
    asked |= {"nodes": options.get("nodes", 1), "time": wall_seconds(options) // 60}
    if name == "slurm-gpu":
        asked["gpus-per-node"] = options.get("gpus_per_node") or len(
            options.get("accelerators", ["one"])
        )
    if "gpu_type" in options:
        asked["gpus-per-node"] = f"{options['gpu_type']}:{asked['gpus-per-node']}"
    if "memory" in options:
        asked["mem"] = f"{options['memory']}g"
    return [f"#SBATCH --{key}={value}" for key, value in asked.items()]


def pbs_head(options: Values, cores: int) -> list[str]:
    select = f"{options.get('nodes', 1)}:ncpus={cores}"
    gpus = options.get("gpus_per_node", len(options.get("accelerators", [])))
    select += f":ngpus={gpus}" if gpus else ""
    select += f":mem={options['memory']}gb" if "memory" in options else ""
    select += f":{options['select_options']}" if "select_options" in options else ""
    words = [
        "-S /bin/bash",
        "-N NAME",
        "-m n",
        f"-l walltime={walltime(options)}",
        f"-l select={select}",
    ]
    if options.get("nodes", 1) > 1 and "place=" not in options.get("scheduler_options", ""):
        words.append("-l place=scatter")
    return [f"#PBS {word}" for word in [*words, "-o SCRIPT.stdout", "-e SCRIPT.stderr"]]


def mpiexec_words(options: Values, cores: int) -> tuple[str, str]:
    return {
        "pals": ("--cpu-bind", f"--ppn 1 --depth {cores}"),
        "openmpi": ("--bind-to", "--map-by ppr:1:node"),
        "mpich": ("-bind-to", "-ppn 1"),
    }[options.get("mpiexec", "pals")]


HOSTILE = [
    # quotes, line ends and tabs
    "'",
    '"',
    "it's",
    'say "hi"',
    "'\"'\"'",
    "two\nlines",
    "end\n",
    "\nbegin",
    "two\r\nlines",
    "end\r",
    "tab\tbed",
    "end\t",
    "\tbegin",
    # words and signs of a shell
    "$(id)",
    "`id`",
    "$HOME",
    "${HOME}",
    "$'\\n'",
    "!!",
    "a;id",
    "a|id",
    "a&&id",
    "a&",
    "a>b",
    "a<b",
    "a*b",
    "a?b",
    "~",
    "~root",
    "(id)",
    # tags of Jinja
    "{{ 7*7 }}",
    "{% raw %}",
    "{% endraw %}",
    "{# #}",
    "{{",
    "}}",
    "{%",
    "{{ _GC.env }}",
    "{{ ''.__class__ }}",
    # signs of YAML
    "# comment",
    "a # comment",
    "a #",
    ": ",
    "a: b",
    "a:",
    "- item",
    "[a, b]",
    "{a: b}",
    "|",
    ">-",
    "&a",
    "*a",
    "%YAML 1.2",
    "---",
    "...",
    # words of YAML
    "!!python/object:os.system",
    "!!python/object/apply:os.system [id]",
    "!!binary aWQ=",
    "<<",
    "=",
    "@",
    "null",
    "true",
    "12:30:00",
    # escapes, and places of formats
    "\\",
    "end\\",
    "\\\\",
    "\\n",
    "\\x41",
    "\\u0041",
    "\\U00000041",
    "\\\\u0041",
    '\\"',
    "\\'",
    "a\\\nb",
    "\\ ",
    "%(a)s",
    "%s",
    "{0}",
    # more than ASCII
    "\U0001f47e",
    "a\U0001f469\u200d\U0001f680b",
    "e\u0301",
    "\u00e9",
    "\u202eabc",
    "\ufeff",
    "a\ufeff",
    "\u00a0",
    "\u3000",
    "\ufffd",
    # not to be printed, or not to be in YAML
    "\x00",
    "\x07",
    "\x1b[31m",
    "\x7f",
    "\x85",
    "\u2028",
    "\u2029",
    "\ufffe",
    "\uffff",
    "\U0001ffff",
    "\ue000",
    "\ud7ff",
    "\u0600",
    # spaces, and length
    " begin",
    "end ",
    "a  b",
    " ",
    "x" * 4000,
    "\\" * 999,
    '"' * 999,
    "a" * 200 + " " + "b" * 200,
]
BREAKING_OUT = [
    '"\nengine:\n  type: ThreadPoolEngine\n',
    '"\n\nengine: {type: ThreadPoolEngine}\n#',
    '"\n    exclusive: true\n    account: "root',
    '", exclusive: true, account: "root',
    '"}\nhigh_assurance: false\n',
    '\\"\nallowed_functions: []\n#',
    '\\\\"\nallowed_functions: []\n#',
    "\\u0022\nallowed_functions: []\n#",
    "\\x22\nallowed_functions: []\n#",
    '\\u005c"\nallowed_functions: []\n#',
    '"\r\nallowed_functions: []\r\n#',
    '"\u2028allowed_functions: []\u2028#',
    '"\x85allowed_functions: []\x85#',
    '" # ',
    '" # "',
    '"\\\n',
    "'\"\n",
    '"\n---\nengine: {type: ThreadPoolEngine}\n',
    '"\n...\n---\n',
    '" !!python/object/apply:os.system ["id"]',
    '"\n<<: *a\n',
    '{{ "\\"" }}\nallowed_functions: []',
    '"\n{% set environment = "id" %}',
    "x\n#SBATCH --uid=0\n",
    "x\n#PBS -W sandbox=PRIVATE\n",
    '"\n  container_type: custom\n  container_cmd_options: "id',
    '"\n      launcher: {type: WrappedLauncher, prepend: id}\n',
]
PLACES = {
    "environment": "engine.provider.worker_init",
    "python_path": "engine.provider.worker_init",
    "preload": "engine.provider.worker_init",
    "preload_node": "engine.provider.worker_init",
    "account": "engine.provider.account",
    "partition": "engine.provider.partition",
    "queue": "engine.provider.queue",
    "qos": "engine.provider.qos",
    "constraint": "engine.provider.constraint",
    "scheduler_options": "engine.provider.scheduler_options",
    "reservation": "engine.provider.scheduler_options",
    "select_options": "engine.provider.select_options",
    "container_type": "",
    "container_uri": "engine.container_uri",
    "container_cmd_options": "engine.container_cmd_options",
    "gpu_type": "engine.provider.scheduler_options",
    "cpu_affinity": "engine.cpu_affinity",
    "launcher_overrides": "engine.provider.launcher.overrides",
    "interface": "engine.address.ifname",
    "address": "engine.address",
    "accelerators": "engine.available_accelerators.0",
    "mpiexec": "",
    "walltime": "engine.provider.walltime",
}
NOT_FREE = {
    "address",
    "container_cmd_options",
    "container_type",
    "container_uri",
    "cpu_affinity",
    "mpiexec",
    "preload",
    "preload_node",
    "walltime",
}
"""Options that are text, but no text of which a part can be chosen freely.

Those of containers arrive in several places, and have no character that means anything there.
"""


def text_options(name: str) -> list[str]:
    kinds = {option: kind.get("items", kind) for option, kind in PROPERTIES[name].items()}
    return [
        option
        for option, kind in kinds.items()
        if kind.get("type") == "string" or isinstance(kind.get("enum", [0])[0], str)
    ]


def dressed(name: str, option: str, text: str) -> Any:
    """The text as a value of an option, with what the option cannot be without."""
    if option == "python_path":
        return [f"/{text}"]
    if option in ("accelerators", "preload", "preload_node"):
        return [text]
    if option == "launcher_overrides":
        return f"-{text}"
    if option == "select_options":
        return f"a={text}"
    return f"{CLUSTERS[name]} {text}" if option == "scheduler_options" else text


def arrived(name: str, option: str, text: str) -> str:
    value = dressed(name, option, text)
    if option == "python_path":
        return shlex.quote(value[0])
    return str(value[0] if isinstance(value, list) else value)


def leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, list | tuple):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        yield place, value
        return

    for key, part in value.items():
        yield from leaves(part, f"{place}.{key}" if place else str(key))


def attributes(config: UserEndpointConfig) -> Values:
    """All that can be compared of what the loader makes."""
    executor = config.engine.executor
    parts = {
        "config": config,
        "engine": config.engine,
        "executor": executor,
        "provider": executor.provider,
    }
    found = {
        name: {key: value for key, value in vars(part).items() if key != "source_content"}
        for name, part in parts.items()
    }
    found["launcher"] = vars(executor.provider.launcher)
    return {
        place: value
        for place, value in leaves(found)
        if isinstance(value, str | int | float | None)
    }


def is_refused(name: str, option: str, value: Any) -> bool:
    """Whether the schema refuses it, as the endpoint would."""
    return bool(list(jsonschema.Draft202012Validator(SCHEMAS[name]).iter_errors({option: value})))


def replaced(found: Values, name: str, texts: dict[str, str]) -> Values:
    """What was found for harmless texts, with others in their places."""
    found = dict(found)
    for option, text in texts.items():
        for place, value in found.items():
            if isinstance(value, str):
                found[place] = value.replace(
                    arrived(name, option, f"harmless-{option}"[:15]), arrived(name, option, text)
                )
    return found


@pytest.mark.parametrize("name", FOLDERS)
def test_every_option_of_text_is_among_those_that_are_tried(name: str) -> None:
    assert set(text_options(name)) <= set(PLACES)
    harmless = {
        option: dressed(name, option, f"harmless-{option}"[:15])
        for option in text_options(name)
        if option not in NOT_FREE
    }
    found = dict(leaves(yaml.safe_load(rendering.render(FOLDERS[name], harmless))))
    for option in harmless:
        assert [
            place for place, value in found.items() if f"harmless-{option}"[:15] in str(value)
        ] == [PLACES[option]]


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        *((name, BREAKING_OUT) for name in FOLDERS),
        pytest.param("slurm-gpu", HOSTILE, marks=pytest.mark.engine),
    ],
    ids=[*(f"{name}-breaking out" for name in FOLDERS), "slurm-gpu-hostile"],
)
def test_hostile_text_is_refused_by_name_or_arrives_unchanged_in_one_place_only(
    name: str, texts: list[str]
) -> None:
    free = [option for option in text_options(name) if option not in NOT_FREE]
    harmless = rendering.render(
        FOLDERS[name], {option: dressed(name, option, f"harmless-{option}"[:15]) for option in free}
    )
    read = dict(leaves(yaml.safe_load(harmless)))
    made = attributes(loading.load(harmless, ""))

    for text in texts:
        unusable = [
            option
            for option in text_options(name)
            if is_refused(name, option, dressed(name, option, text))
        ]
        usable = [option for option in free if option not in unusable]
        if unusable:
            said = refusal(name, {option: dressed(name, option, text) for option in unusable})
            assert [option for option in unusable if f"options: {option}: " not in said] == []

        options = {option: f"harmless-{option}"[:15] for option in free}
        options |= dict.fromkeys(usable, text)
        if "environment" in usable:
            # a test of its own has those that begin with a space
            options["environment"] = text.lstrip(" ")
        rendered = rendering.render(
            FOLDERS[name],
            {option: dressed(name, option, value) for option, value in options.items()},
        )
        assert dict(leaves(yaml.safe_load(rendered))) == replaced(read, name, options), text
        if texts is BREAKING_OUT:
            assert attributes(loading.load(rendered, "")) == replaced(made, name, options), text


def run_in_bash(script: str, folder: Path, **environment: str) -> str:
    path = os.environ["PATH"]
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        env={"PATH": path, **environment},
        stdout=subprocess.PIPE,
        timeout=120,
        check=True,
    )
    return os.fsdecode(done.stdout)


def commands(folder: Path) -> list[str]:
    """Texts that would make a file in the folder if a shell looked at them."""
    touch = f"touch {folder}/canary"
    ends = [
        "$({})",
        "`{}`",
        "';{};'",
        '";{};"',
        "'\"'\"';{};'",
        '$(({}))"$({})"',
        "\\$({})",
        "\\'; {} #",
        "&{}&",
        "|{}",
        "${{x:-$({})}}",
    ]
    return [end.format(touch, touch) for end in ends]


@pytest.mark.parametrize(
    "inherited", [{}, {"PYTHONPATH": "/opt/$(id) *'\"\\"}], ids=["none", "one"]
)
@pytest.mark.parametrize("name", FOLDERS)
def test_folders_reach_the_import_path_in_a_real_shell_and_nothing_in_them_is_executed(
    name: str, inherited: dict[str, str], tmp_path: Path
) -> None:
    tried = [f"/{text}" for text in [*HOSTILE, *BREAKING_OUT, *commands(tmp_path)]]
    folders = [folder for folder in tried if not is_refused(name, "python_path", [folder])]
    assert len(folders) > 60

    for some in (folders[:60], folders[60:]):
        config = loaded(name, {"python_path": some, "environment": "set -eu"})
        script = config.engine.executor.provider.worker_init
        found = run_in_bash(f'{script}\nprintf %s "$PYTHONPATH"', tmp_path, **inherited)
        assert found == ":".join([*some, *inherited.values()])
    assert list(tmp_path.iterdir()) == []


def test_any_folder_at_all_reaches_the_import_path(tmp_path: Path) -> None:
    @settings(SAME_EVERY_TIME, max_examples=25)
    @given(any_value(PROPERTIES["local"]["python_path"]))
    @example(["/a", "/b c", "/'"])
    def check(folders: list[str]) -> None:
        script = worker_init("local", {"python_path": folders})
        assert run_in_bash(f'{script}\nprintf %s "${{PYTHONPATH-}}"', tmp_path) == ":".join(folders)

    check()


HARMLESS_IN_A_SHELL = set(
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.,:=@+/-%"
)
ALSO_ALLOWED = {
    "constraint": set("&|*()[]"),
    "launcher_overrides": {" "},
    "container_cmd_options": {" "},
}
"""A constraint is only in a comment of the job script, and launchers take several words."""


def test_no_character_that_a_shell_knows_is_let_into_what_reaches_one() -> None:
    reach_a_shell = (
        "account",
        "partition",
        "queue",
        "qos",
        "constraint",
        "reservation",
        "interface",
        "launcher_overrides",
        "cpu_affinity",
        "gpu_type",
        "container_uri",
        "container_cmd_options",
    )
    characters = [
        chr(code)
        for code in [
            *range(0x3100),
            *range(0xD7FF, 0xE001),
            *range(0xFE00, 0x10010),
            0x1F47E,
            0x10FFFF,
        ]
    ]
    found = {
        (option, known[option]["pattern"])
        for known in PROPERTIES.values()
        for option in reach_a_shell
        if option in known
    }
    assert {option for option, _ in found} == set(reach_a_shell)
    for option, pattern in found:
        search = re.compile(pattern).search
        let_in = {
            c
            for c in characters
            for text in (c, f"a{c}", f"{c}a", f"a{c}a", f"a{c}{c}", f"a\n{c}")
            if search(text)
        }
        assert let_in <= HARMLESS_IN_A_SHELL | ALSO_ALLOWED.get(option, set()), option


@pytest.mark.parametrize("name", CLUSTERS)
def test_overrides_of_a_launcher_are_options_only(name: str) -> None:
    fits = re.compile(PROPERTIES[name]["launcher_overrides"]["pattern"]).search
    assert all(map(fits, ["", " ", "--no-vni", "-n 4 --mem-bind=local", " --cpu-bind=list:0-7 -v"]))

    for text in (
        "/home/me/program",
        "program",
        "-n 4 program",
        "--prolog=/a",
        "--task-prolog=a",
        "--task-ep=a",
        "-v --epilog=a",
        "--multi-prog",
        "-v\n",
        "-" + "a-" * 5000 + "/",
    ):
        assert not fits(text), text


@pytest.mark.parametrize("name", CLUSTERS)
def test_no_scheduler_options_leave_the_head_of_the_job_script(name: str) -> None:
    kind = CLUSTERS[name]
    ends = [
        "\n",
        "\n\n",
        "\r",
        "\r\n",
        "\x0b",
        "\x0c",
        "\x1c",
        "\x1d",
        "\x1e",
        "\x85",
        "\u2028",
        "\u2029",
    ]
    for end in ends:
        for text in (
            f"{kind} -a{end}",
            f"{kind} -a{end}id",
            f"{end}id",
            f"{end}{kind} -a",
            f"{kind}{end}",
            f"{kind} -a{end}{kind} -b{end}id\n",
        ):
            if not is_refused(name, "scheduler_options", text):
                assert all(line.startswith(f"{kind} ") for line in text.splitlines())
    assert is_refused(name, "scheduler_options", "id")
    assert is_refused(name, "scheduler_options", f"{kind}")
    assert not is_refused(name, "scheduler_options", f"{kind} -a\n{kind} -b\n")


@pytest.mark.parametrize("name", CLUSTERS)
def test_no_more_than_four_numbers_are_an_address_and_no_more_than_a_time_a_walltime(
    name: str,
) -> None:
    for address in (
        "",
        "1.2.3",
        "1.2.3.4\n",
        "1.2.3.4 ",
        "1.2.3.4;id",
        "a.b.c.d",
        "\u0661.2.3.4",
        "::1",
        "localhost",
        "hostname\n",
        "hostname1.2.3.4",
    ):
        assert is_refused(name, "address", address)
    assert not is_refused(name, "address", "hostname")
    for walltime in (
        "",
        "0:00:00",
        "00:00:00",
        "0000:00:00",
        "1:60:00",
        "1:00",
        "1:00:01",
        "1:00:00\n",
        "-1:00:00",
        "1-00:00:00",
        "\u0661:00:00",
    ):
        assert is_refused(name, "walltime", walltime)
    assert not is_refused(name, "walltime", "9999:59:00")


def test_cores_gpus_and_memory_are_not_selected_twice() -> None:
    for text in ("ncpus=4", "gpu_type=a100:ngpus=1", "mem=1gb:system=polaris", "1:system=polaris"):
        assert is_refused("pbs", "select_options", text)
    assert not is_refused("pbs", "select_options", "system=polaris:gpu_mem=40gb")


@pytest.mark.parametrize("name", FOLDERS)
def test_text_may_be_as_long_as_the_schema_says_and_no_longer(name: str) -> None:
    limits = {
        option: kind["maxLength"]
        for option, kind in PROPERTIES[name].items()
        if "maxLength" in kind
    }
    assert limits
    for option, most in limits.items():
        start = f"{CLUSTERS[name]} " if option == "scheduler_options" else ""
        longest = start + "x" * (most - len(start))
        assert longest in rendering.render(FOLDERS[name], {option: longest})
        assert refusal(name, {option: longest + "x"}).startswith(f"options: {option}: ")


def worker_init(name: str, options: Values) -> str:
    document = yaml.safe_load(rendering.render(FOLDERS[name], options))
    return str(document["engine"]["provider"]["worker_init"])


@pytest.mark.parametrize("name", CLUSTERS)
def test_job_is_told_the_walltime_less_what_it_has_used(name: str, tmp_path: Path) -> None:
    # what the environment takes, counted by the shell, is a hundred seconds and a bit
    options = {"walltime": "10:30:00", "environment": "set -eu\nSECONDS=$((SECONDS + 100))"}
    script = worker_init(name, options | {"preload": ["my_tables"], "task_timeout": 60})
    worker = "printenv GC_WARM_SECONDS_LEFT"
    left, least = run_in_bash(f"{script}\n{worker}\necho $((37800 - SECONDS))", tmp_path).split()
    assert int(least) <= int(left) <= 37700


def test_nobody_tells_when_workers_of_one_machine_end(tmp_path: Path) -> None:
    assert "GC_WARM_SECONDS_LEFT" not in run_in_bash(f"{worker_init('local', {})}\nenv", tmp_path)


def test_environment_may_begin_with_spaces() -> None:
    assert [
        name
        for name in FOLDERS
        if "\n  two\n    four\n" not in worker_init(name, {"environment": "  two\n    four"})
    ] == []


def test_environment_that_ends_with_a_backslash_leaves_the_import_path_alone(
    tmp_path: Path,
) -> None:
    script = worker_init("local", {"environment": "true \\", "python_path": ["/a"]})
    assert run_in_bash(f'{script}\nprintf %s "${{PYTHONPATH-}}"', tmp_path) == "/a"


@pytest.mark.parametrize("option", ["environment", "python_path", "scheduler_options"])
def test_half_a_surrogate_pair_is_refused_by_name(option: str) -> None:
    assert refusal("slurm", {option: dressed("slurm", option, "a\ud800b")}).startswith(
        f"options: {option}: "
    )


@pytest.mark.parametrize("name", FOLDERS)
def test_whole_number_with_a_point_works_or_is_refused_by_name(name: str) -> None:
    for option in [
        option for option, kind in PROPERTIES[name].items() if kind.get("type") == "integer"
    ]:
        number = 600 if option == "task_timeout" else 2
        try:
            made = meaning.warmth_profile(loaded(name, {option: float(number)}))
        except ConfigError as error:
            assert str(error).startswith(f"options: {option}: ")  # noqa: PT017
        else:
            assert made == meaning.warmth_profile(loaded(name, {option: number}))


@pytest.mark.parametrize("name", ["slurm-gpu", "pbs"])
@pytest.mark.parametrize(
    ("options", "names", "devices"),
    [
        ({"accelerators": ["0", "1"], "workers_per_node": 4}, "0 1 2 3", "0 0 1 1"),
        ({"accelerators": ["1", "0"], "workers_per_node": 4}, "2 3 0 1", "1 1 0 0"),
        (
            {"accelerators": ["0", "3"], "gpus_per_node": 4, "workers_per_node": 8},
            "0 0 0 0 6 6 6 6",
            "0 0 0 0 3 3 3 3",
        ),
        ({"accelerators": ["0.0", "MIG-a"], "workers_per_node": 4}, "0.0 0.0 MIG-a MIG-a", ""),
        ({"amd_gpus": True, "gpus_per_node": 2, "workers_per_node": 4}, "0 0 1 1", ""),
        ({"amd_gpus": True, "accelerators": ["1", "0"], "workers_per_node": 4}, "1 1 0 0", ""),
    ],
)
def test_named_devices_are_those_that_workers_get(
    name: str, options: Values, names: str, devices: str
) -> None:
    config = loaded(name, options)
    assert config.engine.executor.available_accelerators == names.split()
    assert list(meaning.warmth_profile(config).devices) == (devices or names).split()
    text = rendering.render(FOLDERS[name], options)
    assert config_rules.examine(text, "x").findings == []


def test_name_of_a_device_is_no_option_of_the_manager() -> None:
    assert is_refused("slurm-gpu", "accelerators", ["--debug"])


def test_number_above_255_is_no_part_of_an_address() -> None:
    assert is_refused("slurm", "address", "256.1.1.1")


def test_as_many_workers_as_the_schema_allows_start_on_a_small_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    most = PROPERTIES["local"]["workers_per_node"]["maximum"]
    assert meaning.warmth_profile(loaded("local", {"workers_per_node": most})).copies == most


def line_of(name: str, option: str) -> int:
    lines = (FOLDERS[name] / SCHEMA).read_text().splitlines()
    return next(
        number for number, line in enumerate(lines, 1) if line.startswith(f'    "{option}":')
    )


def complaint(name: str, option: str, what: str) -> str:
    place = f"{FOLDERS[name] / SCHEMA}:{line_of(name, option)}"
    return f"options: {option}: {what} {PROPERTIES[name][option]['description']} ({place})"


FROM_0 = "write one from 0 to 10080"
MISFITS = [
    ("keep_warm", math.nan, f".nan is not a number: {FROM_0}."),
    ("keep_warm", "10", f"'10' is not a number: {FROM_0}, in digits and without quotes."),
    ("keep_warm", "1e400", f"'1e400' is not a number: {FROM_0}, in digits and without quotes."),
    ("keep_warm", True, f"true is not a number: {FROM_0}."),
    ("keep_warm", None, f"null is not a number: {FROM_0}, or leave the option out."),
    ("keep_warm", [1], f"[1] is not a number: {FROM_0}."),
    ("keep_warm", math.inf, ".inf is greater than the maximum of 10080."),
    ("keep_warm", -math.inf, "-.inf is less than the minimum of 0."),
    ("keep_warm", 10**400, f"{'1' + 17 * '0'}...{19 * '0'} is greater than the maximum of 10080."),
    ("keep_warm", -1, "-1 is less than the minimum of 0."),
    ("keep_warm", 10081, "10081 is greater than the maximum of 10080."),
    ("workers_per_node", 1.5, "1.5 is not a whole number: write one from 1 to 1024."),
    ("workers_per_node", math.nan, ".nan is not a whole number: write one from 1 to 1024."),
    ("workers_per_node", math.inf, ".inf is not a whole number: write one from 1 to 1024."),
    ("task_timeout", False, "false is not a whole number: write one from 1 to 604800."),
    ("workers_per_node", 0, "0 is less than the minimum of 1."),
    ("bind_cores", "yes", "'yes' is not of type 'boolean'."),
    ("amqp_port", 80, "80 is not one of [443, 5671, 5672]."),
    ("account", 1234, "1234 is not text: write it in quotes."),
    ("account", None, "None is not of type 'string'."),
    ("account", "a b", "'a b' cannot be used."),
    ("walltime", 3600, "3600 is not text: write it in quotes."),
    ("walltime", "1:00", "'1:00' cannot be used."),
    ("python_path", "/a", "'/a' is not of type 'array'."),
    ("python_path", ["/a", "b"], "'b' cannot be used."),
    ("python_path", [7], "7 is not text: write it in quotes."),
    ("worker_port_range", [2000], "[2000] is too short."),
    (
        "worker_port_range",
        [math.nan, 2000],
        ".nan is not a whole number: write one from 1024 to 65535.",
    ),
    ("worker_port_range", [80, 2000], "80 is less than the minimum of 1024."),
    ("scheduler_options", "--mem=1g", "'--mem=1g' cannot be used."),
]


def test_option_that_does_not_fit_is_named_and_explained_and_found_in_the_schema() -> None:
    for option, value, what in MISFITS:
        assert refusal("slurm", {option: value}) == complaint("slurm", option, what)


def test_unknown_option_comes_with_the_nearest_one_or_with_all() -> None:
    assert (
        refusal("slurm", {"keepwarm": 1})
        == "options: there is no option 'keepwarm'; did you mean 'keep_warm'?"
    )
    assert (
        refusal("local", {"zebra": 1})
        == f"options: there is no option 'zebra'; there are {', '.join(PROPERTIES['local'])}"
    )


def test_both_interface_and_address_are_too_many() -> None:
    said = refusal("pbs", {"interface": "hsn0", "address": "10.0.0.1"})
    assert said == f"options: give only one of interface and address. ({FOLDERS['pbs'] / SCHEMA}:1)"


def test_several_mistakes_are_named_at_once_each_with_its_origin() -> None:
    options = {
        "walltime": 3600,
        "keep_warm": -1,
        "walltimes": "",
        "interface": "a",
        "address": "10.0.0.1",
    }
    with pytest.raises(ConfigError) as caught:
        rendering.render(
            FOLDERS["slurm"], options, {"walltime": "options.yaml:3", "walltimes": "-o walltimes="}
        )
    assert sorted(str(caught.value).splitlines()) == sorted(
        [
            complaint("slurm", "walltime", "3600 is not text: write it in quotes.").replace(
                "options:", "options.yaml:3:", 1
            ),
            complaint("slurm", "keep_warm", "-1 is less than the minimum of 0."),
            "-o walltimes=: there is no option 'walltimes'; did you mean 'walltime'?",
            f"options: give only one of interface and address. ({FOLDERS['slurm'] / SCHEMA}:1)",
        ]
    )


def test_mistake_in_a_file_of_options_has_its_place(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("nodes: 1\n\nmax_jobs: 0\n")
    with pytest.raises(ConfigError) as caught:
        rendering.render(FOLDERS["slurm"], *read(path))
    mistake = caught.value
    assert (mistake.file, mistake.line, mistake.column) == (str(path), 3, 1)
    assert mistake.option == "max_jobs"


@pytest.mark.parametrize(
    ("name", "options", "what"),
    [
        (
            "local",
            {"gpus_per_node": 2, "workers_per_node": 3},
            "workers_per_node (3) has to be a multiple of gpus_per_node (2)",
        ),
        (
            "slurm-gpu",
            {"gpus_per_node": 4, "workers_per_node": 2},
            "workers_per_node (2) has to be a multiple of the number of devices (4)",
        ),
        (
            "pbs",
            {"accelerators": ["0.0", "0.1"], "workers_per_node": 1},
            "workers_per_node (1) has to be a multiple of the number of devices (2)",
        ),
        (
            "slurm",
            {"walltime": "00:10:00", "task_timeout": 540},
            "task_timeout (540 s) leaves no time before walltime (00:10:00)",
        ),
        (
            "pbs",
            {"task_timeout": 7200},
            "task_timeout (7200 s) leaves no time before walltime (01:00:00)",
        ),
        (
            "slurm-gpu",
            {"worker_port_range": [3000, 2999]},
            "worker_port_range [3000, 2999] has to begin with its lower end",
        ),
        (
            "slurm",
            {"bind_cores": True, "cpu_affinity": "list:0"},
            "bind_cores and cpu_affinity both say to which cores workers are bound: "
            "give one of them",
        ),
        (
            "slurm-gpu",
            {"container_uri": "a", "python_path": ["/a b"]},
            "python_path has a folder that cannot be named to a container: a shell would need "
            "quotes for it",
        ),
        (
            "pbs",
            {"workers_per_node": 3, "cpu_affinity": "list:0-1:2,3"},
            "cpu_affinity is for 2 workers, and a node has 3",
        ),
    ],
)
def test_options_that_contradict_each_other_are_refused_where_the_template_does_it(
    name: str, options: Values, what: str
) -> None:
    (line,) = [
        n
        for n, text in enumerate(TEMPLATES[name].splitlines(), 1)
        if text.startswith(f'{{{{ refuse("{what.split()[0]} ')
    ]
    assert refusal(name, options) == f"{FOLDERS[name] / TEMPLATE}:{line}: {what}"


def test_longest_task_that_fits_is_not_refused() -> None:
    assert (
        meaning.warmth_profile(loaded("slurm", {"walltime": "00:10:00", "task_timeout": 539})).drain
        == 1
    )


def failing(folder: Path, options: Values | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        rendering.render(folder, options or {})
    return str(caught.value)


def test_folder_without_a_template_is_not_the_folder_of_a_config(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        rendering.render(tmp_path, {})
    assert str(caught.value) == f"{tmp_path} is not the folder of a config: it has no {TEMPLATE}"


def test_folder_is_found_by_its_path_or_by_the_name_of_one_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert folders.find_folder("slurm") == FOLDERS["slurm"]

    # a folder that happens to have this name is no config
    (tmp_path / "slurm").mkdir()
    assert folders.find_folder("slurm") == FOLDERS["slurm"]
    shutil.copy(FOLDERS["slurm"] / TEMPLATE, tmp_path / "slurm")
    assert folders.find_folder("slurm") == tmp_path / "slurm"

    file = f"slurm/{TEMPLATE}"
    for wrong, what in {
        "slurmy": "there is no folder 'slurmy', no endpoint of that name, and gc_warm has only "
        "local, pbs, slurm, slurm-gpu",
        file: f"{file} is a file; give the folder that holds its {TEMPLATE}",
        str(tmp_path): f"{tmp_path} is not the folder of a config: it has no {TEMPLATE}",
    }.items():
        with pytest.raises(FileNotFoundError, match=re.escape(what)):
            folders.find_folder(wrong)


@pytest.mark.parametrize(
    ("schema", "what"),
    [
        (
            '{\n  "type": "object",\n  properties\n}\n',
            ":3: Expecting property name enclosed in double quotes",
        ),
        ("", ":1: Expecting value"),
        (
            {"properties": {"a": {"type": "strng"}}},
            ": properties.a.type: 'strng' is not valid under any of the given schemas",
        ),
        ({"properties": {"a": {"pattern": "("}}}, ": properties.a.pattern: '(' is not a 'regex'"),
        (
            {"properties": {"a": {"$ref": "#/nowhere"}}},
            ": PointerToNowhere: '/nowhere' does not exist within "
            "{'properties': {'a': {'$ref': '#/nowhere'}}}",
        ),
    ],
)
def test_broken_schema_is_named(schema: object, what: str, tmp_path: Path) -> None:
    folder = make_folder(tmp_path, schema=schema)
    assert failing(folder, {"a": "b"}) == f"{folder / SCHEMA}{what}"


def test_schema_may_let_an_option_in_or_not_without_a_word(tmp_path: Path) -> None:
    schema = {"properties": {"a": True, "b": False}}
    assert parse("a=1", schema) == ("a", 1)
    folder = make_folder(tmp_path, "{%- set a = a | default(2) -%}\na: {{ a }}\n", schema)
    assert rendering.render(folder, {"a": 1}).strip() == "a: 1"
    assert "False schema does not allow 1." in failing(folder, {"b": 1})


@pytest.mark.parametrize(
    ("template", "what"),
    [
        ("a: 1\nb: {{ 2\nc: 3\n", ":3: expected token 'end of print statement', got 'c'"),
        (
            "a: 1\n{% if x %}\n",
            ":2: Unexpected end of template. Jinja was looking for the following tags: 'elif' or "
            "'else' or 'endif'.",
        ),
        ("a: 1\n\nb: {{ walltime }}\n", ":3: 'walltime' is undefined; give it as an option, -o w"),
        (
            "{#- one\ntwo -#}\na: {{ {}.nobody.name }}\n",
            ":3: 'dict object' has no attribute 'nobody'",
        ),
    ],
)
def test_broken_template_is_named_with_its_line(template: str, what: str, tmp_path: Path) -> None:
    said = failing(make_folder(tmp_path, template))
    assert said.startswith(f"{tmp_path / TEMPLATE}{what}")


ENGINE = "engine:\n  type: GlobusComputeEngine\n"
PROVIDER = f"{ENGINE}  provider:\n    type: SlurmProvider\n"


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("a: b: c\n" + ENGINE, 1, "Invalid config syntax: mapping values are not allowed here"),
        (
            ENGINE + "  label: [a\n  address: b\n",
            4,
            "Invalid config syntax: while parsing a flow sequence",
        ),
        (
            PROVIDER + "    nodes: 3\n",
            5,
            r"SlurmProvider.__init__\(\) got an unexpected keyword argument 'nodes'",
        ),
        (
            ENGINE + "  max_worker: 3\n",
            3,
            r"HighThroughputExecutor.__init__\(\) got an unexpected keyword argument 'max_worker'",
        ),
        (
            PROVIDER + "    walltime: 1:00:00\n",
            5,
            r'argument "walltime" \(int\) is not an instance of str',
        ),
        (
            PROVIDER + "    mem_per_node: lots\n",
            5,
            r'argument "mem_per_node" \(str\) did not match',
        ),
        (
            PROVIDER.replace("Slurm", "Slurmy"),
            3,
            r"'?SlurmyProvider'? (is not a valid provider|could not be found)",
        ),
        (
            PROVIDER + "    launcher:\n      type: Srun\n",
            5,
            r"'?Srun'? (is not a valid launcher|could not be found)",
        ),
        (
            ENGINE.replace("Compute", "Warm"),
            1,
            r"'?GlobusWarmEngine'? (is not a valid engine|could not be found)",
        ),
        (
            "heartbeat: 3\n" + ENGINE,
            1,
            "heartbeat: (Unexpected keyword argument|extra fields not permitted)",
        ),
    ],
)
def test_what_the_loader_refuses_is_named_with_its_line_in_the_template(
    text: str, line: int, what: str, tmp_path: Path
) -> None:
    """The older of the endpoint's loaders also tell the section."""
    folder = make_folder(tmp_path, "{#- A comment\n    of two lines. -#}\n" + text)
    sources: list[tuple[str | Path, int]] = [(folder / TEMPLATE, 2), ("no file", 0)]
    for source, shift in sources:
        with pytest.raises(ConfigError) as caught:
            loading.load(rendering.render(folder, {}), source)
        assert re.match(
            rf"{re.escape(str(source))}:{line + shift}: (engine[.\w]*: )?{what}", str(caught.value)
        )

        arrived: ConfigError = pickle.loads(pickle.dumps(caught.value))
        assert str(arrived) == str(caught.value)
        assert (arrived.file, arrived.line) == (str(source), line + shift)
        written = text.splitlines()[line - 1][(arrived.column or 0) - 1 :]
        assert written.startswith((arrived.option or written).rpartition(".")[2])


@pytest.mark.parametrize("text", ["", "a: 1\n", "engine:\n"])
def test_configuration_without_an_engine_is_not_a_user_endpoints(text: str) -> None:
    with pytest.raises(
        ConfigError,
        match=r"^(x has no 'engine:' section, so it is not the configuration of a user endpoint|"
        r"x:1: .+)",
    ):
        loading.load(text, "x")


def test_engine_section_belongs_in_the_template(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, core=ENGINE + "  address: 127.0.0.1\n")
    assert failing(folder) == (
        f"{folder}/config.yaml has an 'engine:' section; in a config with a template, that belongs "
        "in the template"
    )


def test_engine_section_is_named_before_the_loader_looks_into_it(tmp_path: Path) -> None:
    address = "  address: {type: address_by_interface, ifname: nobody0}\n"
    folder = make_folder(tmp_path, core=ENGINE + address)
    assert "has an 'engine:' section" in failing(folder)


def test_old_setting_is_explained_where_an_endpoint_is_to_start() -> None:
    with pytest.raises(ConfigError) as caught:
        loading.load_to_start(f"{ENGINE}  address: 127.0.0.1\n  max_workers: 3\n", "x")
    assert str(caught.value) == (
        "x:4: max_workers is now max_workers_per_node: write max_workers_per_node: 3"
    )


def test_setting_that_the_endpoint_itself_does_not_know_is_named(tmp_path: Path) -> None:
    said = failing(make_folder(tmp_path, core="display: a\n"))
    assert said.startswith(f"{tmp_path}/config.yaml: display: ")


def test_yaml_that_ends_too_soon_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^x:1: Invalid config syntax"):
        loading.load("engine: [\n", "x")


@pytest.mark.parametrize("value", ["2026-13-45", "0b_"])
def test_value_that_yaml_cannot_make_is_named(value: str) -> None:
    with pytest.raises(ConfigError, match=r"^x:3: Invalid config syntax: ") as caught:
        loading.load(f"{ENGINE}  label: {value}\n", "x")
    assert (caught.value.line, caught.value.option) == (3, "engine.label")


def test_line_is_that_of_the_engines_setting_where_the_endpoint_has_one_of_the_same_name() -> None:
    with pytest.raises(
        ConfigError, match=r"^x:4: (engine: )?argument \"heartbeat_period\" \(str\)"
    ):
        loading.load(
            "heartbeat_period: 30\n" + ENGINE + "  heartbeat_period: often\n  address: 127.0.0.1\n",
            "x",
        )


@pytest.mark.parametrize("where", [TEMPLATE, "nowhere"])
def test_what_is_no_folder_is_not_the_folder_of_a_config(where: str, tmp_path: Path) -> None:
    make_folder(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=f"^{tmp_path / where} is not the folder of a config"
    ):
        rendering.render(tmp_path / where, {})


def test_unknown_part_of_an_option_is_named(tmp_path: Path) -> None:
    inner = {"type": "object", "additionalProperties": False}
    assert "'b'" in failing(
        make_folder(tmp_path, schema={"properties": {"a": inner}}), {"a": {"b": 1}}
    )


@pytest.mark.parametrize("schema", ["[1]", "5", "true"])
def test_schema_that_is_no_object_is_named(schema: str, tmp_path: Path) -> None:
    assert failing(make_folder(tmp_path, schema=schema)).startswith(f"{tmp_path / SCHEMA}")


@pytest.mark.parametrize("expression", ["1 // 0", "1 + 'a'"])
def test_calculation_that_fails_in_a_template_is_named_with_its_line(
    expression: str, tmp_path: Path
) -> None:
    assert failing(make_folder(tmp_path, f"a: 1\nb: {{{{ {expression} }}}}\n")).startswith(
        f"{tmp_path / TEMPLATE}:2: "
    )


def test_template_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    (make_folder(tmp_path) / TEMPLATE).write_bytes(b"a: \xff\n")
    assert str(tmp_path / TEMPLATE) in failing(tmp_path)


def test_message_about_a_text_that_is_too_long_is_not() -> None:
    assert len(refusal("local", {"environment": "x" * 20001})) < 1000


def test_yes_is_not_called_a_number() -> None:
    assert "number" not in refusal("slurm", {"account": True})


def test_workers_of_an_engine_that_never_ends_blocks_stay() -> None:
    text = (
        f"{ENGINE}  address: 127.0.0.1\n  job_status_kwargs: {{strategy: none}}\n"
        "  provider: {type: LocalProvider}\n"
    )
    assert meaning.warmth_profile(loading.load(text, "x")).keep_warm == math.inf


def test_user_without_an_entry_in_the_list_of_users_can_render(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    assert "engine:" in rendering.render(FOLDERS["local"], {})


CLI = """
import contextlib, json, sys
from globus_compute_endpoint.cli import app

for output, *arguments in json.load(sys.stdin):
    with open(output, "w") as file, contextlib.redirect_stdout(file):
        app(arguments, standalone_mode=False)
"""


def as_an_ordinary_user() -> list[str]:
    """What to put before a command so that it is not root's; the endpoint asks root for more."""
    if os.getuid():
        return []
    prefix = ["unshare", "-U", "--map-user=65534", "--map-group=65534"]
    try:
        subprocess.run([*prefix, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"root cannot become an ordinary user here: {error}")
    return prefix


SOME = {
    "keep_warm": 2.5,
    "workers_per_node": 4,
    "task_timeout": 60,
    "environment": "module load \U0001f47e\n",
    "python_path": ["/a b", "/$HOME"],
    "preload": ["my_model:default", "my_tables"],
    "preload_node": ["numpy", "my_tables:default"],
    "survive_idle_kill": True,
    "warm_first": True,
    "run_in_sandbox": True,
    "amqp_port": 443,
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with our configs as ``configure`` installs them.

    It also has what ``render-user-config`` prints for SOME.
    """
    prefix = as_an_ordinary_user()
    home = tmp_path_factory.mktemp("home")
    (home / "cli.py").write_text(CLI)
    (home / "options.json").write_text(json.dumps(SOME))
    calls = []
    for name, folder in FOLDERS.items():
        files = [
            "--template-config",
            folder / TEMPLATE,
            "--schema-config",
            folder / SCHEMA,
            folders.CORE_CONFIG,
            folder / "config.yaml",
        ]
        calls.append([home / "said", "configure", "--multi-user", "false", name, *files])
        calls.append(
            [home / f"{name}.yaml", "render-user-config", "-e", name, "-o", home / "options.json"]
        )

    command = [*prefix, sys.executable, str(home / "cli.py")]
    environment = os.environ | {"GLOBUS_COMPUTE_USER_DIR": str(home), "HOME": str(home)}
    done = subprocess.run(
        command,
        input=json.dumps(calls, default=str),
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return home


@pytest.mark.parametrize("name", FOLDERS)
def test_folder_can_be_installed_and_the_endpoint_renders_what_we_render(
    name: str, installed: Path
) -> None:
    for file in (TEMPLATE, SCHEMA):
        assert (installed / name / file).read_bytes() == (FOLDERS[name] / file).read_bytes()
    assert yaml.safe_load((installed / name / "config.yaml").read_text()) == yaml.safe_load(
        (FOLDERS[name] / "config.yaml").read_text()
    )
    ours = rendering.render(FOLDERS[name], SOME)
    assert (installed / f"{name}.yaml").read_text() == ours + "\n"
    assert rendering.render(installed / name, SOME) == ours


MAY_DIFFER = {
    "workers_per_node": {"default", "description"},
    "gpus_per_node": {"default", "description", "minimum"},
    "launcher_overrides": {"description"},
    "scheduler_options": {"description", "pattern"},
}
"""What of an option is not the same everywhere.

Schedulers and launchers have names, and one config is for GPUs only.
"""


def test_option_of_the_same_name_is_the_same_in_all_schemas() -> None:
    for option in {option for known in PROPERTIES.values() for option in known}:
        found = [
            {
                key: value
                for key, value in known[option].items()
                if key not in MAY_DIFFER.get(option, set())
            }
            for known in PROPERTIES.values()
            if option in known
        ]
        assert all(one == found[0] for one in found), option

    patterns = {
        PROPERTIES[name]["scheduler_options"]["pattern"].replace(directive, "#")
        for name, directive in CLUSTERS.items()
    }
    assert len(patterns) == 1
    fewest_gpus = [known.get("gpus_per_node", {}).get("minimum") for known in PROPERTIES.values()]
    assert fewest_gpus == [0, 0, None, 1]

    tops = [
        {key: value for key, value in SCHEMAS[name].items() if key != "properties"}
        for name in CLUSTERS
    ]
    assert tops == [tops[0]] * len(tops)


@pytest.mark.parametrize("name", FOLDERS)
def test_every_option_is_described_and_limited_and_nothing_else_is_let_in(name: str) -> None:
    assert SCHEMAS[name]["additionalProperties"] is False
    for option, kind in PROPERTIES[name].items():
        assert kind["description"].endswith(".")
        limits = {
            "integer": {"minimum", "maximum"},
            "number": {"minimum", "maximum"},
            "string": {"pattern"},
            "array": {"maxItems", "items"},
        }
        assert limits.get(kind.get("type", ""), set()) <= set(kind), option
    jsonschema.Draft202012Validator.check_schema(SCHEMAS[name])


@pytest.mark.parametrize("name", FOLDERS)
def test_schema_and_template_have_the_same_options_and_defaults(name: str) -> None:
    set_first = re.findall(r"^\{%- set (\w+) = (\w+) \| default\(", TEMPLATES[name], re.MULTILINE)
    assert all(variable == option for variable, option in set_first)
    assert sorted(option for option, _ in set_first) == sorted(PROPERTIES[name])
    defaults = {
        option: kind["default"] for option, kind in PROPERTIES[name].items() if "default" in kind
    }
    assert rendering.render(FOLDERS[name], defaults) == rendering.render(FOLDERS[name], {})
    assert not list(jsonschema.Draft202012Validator(SCHEMAS[name]).iter_errors(defaults))


def test_macros_and_what_is_exported_are_the_same_text_in_all_templates() -> None:
    macros = {
        re.sub(
            r"(?s).*(\{#- What a double-quoted.+?)(?:\{#- Heartbeats|\{%- (?:set|if)\b(?! json)).*",
            r"\1",
            text,
        )
        for text in TEMPLATES.values()
    }
    exports = {text[text.index("{%- if python_path %}") :] for text in TEMPLATES.values()}
    beginnings = {re.search(r".*text\(environment\).*", text)[0] for text in TEMPLATES.values()}  # type: ignore[index]
    assert [len(macros), len(exports), len(beginnings)] == [1, 1, 1]
    assert {"macro text", "macro refuse"} == set(re.findall("macro (?:text|refuse)", macros.pop()))
    assert len({(folder / "config.yaml").read_text() for folder in FOLDERS.values()}) == 1


@pytest.mark.parametrize(
    "where",
    [{"interface": "hsn0"}, {"address": "10.0.0.1"}, {"address": "hostname"}],
    ids=["interface", "address", "hostname"],
)
@pytest.mark.parametrize("name", FOLDERS)
def test_each_setting_has_a_comment_or_is_in_a_group_that_has_one(name: str, where: Values) -> None:
    plain = {
        "python_path": ["/a"],
        "task_timeout": 60,
        "gpus_per_node": 1,
        "memory": 1,
        "worker_port_range": [2000, 2000],
        "amqp_port": 443,
    }
    texts = dict.fromkeys(
        ("account", "partition", "queue", "qos", "constraint", "reservation"), "a"
    )
    options = {
        option: value
        for option, value in (plain | texts | where).items()
        if option in PROPERTIES[name]
    }

    commented = False
    bare = []
    for line in rendering.render(FOLDERS[name], options).splitlines():
        setting = re.match(r" *(\w+):", line)
        commented = bool(line.strip()) and (commented or line.strip().startswith("#"))
        if setting and not commented:
            bare.append(setting[1])
    assert set(bare) <= {"engine", "type", "provider", "job_status_kwargs"}


@dataclass(frozen=True)
class Site:
    """What a site documents of the queue that its options name, and of its nodes.

    Attributes:
        config: The config that the options are for.
        head: What the options ask for.
        launch: How a manager is started on each node.
        hours: The longest job.
        cores: Cores or threads of a node that jobs can have.
        nodes: Nodes of a job, at most.
        jobs: Jobs of a user in the queue or running, at most; more than a few are not counted.
        gpus: Devices of a node.
        memory: GB of a node.
    """

    config: str
    head: set[str]
    launch: str
    hours: int
    cores: int
    nodes: int
    jobs: int = 4
    gpus: int = 0
    memory: int = 250


ALCF = "mpiexec --cpu-bind none --ppn 1 --depth"
SITES = {
    "perlmutter": Site(
        "slurm-gpu",
        {"account=m0000", "qos=regular", "constraint=gpu", "gpus-per-node=4", "time=120"},
        "srun --ntasks 1 -l -c 128 ",
        hours=48,
        cores=128,
        nodes=1536,
        gpus=4,
    ),
    "polaris": Site(
        "pbs",
        {"-l filesystems=home:eagle", "-l select=1:ncpus=64:ngpus=4:system=polaris"},
        f"{ALCF} 64 ",
        hours=1,
        cores=64,
        nodes=10,
        jobs=1,
        gpus=4,
    ),
    "aurora": Site(
        "pbs",
        {"-l filesystems=home:flare", "-l select=1:ncpus=192", "-l walltime=01:00:00"},
        f"{ALCF} 192 ",
        hours=1,
        cores=204,
        nodes=2,
        jobs=1,
        gpus=12,
    ),
    "frontier": Site(
        "slurm-gpu",
        {"account=ABC123", "partition=batch", "gpus-per-node=8", "cpus-per-task=56"},
        "srun --ntasks 1 -l -c 56 ",
        hours=2,
        cores=56,
        nodes=91,
        gpus=8,
    ),
    "lumi": Site(
        "slurm-gpu",
        {"partition=standard-g", "gpus-per-node=8", "cpus-per-task=56"},
        "srun --ntasks 1 -l -c 56 ",
        hours=48,
        cores=56,
        nodes=1024,
        gpus=8,
    ),
    "delta": Site(
        "slurm",
        {"partition=cpu", "account=bbbb-delta-cpu", "cpus-per-task=16", "mem=32g"},
        "srun --ntasks 1 -l -c 16 ",
        hours=48,
        cores=128,
        nodes=1,
    ),
    "anvil": Site(
        "slurm",
        {"partition=shared", "account=abc123456", "cpus-per-task=16"},
        "srun --ntasks 1 -l -c 16 ",
        hours=96,
        cores=128,
        nodes=1,
    ),
    "expanse": Site(
        "slurm",
        {"partition=shared", "account=abc123", "cpus-per-task=16", "mem=32g"},
        "srun --ntasks 1 -l -c 16 ",
        hours=48,
        cores=128,
        nodes=1,
    ),
}
INTEL = {"aurora"}
AMD = {"frontier", "lumi"}
RESERVED = {
    "aurora": {0, 52, 104, 156},
    **{site: set(range(0, 64, 8)) for site in AMD},
}
"""Cores that belong to the system."""


def options_of(site: str) -> Values:
    return read(FOLDERS[SITES[site].config] / "sites" / f"{site}.yaml")[0]


def test_each_site_has_options_and_says_whence() -> None:
    found = {path.stem: path for folder in FOLDERS.values() for path in folder.glob("sites/*")}
    assert set(found) == set(SITES)
    for path in found.values():
        comment = " ".join(re.findall("^# (.*)", path.read_text(), re.MULTILINE))
        assert "Not tried there." in comment
        assert re.search(r"From .*\(.+\).*, as of (November )?20\d\d\. \S+: ", comment), path


@pytest.mark.parametrize("site", SITES)
def test_a_site_is_asked_for_what_it_documents(site: str, tmp_path: Path) -> None:
    known = SITES[site]
    config = loaded(known.config, options_of(site))
    _, script = job(config.engine.executor.provider, tmp_path)
    lines = script.splitlines()
    dashes = "--" if CLUSTERS[known.config] == "#SBATCH" else ""
    assert {f"{CLUSTERS[known.config]} {dashes}{words}" for words in known.head} <= set(lines)
    assert any(line.startswith(known.launch) for line in lines)

    examined = config_rules.examine(rendering.render(FOLDERS[known.config], options_of(site)), "")
    assert examined.findings == []
    core = yaml.safe_load((FOLDERS[known.config] / "config.yaml").read_text())
    assert "amqp_port" not in (core or {})
    assert config.amqp_port == (443 if site in ("delta", "anvil") else None)


@pytest.mark.parametrize("site", SITES)
def test_options_of_a_site_are_within_its_limits(site: str) -> None:
    known = SITES[site]
    options = options_of(site)
    config = loaded(known.config, options)
    executor = config.engine.executor
    profile = meaning.warmth_profile(config)

    assert profile.walltime is not None
    assert profile.walltime <= known.hours * 3600
    assert profile.max_jobs <= known.jobs
    assert profile.nodes_per_job <= known.nodes
    assert workers(known.config, options) * options["cores_per_worker"] <= known.cores
    assert options.get("memory", 0) <= known.memory
    assert len(profile.devices) == known.gpus
    if site in AMD:
        assert meaning.requested_gpus(executor.provider) == (known.gpus, "AMD")
    if site in INTEL:  # on which nobody divides numbers
        assert len(set(executor.available_accelerators)) == known.gpus

    bound = [
        core
        for low, high in re.findall(r"(\d+)(?:-(\d+))?", executor.cpu_affinity)
        for core in range(int(low), int(high or low) + 1)
    ]
    assert len(bound) == len(set(bound)), "no core is that of two workers"
    assert not set(bound) & RESERVED.get(site, set())


def test_options_of_delta_in_the_readme_are_those_of_its_file() -> None:
    shown = re.findall(
        r"```yaml\n(.*?)```",
        (Path(__file__).parents[2] / "endpoint_configs" / "README.md").read_text(),
        re.DOTALL,
    )
    text = (FOLDERS["slurm"] / "sites" / "delta.yaml").read_text()
    assert re.sub(r"^#.*\n", "", text, flags=re.MULTILINE) in shown


DEFAULTS: list[tuple[str, str, str]] = [
    ("python_path", '"/tmp/x"', "python_path: '/tmp/x' is not of type 'array'."),
    ("python_path", '["modules"]', "python_path: 'modules' cannot be used."),
    ("workers_per_node", '"four"', "workers_per_node: 'four' is not a whole number: write"),
    ("max_jobs", "0", "max_jobs: 0 is less than the minimum of 1."),
    ("keep_warm", "-3", "keep_warm: -3 is less than the minimum of 0."),
    ("bind_cores", '"no"', "bind_cores: 'no' is not of type 'boolean'."),
    ("account", '"m 1234"', "account: 'm 1234' cannot be used."),
    ("walltime", '"1-00:00:00"', "walltime: '1-00:00:00' cannot be used."),
    ("walltime", "3600", "walltime: 3600 is not text: write it in quotes."),
    ("account", '"m1234', "account: unexpected char"),
    ("account", '"m 1234", true', "account: 'm 1234' cannot be used."),
    ("max_jobs", "default_value=-1 + 1", "max_jobs: 0 is less than the minimum of 1."),
]


def with_defaults(folder: Path, defaults: dict[str, str]) -> Path:
    """A copy of the config for Slurm whose defaults somebody has edited."""
    shutil.copytree(FOLDERS["slurm"], folder)
    text = (folder / TEMPLATE).read_text()
    for option, value in defaults.items():
        (default,) = re.finditer(rf"set {option} = {option} \| default\(([^)]*)\)", text)
        text = text[: default.start(1)] + value + text[default.end(1) :]
    (folder / TEMPLATE).write_text(text)
    return folder


@pytest.mark.parametrize(("option", "value", "what"), DEFAULTS)
def test_default_that_was_edited_is_held_to_the_schema_as_an_option_is(
    option: str, value: str, what: str, tmp_path: Path
) -> None:
    folder = with_defaults(tmp_path / "mine", {option: value})
    text = (folder / TEMPLATE).read_text()
    line = 1 + text[: text.index(f"set {option} =")].count("\n")
    with pytest.raises(ConfigError) as found:
        rendering.render(folder, {})
    assert str(found.value).startswith(f"{folder / TEMPLATE}:{line}: default of {what}")
    assert (found.value.file, found.value.line) == (str(folder / TEMPLATE), line)


def test_default_that_was_edited_is_used(tmp_path: Path) -> None:
    edited = {
        "account": 'default_value="m1234", boolean=true',
        "environment": r'"module load python\nsource activate mine"',
        "python_path": '["/a b", "/é"]',
    }
    rendered = rendering.render(with_defaults(tmp_path / "mine", edited), {})
    provider = yaml.safe_load(rendered)["engine"]["provider"]
    assert provider["account"] == "m1234"
    assert "\nmodule load python\nsource activate mine\n" in provider["worker_init"]
    assert f"PYTHONPATH={shlex.quote('/a b')}:{shlex.quote('/é')}" in provider["worker_init"]
