"""The cosines of task vectors with torch: python torch_similarity.py HOW BASE TUNED...

HOW is `pairs`, as people write it: two models at a time; `tensors`: all models of a tensor at a time, by a matrix product;
or `chunked`, the best we could write: chunks that stay in the cache, in buffers that are reused, converted in place.
"""

import itertools
import sys

import torch
from safetensors import safe_open

CHUNK = 1 << 18


def pairs(base, models):
    count = len(models)
    gram = torch.zeros(count, count, dtype=torch.float64)
    for i, j in itertools.combinations_with_replacement(range(count), 2):
        for name in base.keys():
            below = base.get_tensor(name).float()
            a = (models[i].get_tensor(name).float() - below).flatten()
            b = (models[j].get_tensor(name).float() - below).flatten()
            gram[i, j] += torch.dot(a, b).double()
        gram[j, i] = gram[i, j]
    return gram


def tensors(base, models):
    gram = torch.zeros(len(models), len(models), dtype=torch.float64)
    for name in base.keys():
        below = base.get_tensor(name).float()
        stack = torch.stack([(model.get_tensor(name).float() - below).flatten() for model in models])
        gram += (stack @ stack.T).double()
    return gram


def chunked(base, models):
    gram = torch.zeros(len(models), len(models), dtype=torch.float64)
    rows = torch.empty(len(models), CHUNK)
    below = torch.empty(CHUNK)
    for name in base.keys():
        flat = [model.get_tensor(name).view(-1) for model in models]
        flat_base = base.get_tensor(name).view(-1)
        for start in range(0, len(flat_base), CHUNK):
            size = min(CHUNK, len(flat_base) - start)
            part, b = rows[:, :size], below[:size]
            b.copy_(flat_base[start : start + size])
            for row, model in zip(part, flat):
                row.copy_(model[start : start + size])
                row.sub_(b)
            gram += torch.mm(part, part.T).double()
    return gram


def main():
    how, *paths = sys.argv[1:]
    base, *models = [safe_open(path, "pt") for path in paths]
    gram = {"pairs": pairs, "tensors": tensors, "chunked": chunked}[how](base, models)
    norms = gram.diagonal().sqrt()
    print(gram / norms / norms[:, None])


if __name__ == "__main__":
    with torch.inference_mode():
        main()
