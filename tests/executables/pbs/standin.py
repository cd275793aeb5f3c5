"""PBS Pro and an mpiexec, as far as an endpoint meets them.

Requests to them are recorded, and jobs are processes of this machine.

Their output and refusals have the forms of OpenPBS, of which PBS Professional is the commercial
edition: its manual pages qsub(1B), qstat(1B), qdel(1B) and pbs_resources(7B), its sources
(src/cmds/qsub.c, qsub_sup.c), and for ``qstat -f -F json`` the design document PP-483 "Enhance
output of qstat to make it more admin and script friendly", with jobs of a PBS 2022.1 in the
documentation of PSI/J.

The decisions of a site are in environment variables: STANDIN_FOLDER (the records), STANDIN_ACCOUNTS
(those with an allocation; any account and none if unset), STANDIN_NODE_CPUS (how many a node has;
as many as a chunk asks for if unset), STANDIN_BUSY (a queue in which no job starts) and
STANDIN_MPIEXEC (whose mpiexec there is).
"""

from __future__ import annotations

import contextlib
import fcntl
import getopt
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import psutil

FOLDER = Path(os.environ["STANDIN_FOLDER"])
SERVER = "pbs-server"
OPTIONS = "a:A:c:C:e:fhIj:J:k:l:m:M:N:o:p:P:q:r:R:S:u:v:VW:Xz"
OF_A_CHUNK = {"ncpus", "ngpus", "mem", "mpiprocs", "ompthreads"}
OF_A_JOB = {"walltime", "select", "place", "filesystems"}
KILL_DELAY = 2.0  # seconds; a queue's attribute, of ten seconds unless the site says otherwise

Options = list[tuple[str, str]]


def main(name: str, *arguments: str) -> None:
    if name != "mom":
        record(name, arguments=list(arguments))
    {"qsub": qsub, "qstat": qstat, "qdel": qdel, "mpiexec": mpiexec, "mom": mom}[name](arguments)


def record(name: str, **what: Any) -> None:
    with open(FOLDER / f"{name}.jsonl", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(json.dumps(what) + "\n")


def refuse(why: str, status: int) -> NoReturn:
    print(why, file=sys.stderr)
    sys.exit(status)


def write(path: Path, text: str) -> None:
    """Write all of it at once: others look at it meanwhile."""
    part = path.with_suffix(".part")
    part.write_text(text)
    part.rename(path)


def qsub(arguments: Sequence[str]) -> None:
    options, (path,) = getopt.getopt(arguments, OPTIONS)
    script = Path(path).read_text()
    inside = directives(script)
    # the command line has the last word
    given = [option for line in inside for option in parsed(line)] + options
    job = dict(option for option in given if option[0] != "-l")
    resources = job_resources([value for name, value in given if name == "-l"])
    accept(job, resources)

    number = next_number()
    folder = FOLDER / "jobs" / str(number)
    (folder / "home").mkdir(parents=True)
    (folder / "script").write_text(script)  # the job runs what was there when it was submitted
    hosts = placed(resources)
    (folder / "nodefile").write_text("".join(f"{host}\n" for host in hosts))

    ticket = {
        "name": job["-N"],
        "queue": job.get("-q", "workq"),
        "account": job.get("-A"),
        "outputs": [job["-o"], job["-e"]],
    }
    text = json.dumps({**ticket, "resources": resources, "hosts": hosts, "work": os.getcwd()})
    write(folder / "job", text)

    if ticket["queue"] != os.environ.get("STANDIN_BUSY"):
        start_mom(folder)
    record("jobs", id=f"{number}.{SERVER}", queue=ticket["queue"], directives=inside, script=script)
    print(f"{number}.{SERVER}")


def directives(script: str) -> list[str]:
    """Return the lines that qsub reads: those before the first command, without their prefix."""
    found = []
    for line in script.splitlines():
        if line.strip() and not line.lstrip().startswith(("#", ":")):
            break
        if line.startswith("#PBS"):
            found.append(line.removeprefix("#PBS").strip())
    return found


def parsed(directive: str) -> Options:
    try:
        options, others = getopt.getopt(shlex.split(directive), OPTIONS)
    except (getopt.GetoptError, ValueError):
        options, others = [], [directive]
    if others:
        refuse(f"qsub: directive error: {directive} ", 2)
    return options


def job_resources(values: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}

    for value in values:
        for each in value.split(","):
            name, _, wanted = each.partition("=")
            if name in OF_A_CHUNK and any("select=" in other for other in values):
                why = '"-lresource=" cannot be used with "select" or "place"'
                refuse(f"qsub: {why}, resource is: {name}", 2)
            if name not in OF_A_JOB:
                refuse(f"qsub: Unknown resource Resource_List.{name}", 174)
            found[name] = wanted
    return found


def accept(job: dict[str, str], resources: dict[str, str]) -> None:
    """Refuse a job as the server and the site's hooks would."""
    if not re.fullmatch(r"(\d+:)?(\d+:)?\d+(\.\d+)?", resources.get("walltime", "1")):
        refuse("qsub: Illegal attribute or resource value Resource_List.walltime", 166)

    chunks = r"[1-9]\d*(:(ncpus|ngpus)=\d+|:mem=\d+[kmgtp]?[bw]?)+"
    if not re.fullmatch(chunks, resources["select"]):
        refuse("qsub: Illegal attribute or resource value Resource_List.select", 166)

    accounts = os.environ.get("STANDIN_ACCOUNTS")
    if accounts and job.get("-A") not in accounts.split(","):
        why = f"No active allocation found for project {job.get('-A')}."
        refuse(f"qsub: Request rejected.  Reason: {why}", 1)


def placed(resources: dict[str, str]) -> list[str]:
    """Return the host of each chunk.

    Unless the chunks are to be scattered, there are as many on one host as fit there
    (pbs_resources(7B), ``place=free``).
    """
    number = int(resources["select"].split(":")[0])
    cpus = int(chunk(resources)["ncpus"])
    free = not re.search(r"\bscatter\b", resources.get("place", "free"))
    on_one = max(1, int(os.environ.get("STANDIN_NODE_CPUS", cpus)) // cpus) if free else 1
    return [f"node{1 + index // on_one}" for index in range(number)]


def chunk(resources: dict[str, str]) -> dict[str, str]:
    """Return the resources that are asked for on each node."""
    return dict(each.split("=") for each in resources["select"].split(":")[1:])


def next_number() -> int:
    with open(FOLDER / "number", "a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        number = int(file.read() or 1233) + 1
        file.truncate(0)
        file.write(str(number))
    return number


def start_mom(folder: Path) -> None:
    """Start the process that runs the job on its first node.

    Without -V, it knows nothing of the environment in which qsub ran.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if name.startswith("STANDIN_") or name in ("GC_WARM_TEST_RUN", "LANG")
    }
    kept["PATH"] = f"{Path(__file__).parent}:/usr/local/bin:/usr/bin:/bin"

    null = subprocess.DEVNULL
    command = [sys.executable, __file__, "mom", str(folder)]
    process = subprocess.Popen(
        command, env=kept, stdin=null, stdout=null, stderr=null, start_new_session=True
    )
    write(folder / "mom", str(process.pid))


def mom(arguments: Sequence[str]) -> None:
    folder = Path(arguments[0])
    ticket = json.loads((folder / "job").read_text())

    with open(folder / "stdout", "wb") as stdout, open(folder / "stderr", "wb") as stderr:
        job = subprocess.Popen(
            ["/bin/bash", str(folder / "script")],
            env=job_environment(folder, ticket),
            cwd=folder / "home",
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
        while job.poll() is None and not (folder / "deleted").exists():
            with contextlib.suppress(subprocess.TimeoutExpired):
                job.wait(0.05)
        end_session(job)

    for spooled, asked in zip(("stdout", "stderr"), ticket["outputs"], strict=True):
        with contextlib.suppress(OSError):  # the folder has gone meanwhile; PBS then writes a mail
            Path(asked).write_bytes((folder / spooled).read_bytes())

    status = job.returncode if job.returncode >= 0 else 256 - job.returncode
    write(folder / "exit_status", str(status))


def job_environment(folder: Path, ticket: dict[str, Any]) -> dict[str, str]:
    return {
        **os.environ,
        "HOME": str(folder / "home"),
        "STANDIN_GPUS": chunk(ticket["resources"]).get("ngpus", "0"),
        "PBS_ENVIRONMENT": "PBS_BATCH",
        "PBS_JOBID": f"{folder.name}.{SERVER}",
        "PBS_JOBNAME": ticket["name"],
        "PBS_QUEUE": ticket["queue"],
        "PBS_NODEFILE": str(folder / "nodefile"),
        "PBS_O_WORKDIR": ticket["work"],
        "NCPUS": chunk(ticket["resources"])["ncpus"],
        "OMP_NUM_THREADS": chunk(ticket["resources"])["ncpus"],
    }


def end_session(job: subprocess.Popen[bytes]) -> None:
    """End a job's processes by SIGTERM, and later SIGKILL: nothing of it outlives its script."""
    family = members(job.pid)
    job.terminate()  # before what it runs: a script that outlives that goes on, and may end well
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()

    end = time.monotonic() + KILL_DELAY
    while members(job.pid) and time.monotonic() < end:
        with contextlib.suppress(subprocess.TimeoutExpired):
            job.wait(0.05)
        psutil.wait_procs(family, timeout=0.05)

    for process in {*family, *members(job.pid)}:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    job.wait()


def members(session: int) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, psutil.Error):
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def qstat(arguments: Sequence[str]) -> None:
    options, ids = getopt.getopt(arguments, "xfF:")
    assert ("-F", "json") in options, "this one answers only in JSON"
    assert ("-f", "") in options, "-F goes with -f only"

    jobs = {}
    status = 0
    for each in ids:
        folder = FOLDER / "jobs" / each.split(".")[0]
        if not folder.is_dir():
            print(f"qstat: Unknown Job Id {each}", file=sys.stderr)
            status = 153
            continue
        jobs[each] = described(folder)
        if jobs[each]["job_state"] == "F" and ("-x", "") not in options:
            advice = "use -x or -H to obtain historical job information"
            print(f"qstat: {each} Job has finished, {advice}", file=sys.stderr)
            del jobs[each]
            status = 35

    answer = {
        "timestamp": int(time.time()),
        "pbs_version": "2022.1.1.20220926110806",
        "pbs_server": SERVER,
        "Jobs": jobs,
    }
    print(json.dumps(answer, indent=4))
    sys.exit(status)


def described(folder: Path) -> dict[str, Any]:
    ticket = json.loads((folder / "job").read_text())
    job = {
        "Job_Name": ticket["name"],
        "Job_Owner": f"user@{SERVER}",
        "job_state": "Q",
        "queue": ticket["queue"],
        "server": SERVER,
    }
    if ticket["account"]:
        job["Account_Name"] = ticket["account"]
    job["Resource_List"] = ticket["resources"]

    if (folder / "mom").exists():
        cpus = chunk(ticket["resources"])["ncpus"]
        job["job_state"] = "R"
        job["exec_host"] = "+".join(f"{host}/0*{cpus}" for host in ticket["hosts"])
    else:
        job["comment"] = "Not Running: Insufficient amount of resource: ncpus"

    if (folder / "exit_status").exists():
        job["job_state"] = "F"
        job["Exit_status"] = int((folder / "exit_status").read_text())
    return job


def qdel(arguments: Sequence[str]) -> None:
    status = 0
    for each in arguments:
        folder = FOLDER / "jobs" / each.split(".")[0]
        if not folder.is_dir():
            print(f"qdel: Unknown Job Id {each}", file=sys.stderr)
            status = 153
        elif (folder / "exit_status").exists():
            print(f"qdel: Job has finished {each}", file=sys.stderr)
            status = 35
        elif (folder / "mom").exists():
            # whoever waits for the end has to look for it: qdel does not
            (folder / "deleted").touch()
        else:
            write(folder / "exit_status", "271")

    sys.exit(status)


# How many values each option takes. The three are known from: PALS's mpiexec(1) as the guides to
# ALCF's Polaris and Aurora use it, Open MPI's mpirun(1), and MPICH's
# src/pm/hydra/mansrc/mpiexec.txt; Hydra takes one dash or two.
FAMILIES: dict[str, dict[str, int]] = {
    "pals": {
        "-n": 1,
        "--np": 1,
        "--ppn": 1,
        "--depth": 1,
        "-d": 1,
        "--cpu-bind": 1,
        "--hostfile": 1,
        "--env": 1,
        "--no-vni": 0,
    },
    "openmpi": {
        "-n": 1,
        "-np": 1,
        "--map-by": 1,
        "--bind-to": 1,
        "--hostfile": 1,
        "-x": 1,
        "--mca": 2,
        "--oversubscribe": 0,
    },
    "mpich": {
        "-n": 1,
        "-np": 1,
        "-ppn": 1,
        "-bind-to": 1,
        "-hostfile": 1,
        "--hostfile": 1,
        "-f": 1,
        "-iface": 1,
        "-launcher": 1,
    },
}


def mpiexec(arguments: Sequence[str]) -> None:
    family = os.environ["STANDIN_MPIEXEC"]
    options, command = launch_options(family, list(arguments))
    hosts = Path(options["--hostfile"]).read_text().split()
    ranks = int(options["-n"])
    if ranks > len(hosts) and family != "mpich":  # which begins again with the first host
        wanted = f"{ranks} processes, of which one to a host is wanted"
        refuse(f"mpiexec: {wanted}, do not fit on {len(hosts)} host", 1)

    started = []
    for rank in range(ranks):
        host = hosts[rank % len(hosts)]
        env = {**os.environ, "STANDIN_HOST": host, "STANDIN_RANK": str(rank)}
        process = subprocess.Popen(command, env=env)
        started.append(process)
        record("ranks", job=os.environ["PBS_JOBID"], host=host, rank=rank, pid=process.pid)
    sys.exit(first_failure(started))


def launch_options(family: str, words: list[str]) -> tuple[dict[str, str], list[str]]:
    found = {}
    while words and words[0].startswith("-"):
        name = words.pop(0)
        if name not in FAMILIES[family]:
            refuse(f"mpiexec: unrecognized option '{name}'", 255)

        values = [words.pop(0) for _ in range(FAMILIES[family][name])]
        found[name] = " ".join(values)
    return found, words


def first_failure(started: Sequence[subprocess.Popen[bytes]]) -> int:
    """Return the exit status of the first process that does not end well, and end the others.

    An MPI program would want it so. The status is 0 if all end well.
    """
    waiting = list(started)
    while waiting:
        for process in list(waiting):
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = process.wait(0.05)
                if status:
                    for other in waiting:
                        other.terminate()
                    return status if status > 0 else 128 - status

                waiting.remove(process)
    return 0


if __name__ == "__main__":
    main(*sys.argv[1:])
