#!/usr/bin/env python3
"""Run every part of a `qfdata plan` as a Ray task: ray_parts.py PLAN

Connects to the cluster of RAY_ADDRESS, or starts a local one. Each task calls the `qfdata` that is on the
PATH of its worker; PLAN and the shards have to be on storage that all workers see. A part that fails is
started again up to three times: a part that was begun goes on where it was.
"""

import json
import subprocess
import sys

import ray


@ray.remote(max_retries=3, retry_exceptions=True)
def run_part(plan, part):
    subprocess.run(["qfdata", "shard", "--plan", plan, "--part", str(part), "--quiet"], check=True)
    return part


def main(plan):
    status = json.loads(subprocess.check_output(["qfdata", "status", plan, "--json"]))
    missing = [part["part"] for part in status["parts"] if not part["complete"]]
    ray.init(include_dashboard=False, log_to_driver=True)
    waiting = [run_part.remote(plan, part) for part in missing]
    while waiting:
        done, waiting = ray.wait(waiting)
        for part in ray.get(done):
            print(f"part {part} is complete, {len(waiting)} to go", flush=True)
    subprocess.run(["qfdata", "finish", plan], check=True)


if __name__ == "__main__":
    main(sys.argv[1])
