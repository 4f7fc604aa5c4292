"""Reads http://argv[1]/metrics with Prometheus' own client until `argv[2]` steps are done, and once more; the last
page as JSON on stdout: families by name with type, help and samples."""
import json
import sys
import time
import urllib.request

from prometheus_client.parser import text_string_to_metric_families

def look():
    with urllib.request.urlopen(f"http://{sys.argv[1]}/metrics", timeout=10) as answer:
        kind = answer.headers["Content-Type"]
        text = answer.read().decode()
    families = {}
    for family in text_string_to_metric_families(text):
        assert family.name not in families, family.name
        samples = [[sample.name, sample.labels, sample.value] for sample in family.samples]
        families[family.name] = {"type": family.type, "help": family.documentation, "samples": samples}
    return kind, families

def value(families, name):
    return families[name]["samples"][0][2] if name in families else None

before, deadline = None, time.time() + 60
while True:
    kind, families = look()
    steps = value(families, "qformer_steps")
    if before is not None and steps is not None:
        # Counters never fall.
        for name, family in before.items():
            if family["type"] == "counter":
                old = {json.dumps(sample[:2]): sample[2] for sample in family["samples"]}
                new = {json.dumps(sample[:2]): sample[2] for sample in families[name]["samples"]}
                assert all(new[sample] >= old[sample] for sample in old), name
    before = families
    if steps is not None and steps >= int(sys.argv[2]):
        break
    assert time.time() < deadline, families
    time.sleep(0.02)
json.dump({"kind": kind, "families": families}, sys.stdout)
