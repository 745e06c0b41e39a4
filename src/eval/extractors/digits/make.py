"""Train the digit classifier that is part of the program.

    python make.py

makes digits.safetensors beside this file, whose layers digits.json describes, from scikit-learn's digits (pixels are
multiplied by 255/16 and rounded, as images of bytes), and prints how many of 360 held-out digits it tells.

The classifier is a measure, so it should see what digits differ by and not where they lie exactly: in training they
are moved by up to a pixel.

Made with torch 2.15.0 (CPU), scikit-learn 1.9.1, safetensors 0.8.0 and Python 3.11, in a minute and without network. One
machine repeats the file bit for bit; another may differ in the last bits.
"""

import json
from collections import OrderedDict
from pathlib import Path

import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

HERE = Path(__file__).resolve().parent
HELD_OUT = 360
STEPS = 3000
BATCH = 64
RATE = 2e-3


def network() -> nn.Module:
    layers = []
    channels = 1
    for layer in json.loads((HERE / "digits.json").read_text())["layers"]:
        name = layer.get("name", f"layer{len(layers)}")
        if layer["type"] == "conv":
            width = {"conv1": 32, "conv2": 64}[name]
            module = nn.Conv2d(channels, width, 3, padding=layer["padding"])
            channels = width
        elif layer["type"] == "linear":
            module = nn.Linear(*{"fc1": (64 * 4, 64), "fc2": (64, 10)}[name])
        else:
            module = {
                "relu": nn.ReLU,
                "max-pool": lambda: nn.MaxPool2d(2),
                "flatten": nn.Flatten,
            }[layer["type"]]()
        layers.append((name, module))
    return nn.Sequential(OrderedDict(layers))


def moved(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    padded = functional.pad(images, (1, 1, 1, 1))
    places = torch.randint(3, (len(images), 2), generator=generator)
    return torch.stack(
        [image[:, y : y + 8, x : x + 8] for image, (y, x) in zip(padded, places.tolist())]
    )


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    digits = load_digits()
    pixels = torch.tensor(digits.images / 16 * 255).round().float()[:, None]
    images = (pixels / 255 - 0.5) / 0.5
    labels = torch.tensor(digits.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    held_out, train = order[:HELD_OUT], order[HELD_OUT:]
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        batch = train[torch.randint(len(train), (BATCH,), generator=generator)]
        seen = moved(images[batch], generator)
        loss = functional.cross_entropy(model(seen), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        told = int((model(images[held_out]).argmax(1) == labels[held_out]).sum())
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, HERE / "digits.safetensors", {"format": "pt"})
    print(f"{told} of {HELD_OUT} held-out digits, {sum(t.numel() for t in state.values())} parameters")


if __name__ == "__main__":
    main()
