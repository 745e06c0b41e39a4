"""Time FID of features against pytorch-fid: python fid.py CKPTMERGE DIR [--count 5000] [--rounds 3] [--threads N]

Writes two sets of 2048-dimensional features to DIR and times, in turn, `ckptmerge fid A B` with the program's start and
the reading of both files, and numpy.mean, numpy.cov and pytorch_fid's calculate_frechet_distance on arrays that are in
memory already. Prints seconds, with those of all cores together in brackets, and both distances.
"""

import argparse
import json
import resource
import subprocess
import time
from pathlib import Path
from statistics import median

import numpy as np
from pytorch_fid.fid_score import calculate_frechet_distance

DIMENSION = 2048


def features(seed: int, count: int, shift: float) -> np.ndarray:
    """Not negative, with variances that fall off as those of Inception's features do."""
    mix = np.random.default_rng(0).normal(size=(DIMENSION, DIMENSION)) / np.sqrt(DIMENSION)
    mix *= np.exp(-np.arange(DIMENSION) / 300)[:, None]
    drawn = np.random.default_rng(seed).normal(shift, 1, (count, DIMENSION))
    return np.maximum(drawn @ mix + 0.3, 0).astype(np.float32)


def theirs(a: np.ndarray, b: np.ndarray) -> float:
    statistics = [(np.mean(f, axis=0), np.cov(f, rowvar=False)) for f in (a.astype(np.float64), b.astype(np.float64))]
    return float(calculate_frechet_distance(*statistics[0], *statistics[1]))


def timed(who: int, work) -> tuple[float, float, float]:
    """What work returns, and the seconds that it took on the clock and on all cores."""

    def cores() -> float:
        used = resource.getrusage(who)
        return used.ru_utime + used.ru_stime

    start = time.perf_counter(), cores()
    value = work()
    return value, time.perf_counter() - start[0], cores() - start[1]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("ckptmerge")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    sets = {name: features(seed, arguments.count, 0.1 * seed) for seed, name in enumerate(["a", "b"], 1)}
    files = []
    for name, values in sets.items():
        files.append(str(arguments.folder / f"{name}.npy"))
        np.save(files[-1], values)
    command = [arguments.ckptmerge, "fid", *files, "--json", "--quiet"]
    if arguments.threads:
        command += ["--threads", str(arguments.threads)]
    times = {"ckptmerge": [], "pytorch-fid": []}
    values = {}

    def ours() -> float:
        return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["value"]

    for _ in range(arguments.rounds):
        for tool, who, work in [
            ("ckptmerge", resource.RUSAGE_CHILDREN, ours),
            ("pytorch-fid", resource.RUSAGE_SELF, lambda: theirs(*sets.values())),
        ]:
            values[tool], *seconds = timed(who, work)
            times[tool].append(seconds)
    for tool, rounds in times.items():
        each = ", ".join(f"{clock:.2f} [{cores:.2f}]" for clock, cores in rounds)
        print(f"{tool:12} {each}  FID {values[tool]:.9f}")
    for index, what in enumerate(["the clock", "all cores"]):
        ratio = median(r[index] for r in times["pytorch-fid"]) / median(r[index] for r in times["ckptmerge"])
        print(f"{ratio:.1f} times as fast by {what}")


if __name__ == "__main__":
    main()
