"""The linear merge as most people write it: load all, sum in f32, save.

    python torch_naive.py OUT.safetensors W1,W2,... MODEL.safetensors...
"""

import sys

import torch
from safetensors.torch import load_file, save_file


def main(out: str, weights: str, *models: str) -> None:
    scales = [float(weight) for weight in weights.split(",")]
    loaded = [load_file(model) for model in models]
    merged = {
        name: sum(w * m[name].float() for w, m in zip(scales, loaded)).to(tensor.dtype)
        for name, tensor in loaded[0].items()
    }
    save_file(merged, out, metadata={"format": "pt"})


if __name__ == "__main__":
    with torch.no_grad():
        main(*sys.argv[1:])
