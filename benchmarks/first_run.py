"""What a newcomer waits for: the help text, a demo, a simulated shop of a million customers.

    .venv/bin/python benchmarks/first_run.py [--customers N]

Prints a Markdown table: seconds and peak memory of each command, and how often a bare Python start fits into it,
the start measured in the same run.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TIERCAST = str(Path(sys.executable).parent / "tiercast")


def measured(command: list[str]) -> tuple[float, float]:
    """(seconds, peak resident MiB of the process itself) of a command that must succeed."""
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return time.perf_counter() - started, usage.ru_maxrss / 1024


def median(command: list[str], runs: int) -> tuple[float, float]:
    """The median of several runs."""
    seconds, memory = zip(*(measured(command) for _ in range(runs)), strict=True)
    return statistics.median(seconds), statistics.median(memory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--customers", type=int, default=1_000_000)
    asked = parser.parse_args()
    start, _ = median([sys.executable, "-c", "pass"], 7)
    print("| command | seconds | bare Python starts | peak MiB |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="tiercast-") as folder:
        simulate = ["simulate", f"{folder}/shop", "--customers", str(asked.customers), "--months", "24", "--seed", "7"]
        for arguments, runs in (
            (["--help"], 7),
            (["demo", "--exit", "--workspace", f"{folder}/workspace"], 1),
            (simulate, 1),
        ):
            seconds, memory = median([TIERCAST, *arguments], runs)
            shown = " ".join(argument for argument in arguments if folder not in argument and argument != "--workspace")
            print(f"| `tiercast {shown}` | {seconds:.2f} | {seconds / start:.1f} | {memory:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
