# All runs of a profile as one DAG: scenes × ablations × seeds, then the ledger and the notebooks.
#
#   make figures PROFILE=paper                                      one machine, one job at a time
#   snakemake -n --config profile=paper                             every job that is left, with an estimate of its cost
#   snakemake ledger --config profile=paper --workflow-profile profiles/slurm     a cluster (pip install -e '.[slurm]')
#
# It only orders jobs. A job is a call of `cclkit run`; what it makes is an artefact whose path holds its key, so a
# file that is there is up to date, and one that is out of date has another name. cclkit/jobs.py lists them.
import shlex
import sys

from cclkit.jobs import duration, message, plan

PROFILE = config.get("profile", "mini")
CCLKIT = config.get("cclkit", f"{shlex.quote(sys.executable)} -m cclkit.cli")
JOBS = plan(PROFILE)
LEFT = [job for job in JOBS if not job.done]
CORES = workflow.cores or 4  # Snakemake sets OMP_NUM_THREADS to a job's threads: fewer would be slower, and round otherwise than `cclkit run` does


# The first two have no output, so they always run: what they need to do they find out themselves.
rule figures:
    input: [ancient(str(job.output)) for job in JOBS],
    message: f"ledger and notebooks of profile {PROFILE}, after {len(LEFT)} of {len(JOBS)} jobs"
        + (f" that take about {duration(sum(job.minutes for job in LEFT))} one after the other (an estimate)" if PROFILE == "paper" and LEFT else ""),
    params: cclkit=CCLKIT, profile=PROFILE,
    threads: CORES
    localrule: True
    shell: "{params.cclkit} ledger && {params.cclkit} figures --profile {params.profile:q}"


rule ledger:
    input: [ancient(str(job.output)) for job in JOBS],
    message: f"ledger, after {len(LEFT)} of {len(JOBS)} jobs",
    params: cclkit=CCLKIT,
    localrule: True
    shell: "{params.cclkit} ledger"


for job in JOBS:
    rule:
        name: job.name
        input: [ancient(str(path)) for path in job.needs],
        output: str(job.output),
        message: message(job),
        params: command=f"{CCLKIT} {job.command}",
        threads: CORES
        resources: gpu=int(job.gpu), mem_mb=job.memory_mb, runtime=max(30, int(3 * job.minutes)),
        shell: "{params.command}"
