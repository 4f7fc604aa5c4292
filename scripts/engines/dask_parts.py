#!/usr/bin/env python3
"""Run every part of a `qfdata plan` as a Dask task: dask_parts.py PLAN

Connects to the scheduler of DASK_SCHEDULER_ADDRESS, or starts a local cluster. Each task calls the `qfdata`
that is on the PATH of its worker; PLAN and the shards have to be on storage that all workers see. A part that
fails is started again up to three times: a part that was begun goes on where it was.
"""

import json
import os
import subprocess
import sys

from dask.distributed import Client, LocalCluster, as_completed


def run_part(part, plan):
    subprocess.run(["qfdata", "shard", "--plan", plan, "--part", str(part), "--quiet"], check=True)
    return part


def main(plan):
    status = json.loads(subprocess.check_output(["qfdata", "status", plan, "--json"]))
    missing = [part["part"] for part in status["parts"] if not part["complete"]]
    address = os.environ.get("DASK_SCHEDULER_ADDRESS")
    cluster = address or LocalCluster(dashboard_address=None, threads_per_worker=1)
    with Client(cluster) as client:
        # Not pure: what a task does is write files, and a part may have to run again.
        parts = client.map(run_part, missing, plan=plan, retries=3, pure=False)
        for done in as_completed(parts):
            print(f"part {done.result()} is complete", flush=True)
    subprocess.run(["qfdata", "finish", plan], check=True)


if __name__ == "__main__":
    main(sys.argv[1])
