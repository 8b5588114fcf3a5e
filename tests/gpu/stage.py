"""What all stages share: where things are, the command line, and the record that they leave.

target/gpu/             the bundle: the binary, and what else a machine without Rust and network needs
target/gpu/out/         results.json (every stage's figures and whether it passed), RESULTS.md, plots, logs/
a temporary folder      checkpoints, which the stages make when they miss them
"""

import argparse
import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = ROOT / "target/gpu"


def out(cpu):
    """What a test of the check itself leaves is never among figures of a GPU."""
    return BUNDLE / ("out-cpu" if cpu else "out")


def scratch(cpu):
    """Room for checkpoints, some 50 GB with a GPU: the disk or memory, whichever has more of it free at first."""
    name = "volley-gpu-check-cpu" if cpu else "volley-gpu-check"
    bases = [os.environ.get("VOLLEY_GPU_SCRATCH")]
    if not bases[0]:
        bases = [base for base in (tempfile.gettempdir(), "/dev/shm") if os.path.isdir(base)]
    base = max(bases, key=lambda base: (os.path.exists(os.path.join(base, name)), shutil.disk_usage(base).free))
    folder = Path(base) / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def device(cpu):
    """The device's name for people."""
    if cpu:
        return f"a CPU ({platform.machine()}): a test of the check itself, no figures of a GPU"
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    name, memory, driver = subprocess.check_output(query, text=True).splitlines()[0].split(", ")
    return f"{name}, {memory}, driver {driver}"


def load(path):
    return json.loads(path.read_text()) if path.exists() else {"device": None, "stages": {}}


def save(path, record):
    """Whole or not at all: a stage may be stopped at any time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".tmp")
    aside.write_text(json.dumps(record, indent=1) + "\n")
    aside.rename(path)


LEFT_OUT = 77  # the exit status of a stage that lacks what it needs


class Stage:
    """A stage that runs, and its part of the record, which is kept up to date on disk."""

    def __init__(self, name, cpu):
        self.name, self.cpu = name, cpu
        self.device = "cpu" if cpu else "cuda"
        self.out, self.scratch = out(cpu), scratch(cpu)
        self.logs = self.out / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)
        self.path = self.out / "results.json"
        self.left_out = False
        self.record = {"notes": [], "failures": [], "tables": {}}
        self._save()

    def note(self, text):
        print(text, flush=True)
        self.record["notes"].append(text)
        self._save()

    def fail(self, text):
        print(f"FAILED: {text}", flush=True)
        self.record["failures"].append(text)
        self._save()

    def leave_out(self, why):
        self.left_out = True
        self.note(f"Left out: {why}.")

    def row(self, table, **cells):
        """A row of a table; the table's columns are those of its first row."""
        print(f"{table}: " + ", ".join(f"{name} {shown(cell)}" for name, cell in cells.items()), flush=True)
        self.record["tables"].setdefault(table, []).append(cells)
        self._save()

    def rows(self, stage, table):
        """What another stage found."""
        return load(self.path)["stages"].get(stage, {}).get("tables", {}).get(table, [])

    def _save(self):
        whole = load(self.path)
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
        whole["device"] = whole["device"] or device(self.cpu)
        whole["stages"][self.name] = whole["stages"].get(self.name, {}) | self.record | {"date": now}
        save(self.path, whole)


def shown(cell):
    """A cell for people: three digits that count."""
    if isinstance(cell, float):
        return f"{cell:.0f}" if abs(cell) >= 100 else f"{cell:.3g}"
    return "-" if cell is None else str(cell)


def run(name, body, choices=()):
    """Runs a stage's script: `body(stage)`, or `body(stage, choice)` where there are choices. Ends with 1 if anything
    failed, with 77 if it was left out."""
    parser = argparse.ArgumentParser(prog=f"tests/gpu/{Path(sys.argv[0]).name}")
    parser.add_argument("--cpu", action="store_true", help="tiny models on the CPU, to test this check itself")
    if choices:
        parser.add_argument("choice", choices=choices)
    options = parser.parse_args()
    stage = Stage(f"{name}-{options.choice}" if choices else name, options.cpu)
    try:
        body(stage, *([options.choice] if choices else []))
    except Exception:  # whatever it is, the record says it and the other stages go on
        stage.fail(traceback.format_exc())
    sys.exit(1 if stage.record["failures"] else LEFT_OUT if stage.left_out else 0)
