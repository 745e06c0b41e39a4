"""The linear merge as well as we can write it with numpy alone.

    python numpy_linear.py OUT.safetensors W1,W2,... MODEL.safetensors...

The design of torch_linear.py without torch, whose import alone takes longer than this
merge: numpy has no BF16, but BF16 is the upper half of an F32, so widening is a shift and
rounding to nearest even is a few integer operations. Finite weights only: the rounding
would turn some NaNs into other values.
"""

import itertools
import json
import os
import sys
import threading

import numpy as np

THREADS = 2
CHUNK = 1 << 18  # weights: 0.5 MiB of each input, 1 MiB of f32 sums
BYTES_PER_WEIGHT = 2
BF16_SHIFT = 16  # bits of an F32 below those that BF16 keeps
ALMOST_HALF = (1 << (BF16_SHIFT - 1)) - 1


def open_mapped(path: str) -> tuple[dict, np.memmap, int]:
    """The header, the mapped file, and where its data starts."""
    mapped = np.memmap(path, np.uint8, "r")
    start = 8 + int.from_bytes(mapped[:8].tobytes(), "little")
    header = json.loads(mapped[8:start].tobytes())
    header.pop("__metadata__", None)
    if any(entry["dtype"] != "BF16" for entry in header.values()):
        sys.exit(f"{path}: not all BF16")
    return header, mapped, start


def scale(values: np.ndarray, weight: np.float32, out: np.ndarray) -> None:
    """Widen BF16 bits to F32 in `out`, times the weight."""
    np.left_shift(values, BF16_SHIFT, out=out.view(np.uint32), dtype=np.uint32)
    np.multiply(out, weight, out=out)


def merge(out: str, weights: list[np.float32], models: list[str]) -> None:
    opened = [open_mapped(model) for model in models]
    first_header, first_map, start = opened[0]
    if any(header != first_header for header, _, _ in opened):
        sys.exit("the models' tensors differ in name, shape or place")
    inputs = [mapped[offset:].view(np.uint16) for _, mapped, offset in opened]
    count = len(inputs[0])

    file = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.posix_fallocate(file, 0, len(first_map))
    os.pwrite(file, first_map[:start], 0)
    chunk_starts = itertools.count(0, CHUNK)  # next() on it is atomic

    def work() -> None:
        total_buffer = np.empty(CHUNK, np.float32)
        term_buffer = np.empty(CHUNK, np.float32)
        rounded_buffer = np.empty(CHUNK, np.uint16)
        while (at := next(chunk_starts)) < count:
            n = min(CHUNK, count - at)
            total, term, rounded = total_buffer[:n], term_buffer[:n], rounded_buffer[:n]
            total_bits, term_bits = total.view(np.uint32), term.view(np.uint32)
            scale(inputs[0][at : at + n], weights[0], total)
            for values, weight in zip(inputs[1:], weights[1:]):
                scale(values[at : at + n], weight, term)
                np.add(total, term, out=total)
            # Round up if above half, or at half and the kept part is odd.
            np.right_shift(total_bits, BF16_SHIFT, out=term_bits)
            np.bitwise_and(term_bits, 1, out=term_bits)
            np.add(term_bits, ALMOST_HALF, out=term_bits)
            np.add(total_bits, term_bits, out=total_bits)
            np.right_shift(total_bits, BF16_SHIFT, out=rounded, casting="unsafe")
            os.pwrite(file, rounded, start + at * BYTES_PER_WEIGHT)

    threads = [threading.Thread(target=work) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.close(file)


if __name__ == "__main__":
    merge(sys.argv[1], [np.float32(w) for w in sys.argv[2].split(",")], sys.argv[3:])
