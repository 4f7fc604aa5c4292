#!/usr/bin/env python3
"""Images per second of `qfdata profile` and of other loaders, on the same shards: `make bench-peers`.

Each peer gets a virtual environment in the cache; one that cannot be installed is named and left
out. System packages that one needs are installed by apt, as root or with a sudo that asks for no
password (QF_NO_APT=1: never). All run in turn, ours among them, for a number of rounds; the table
holds medians. Processor time is user and system of all processes of a peer, memory the peak of
their summed Pss.
"""
import argparse
import ctypes.util
import datetime
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import sysconfig
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
TICK = os.sysconf("SC_CLK_TCK")

# Packages of each environment.
ENVIRONMENTS = {
    "sets": ["numpy", "pillow"],
    "torch": ["torch", "torchvision", "webdataset", "simplejpeg", "opencv-python-headless",
              "tokenizers", "pillow", "numpy"],
    "dali": ["nvidia-dali-cuda120", "tokenizers", "numpy"],
    "tf": ["tensorflow-cpu", "tokenizers"],
    "spdl": ["spdl", "tokenizers", "numpy"],
    "datago": ["datago", "tokenizers", "numpy", "pillow"],
    "ffcv": ["ffcv"],
}
# Environments that also see the packages of another one.
BORROWS = {"ffcv": "torch"}


def has_library(module):
    return subprocess.getstatusoutput(f"pkg-config --exists {module}")[0] == 0


# System packages of an environment, by Debian's names, and how to tell that they are there.
SYSTEM = {
    "ffcv": {
        "build-essential": lambda: shutil.which("c++"),
        "python3-dev": lambda: os.path.exists(sysconfig.get_path("include") + "/Python.h"),
        "pkg-config": lambda: shutil.which("pkg-config"),
        "libopencv-dev": lambda: has_library("opencv4"),
        "libturbojpeg0-dev": lambda: has_library("libturbojpeg"),
    },
    "spdl": {"ffmpeg": lambda: ctypes.util.find_library("avdevice")},
}
# Name in the table: (environment, script, variables, whether it writes its own format first).
PEERS = {
    "webdataset + PIL": ("torch", "wds.py", {"DECODER": "pil"}, False),
    "webdataset + simplejpeg": ("torch", "wds.py", {"DECODER": "turbo"}, False),
    "DALI (CPU)": ("dali", "dali.py", {}, False),
    "FFCV": ("ffcv", "ffcv_.py", {}, True),
    "tf.data": ("tf", "tfdata.py", {}, True),
    "tf.data, antialiased": ("tf", "tfdata.py", {"ANTIALIAS": "1"}, True),
    "SPDL": ("spdl", "spdl_.py", {}, False),
    "datago": ("datago", "datago_.py", {}, False),
}
OURS = "qfdata"


class Unavailable(Exception):
    """Why an environment cannot be made."""


def system_packages(name):
    """Installs the system packages that an environment lacks, where that is allowed."""
    missing = [package for package, found in SYSTEM.get(name, {}).items() if not found()]
    if not missing:
        return
    names = " ".join(missing)
    sudo = "" if os.geteuid() == 0 else "sudo "
    install = f"apt-get install -qq -y --no-install-recommends {names}"
    allowed = os.environ.get("QF_NO_APT") != "1" and shutil.which("apt-get")
    if not allowed or (sudo and subprocess.getstatusoutput("sudo -n true")[0]):
        raise Unavailable(f"missing system packages: {names}; install them ({sudo}{install})")
    print(f"bench: missing system packages: {names}; running: {sudo}{install}", file=sys.stderr)
    command = f"{sudo}apt-get update -qq && {sudo}env DEBIAN_FRONTEND=noninteractive {install}"
    if subprocess.run(command, shell=True, stdin=subprocess.DEVNULL, stdout=sys.stderr).returncode:
        raise Unavailable(f"apt-get could not install {names}; see its messages above")


def environment(cache, name):
    """The python of an environment, made on first use."""
    system_packages(name)
    home = os.path.join(cache, name)
    python = os.path.join(home, "bin", "python")
    done = os.path.join(home, "complete")
    if not os.path.exists(done):
        packages = ", ".join(ENVIRONMENTS[name])
        print(f"bench: installing {packages}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
        if name in BORROWS:
            environment(cache, BORROWS[name])
            lent, own = (sysconfig.get_path("purelib", "posix_prefix", {"base": base})
                         for base in (os.path.join(cache, BORROWS[name]), home))
            with open(os.path.join(own, "borrowed.pth"), "w") as file:
                file.write(lent + "\n")
        pip = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        source = [] if name == "ffcv" else ["--only-binary=:all:"]
        result = subprocess.run(pip + source + ENVIRONMENTS[name], capture_output=True, text=True)
        if result.returncode:
            lines = [line for line in result.stderr.splitlines() if "error" in line.lower()]
            raise Unavailable(f"pip could not install {packages}: {''.join(lines[-1:])}")
        open(done, "w").close()
    return python


def processes(session):
    """The processes of a session: (pid, user and system seconds, reaped children included)."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat") as file:
                fields = file.read().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[3]) == session:
            found.append((pid, sum(map(int, fields[11:15])) / TICK))
    return found


def pss(session):
    total = 0
    for pid, _ in processes(session):
        try:
            with open(f"/proc/{pid}/smaps_rollup") as file:
                total += next(int(line.split()[1]) for line in file if line.startswith("Pss:"))
        except (OSError, StopIteration):
            pass
    return total * 1024 / 1e6


class Peak(threading.Thread):
    def __init__(self, session):
        super().__init__(daemon=True)
        self.session, self.mb, self.over = session, 0.0, False

    def run(self):
        while not self.over:
            self.mb = max(self.mb, pss(self.session))
            time.sleep(0.2)


def measure(command, variables, limit):
    """Runs a peer: (images/s, images per CPU second, peak MB), or None and why."""
    child = subprocess.Popen(command, env={**os.environ, **variables}, cwd=HERE, text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    peak = Peak(child.pid)
    peak.start()
    errors = []
    threading.Thread(target=lambda: errors.extend(child.stderr), daemon=True).start()
    timer = threading.Timer(limit, lambda: os.killpg(child.pid, signal.SIGKILL))
    timer.start()
    before = result = None
    for line in child.stdout:
        if line.startswith("start"):
            before = sum(cpu for _, cpu in processes(child.pid))
        elif line.startswith("stop") and before is not None:
            cpu = sum(cpu for _, cpu in processes(child.pid)) - before
            _, images, wall = line.split()
            result = (int(images) / float(wall), int(images) / max(cpu, 1e-9))
            break
        elif line.startswith("{"):
            told = json.loads(line)
            result = (told["images_per_s"], told["images_per_cpu_s"])
    peak.over = True
    timer.cancel()
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    child.wait()
    if result is None:
        return None, "".join(errors[-1:]).strip() or "no result"
    return (*result, peak.mb), None


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--qfdata", required=True, type=os.path.abspath, help="a release build")
    parser.add_argument("--cache", required=True, type=os.path.abspath, help="folder of environments and sets")
    parser.add_argument("--pairs", type=os.path.abspath, help="folder of NAME.jpg and NAME.txt [default: generated]")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--sets", nargs="+", default=["A", "B", "C"], choices=["A", "B", "C"],
                        help="see make_sets.py")
    parser.add_argument("--only", help="peers whose name holds one of these words, with commas")
    args = parser.parse_args()
    os.makedirs(args.cache, exist_ok=True)
    python = environment(args.cache, "sets")
    kind = "pairs" if args.pairs else "generated"
    sets = os.path.join(os.path.abspath(args.cache), f"sets-{kind}")
    make = [python, os.path.join(HERE, "make_sets.py"), sets] + ([args.pairs] if args.pairs else [])
    subprocess.run(make, check=True)

    words = args.only.lower().split(",") if args.only else [""]
    peers, results, failed = {OURS: None}, {}, {}
    for name, peer in PEERS.items():
        if any(word in name.lower() for word in words):
            try:
                peers[name] = (environment(args.cache, peer[0]), *peer[1:])
            except Unavailable as why:
                failed[name] = str(why)
                print(f"bench: {name} is left out: {why}", file=sys.stderr)
    for number in range(args.rounds):
        for which in args.sets:
            folder = os.path.join(sets, which)
            for workers in args.workers:
                for name, peer in peers.items():
                    if name in failed:
                        continue
                    if name == OURS:
                        command = [args.qfdata, "profile", "--shards", f"{folder}/*.tar", "--json",
                                   "--threads", str(workers), "--seconds", str(args.seconds),
                                   "--tokenizer", f"{sets}/vocab.txt", "--f32"]
                        variables = {}
                    else:
                        interpreter, script, variables, writes = peer
                        command = [interpreter, script, folder, str(workers), str(args.seconds)]
                        if writes and number == 0 and workers == args.workers[0]:
                            subprocess.run(command + ["--write"], cwd=HERE, check=False,
                                           capture_output=True)
                    found, why = measure(command, variables, 60 + args.seconds)
                    if found is None:
                        failed[name] = why
                        print(f"bench: {name} failed: {why}", file=sys.stderr)
                        continue
                    results.setdefault((which, workers, name), []).append(found)
                    shown = " ".join(f"{value:.0f}" for value in found)
                    print(f"bench: round {number + 1} {which} {workers} {name}: {shown}",
                          file=sys.stderr)
    table(results, args, kind)
    for name, why in failed.items():
        print(f"{name} was left out: {why}")


def table(results, args, kind):
    model = "unknown processor"
    with open("/proc/cpuinfo") as file:
        model = next((l.split(":")[1].strip() for l in file if l.startswith("model name")), model)
    print(f"\n{datetime.date.today()}, {os.cpu_count()} cores of {model}, {platform.platform()}; "
          f"{kind} photographs, medians of {args.rounds} rounds of {args.seconds:g} s\n")
    median = {key: [statistics.median(v) for v in zip(*values)] for key, values in results.items()}
    for which in args.sets:
        names = {name for (s, _, name) in median if s == which}
        print(f"| set {which} | " + " | ".join(
            f"images/s, {w} | per CPU s, {w} | ours / theirs | peak MB, {w}" for w in args.workers)
            + " |\n|---" * 1 + "|---" * (4 * len(args.workers)) + "|")
        first = args.workers[0]
        for name in sorted(names, key=lambda n: -median.get((which, first, n), [0, 0])[1]):
            cells = []
            for workers in args.workers:
                found, ours = (median.get((which, workers, n)) for n in (name, OURS))
                cells += ([f"{found[0]:.0f}", f"{found[1]:.0f}", f"{ours[1] / found[1]:.2f}",
                           f"{found[2]:.0f}"] if found and ours else ["–"] * 4)
            print(f"| {name} | " + " | ".join(cells) + " |")
        print()


if __name__ == "__main__":
    main()
