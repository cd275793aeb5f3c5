"""Rules held against what other people write: their configs, and their options of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from gc_warm.check import config_rules
from gc_warm.configs import folders, rendering
from tests.check.test_config_rules import OLDER_LOADER

CONFIGS: dict[str, dict[str, Any]] = yaml.safe_load(
    Path(__file__).with_name("public.yaml").read_text()
)


@pytest.mark.parametrize("name", CONFIGS)
def test_finds_what_is_right_to_say(name: str) -> None:
    expected: list[str] = CONFIGS[name]["finds"]
    found = [
        f"{each.rule}: {each.text}"
        for each in config_rules.examine(CONFIGS[name]["yaml"], "x").findings
    ]

    # whose words cannot be repaired, to look at the rest
    if OLDER_LOADER and any(said.startswith("GCW000") for said in expected):
        assert found[0].startswith("GCW000")
        return

    assert len(found) == len(expected), found
    for said, start in zip(found, expected, strict=True):
        assert said.startswith(start)


ENVIRONMENT = r"""
set -euo pipefail
module purge >/dev/null 2>&1
module load python/3.11 cuda/12.4
source "$(conda info --base)/etc/profile.d/conda.sh"; conda activate warm
command -v nvidia-smi &>/dev/null && nvidia-smi -L || true
exec > >(tee -a $HOME/log) 2>&1
ulimit -s unlimited || true
if [[ -n ${SLURM_JOB_ID-} && -d $SCRATCH ]]; then
  cd $SCRATCH
fi
case $HOSTNAME in
  a*) export CLUSTER=a ;;&
  *) export SITE=here ;&
esac
# start a server with &
flags=$((3 & 1))
cat > $TMPDIR/conf <<'EOF'
serve &
EOF
grep -q x <<< 'a & b' || true
mkdir -p /tmp/cache && cp -r $HOME/model /tmp/cache
trap 'rm -rf $TMPDIR/mine' EXIT
export LD_LIBRARY_PATH=$CONDA_PREFIX/lib:$LD_LIBRARY_PATH
export PATH=~/bin:$PATH HF_HOME=$SCRATCH/hf MODEL=facebook/opt-125m
export DATA_DIR=${SCRATCH:-/tmp}/data http_proxy=http://proxy.site.org:3128
export URL="http://host/?a=1&b=2" TWO="first
second"
export MASTER_PORT=$(expr 10000 + $(echo -n $SLURM_JOBID | tail -c 4))
export MASTER_ADDR=$(srun --nodes=1 --ntasks=1 hostname)
python -m pip install --quiet --user requests
"""
"""Lines as they stand in the jobs of many sites, none of which harms what is warm."""

SCHEDULER_OPTIONS = {
    "SlurmProvider": """
#SBATCH --exclusive --mem=0
#SBATCH -C gpu
#SBATCH -q debug
#SBATCH --mail-type=END --mail-user=me@site.org
#SBATCH --time-min=00:30:00
#SBATCH --comment=time
#SBATCH --nodelist=n[1-4]
#SBATCH --threads-per-core=1
#SBATCH --gpu-bind=none""",
    "PBSProProvider": """
#PBS -l filesystems=home:grand
#PBS -l place=scatter
#PBS -k doe
#PBS -W umask=027
#PBS -M me@site.org -m e
#PBS -j oe""",
}


@pytest.mark.parametrize("name", folders.shipped())
def test_finds_nothing_in_own_config_with_usual_scripts(name: str) -> None:
    folder = folders.shipped()[name]
    template = folders.template_path(folder)
    options: dict[str, Any] = {
        "environment": ENVIRONMENT,
        "run_in_sandbox": True,
        "task_timeout": 120,
        "workers_per_node": 4,
    }
    if name != "local":
        provider = "PBSProProvider" if name == "pbs" else "SlurmProvider"
        lines = SCHEDULER_OPTIONS[provider].strip()
        options |= {"nodes": 2, "max_jobs": 3, "scheduler_options": lines}

    assert config_rules.examine(rendering.render(folder, options), template).findings == []
