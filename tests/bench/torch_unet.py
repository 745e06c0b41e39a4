"""The same as unet.rs with diffusers and torch: median seconds of the CIFAR10 network's passes, 16 images, two threads."""

import statistics
import sys
import time

import torch
from diffusers import UNet2DModel

ROUNDS = 7


def measure(name, run):
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    print(f"{name}: {statistics.median(times):.3f} s ({min(times):.3f}..{max(times):.3f})")


def main():
    torch.set_num_threads(2)
    batch = int(sys.argv[1]) if len(sys.argv) > 1 else 16
    network = UNet2DModel(
        sample_size=32,
        block_out_channels=[128, 256, 256, 256],
        down_block_types=["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
        up_block_types=["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
        attention_head_dim=None,
        norm_eps=1e-6,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
    )
    images, timesteps = torch.zeros(batch, 3, 32, 32), torch.full((batch,), 500)

    def forward():
        with torch.no_grad():
            network(images, timesteps)

    def both():
        network.zero_grad()
        network(images, timesteps).sample.square().mean().backward()

    measure("forward", forward)
    measure("forward and backward", both)


main()
