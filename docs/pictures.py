"""Draw the README's pictures of a model that never was: a base and four fine-tuned models of 32 layers.

    CKPTMERGE=target/release/ckptmerge python docs/pictures.py

What the four changed is drawn from normal distributions that are correlated as fine-tunes of a diffusion model on
neighbouring timestep ranges are (DeMe, figures 6b and 7): neighbours a little alike, others nearly orthogonal, changes
larger for later ranges and in the middle of the network. Made with NumPy 2.4 and safetensors 0.8.
"""

import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

LAYERS = 32
WIDTH = 64
BLOCKS = {
    "self_attn.q_proj.weight": (WIDTH, WIDTH),
    "self_attn.k_proj.weight": (WIDTH // 4, WIDTH),
    "self_attn.v_proj.weight": (WIDTH // 4, WIDTH),
    "self_attn.o_proj.weight": (WIDTH, WIDTH),
    "mlp.gate_proj.weight": (2 * WIDTH, WIDTH),
    "mlp.up_proj.weight": (2 * WIDTH, WIDTH),
    "mlp.down_proj.weight": (WIDTH, 2 * WIDTH),
    "input_layernorm.weight": (WIDTH,),
}
NAMES = ["t0-250", "t250-500", "t500-750", "t750-1000"]
COSINE = np.array([
    [1.00, 0.21, 0.07, 0.03],
    [0.21, 1.00, 0.18, 0.06],
    [0.07, 0.18, 1.00, 0.24],
    [0.03, 0.06, 0.24, 1.00],
])
SIZE = [0.4, 0.6, 1.0, 1.4]


def models(random: np.random.Generator) -> list[dict[str, np.ndarray]]:
    mix = np.linalg.cholesky(COSINE)
    made = [{} for _ in range(5)]
    for layer in range(LAYERS):
        place = layer / (LAYERS - 1)
        # Deeper layers are more alike, and the middle changes most.
        alike = mix if layer < 24 else np.linalg.cholesky(np.minimum(COSINE * 1.8, 1 - 0.3 * (COSINE < 1)))
        bump = 0.3 + np.exp(-((place - 0.55) ** 2) / 0.06)
        for block, shape in BLOCKS.items():
            name = f"model.layers.{layer}.{block}"
            base = random.normal(0, 0.02, shape)
            loud = {"mlp": 1.0, "sel": 0.6, "inp": 0.15}[block[:3]]
            changes = np.tensordot(alike, random.normal(0, 2e-3 * bump * loud, (4, *shape)), 1)
            made[0][name] = base.astype(np.float32)
            for model, change, size in zip(made[1:], changes, SIZE):
                model[name] = (base + size * change).astype(np.float32)
    return made


def main() -> None:
    docs = Path(__file__).resolve().parent
    binary = Path(os.environ["CKPTMERGE"]).resolve()
    with tempfile.TemporaryDirectory() as folder:
        for name, model in zip(["base", *NAMES], models(np.random.default_rng(7))):
            save_file(model, f"{folder}/{name}.safetensors")
        files = [f"{name}.safetensors" for name in ["base", *NAMES]]
        for command, options, picture in [
            ("similarity", [], "similarity.svg"),
            ("similarity", ["--theme", "dark"], "similarity-dark.svg"),
            ("similarity", ["--by", "layer"], "similarity-layers.svg"),
            ("stats", [], "stats-layers.svg"),
            ("stats", ["--by", "model"], "stats-models.svg"),
        ]:
            run = [binary, command, *files, *options, "--plot", docs / picture, "-q"]
            subprocess.run(run, cwd=folder, check=True)


if __name__ == "__main__":
    main()
