"""How long the light commands take: the median of a few runs each, whole processes.

python benchmarks/startup.py [--runs 5]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

COMMANDS = (("--help",), ("--version",), ("list", "recipes"), ("config", "show", "demo"), ("doctor",))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    for command in COMMANDS:
        seconds = []
        for _ in range(runs + 1):
            begin = time.perf_counter()
            subprocess.run([sys.executable, "-m", "shepherd", *command], check=True, capture_output=True)
            seconds.append(time.perf_counter() - begin)
        counted = seconds[1:]  # the first run fills the file cache
        print(
            f"shepherd {' '.join(command):<20} median {statistics.median(counted):.3f} s  "
            f"({min(counted):.3f} to {max(counted):.3f})"
        )


if __name__ == "__main__":
    main()
