#!/usr/bin/env python3
"""Run every part of a `qfdata plan` as a Spark task: spark-submit spark_parts.py PLAN

Run by `python3`, it starts Spark in local mode. Each task calls the `qfdata` that is on the PATH of its
executor; PLAN and the shards have to be on storage that all executors see. Spark starts a part that fails
again (spark.task.maxFailures, on a cluster 4 times), and slow ones twice if spark.speculation is on: neither does harm.
"""

import json
import subprocess
import sys

from pyspark.sql import SparkSession


def run_part(part, plan):
    subprocess.run(["qfdata", "shard", "--plan", plan, "--part", str(part), "--quiet"], check=True)
    return part


def main(plan):
    status = json.loads(subprocess.check_output(["qfdata", "status", plan, "--json"]))
    missing = [part["part"] for part in status["parts"] if not part["complete"]]
    spark = SparkSession.builder.appName("qfdata").getOrCreate()
    # A partition for each part, so that Spark schedules and restarts parts one by one.
    parts = spark.sparkContext.parallelize(missing, max(1, len(missing)))
    for part in parts.map(lambda part: run_part(part, plan)).collect():
        print(f"part {part} is complete", flush=True)
    spark.stop()
    subprocess.run(["qfdata", "finish", plan], check=True)


if __name__ == "__main__":
    main(sys.argv[1])
