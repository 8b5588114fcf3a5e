"""Looks at the GPU through nvidia-smi while something runs: memory in use, and how often a kernel was running."""

import subprocess
import tempfile
from statistics import mean

FIELDS = "utilization.gpu,memory.used,memory.total"
PERIOD = 100  # milliseconds


def parse(line):
    """(percent of the time in which a kernel ran, bytes used, bytes in all) of one sample."""
    busy, used, total = line.split(", ")
    return float(busy), float(used) * 2**20, float(total) * 2**20


def now():
    """One sample; None without a GPU."""
    try:
        command = ["nvidia-smi", f"--query-gpu={FIELDS}", "--format=csv,noheader,nounits", "--id=0"]
        return parse(subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL).strip())
    except (OSError, subprocess.CalledProcessError, ValueError):
        return None


class Watch:
    """Samples while it is entered; then `idle` is the percentage of the time without a kernel, and `peak` the most
    bytes that were used. None without a GPU."""

    idle = peak = None

    def __enter__(self):
        command = [
            "nvidia-smi",
            f"--query-gpu={FIELDS}",
            "--format=csv,noheader,nounits",
            "--id=0",
            f"--loop-ms={PERIOD}",
        ]
        self.samples = tempfile.TemporaryFile("w+")
        try:
            self.process = subprocess.Popen(command, stdout=self.samples, stderr=subprocess.DEVNULL)
        except OSError:
            self.process = None
        return self

    def __exit__(self, *_):
        if self.process is None:
            return
        self.process.terminate()
        self.process.wait()
        self.samples.seek(0)
        samples = []
        for line in self.samples:
            try:
                samples.append(parse(line.strip()))
            except ValueError:
                pass  # the last line, cut short
        if samples:
            # The first and last belong to what was before and after.
            inner = samples[2:-2] or samples
            self.idle = 100 - mean(busy for busy, _, _ in inner)
            self.peak = max(used for _, used, _ in samples)
