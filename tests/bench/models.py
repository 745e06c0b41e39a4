"""Write large random BF16 (or F16) Llama folders, and mergekit's configs for merging them.

    python models.py OUT [--gb 1.0] [--count 3] [--f16]

makes OUT/m0, OUT/m1, ..., each a config.json and one model.safetensors of about GB * 10^9
bytes, and OUT/mergekit-linear.yml and OUT/mergekit-task-arithmetic.yml. The tensors have
the names and shapes of a real model (TinyLlama 1.1B, with as many layers as come nearest
to GB), so that mergekit takes the folders; no tokenizer is written, so run it with
--no-copy-tokenizer. Tensors are made and written one at a time: memory stays small.
"""

import argparse
import json
from pathlib import Path

import torch

HIDDEN = 2048
INTERMEDIATE = 5632
VOCAB = 32000
HEADS = 32
KV_HEADS = 4
KV_WIDTH = HIDDEN // HEADS * KV_HEADS
STD = 0.02
BYTES_PER_WEIGHT = 2

LINEAR_WEIGHTS = {"m0": 0.5, "m1": 0.3, "m2": 0.2}
TASK_BASE = "m0"
TASK_WEIGHTS = {"m1": 0.3, "m2": 0.8}

OUTER_SHAPES = {
    "model.embed_tokens.weight": (VOCAB, HIDDEN),
    "model.norm.weight": (HIDDEN,),
    "lm_head.weight": (VOCAB, HIDDEN),
}
LAYER_SHAPES = {
    "input_layernorm.weight": (HIDDEN,),
    "self_attn.q_proj.weight": (HIDDEN, HIDDEN),
    "self_attn.k_proj.weight": (KV_WIDTH, HIDDEN),
    "self_attn.v_proj.weight": (KV_WIDTH, HIDDEN),
    "self_attn.o_proj.weight": (HIDDEN, HIDDEN),
    "post_attention_layernorm.weight": (HIDDEN,),
    "mlp.gate_proj.weight": (INTERMEDIATE, HIDDEN),
    "mlp.up_proj.weight": (INTERMEDIATE, HIDDEN),
    "mlp.down_proj.weight": (HIDDEN, INTERMEDIATE),
}

Shapes = dict[str, tuple[int, ...]]


def size(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel() * BYTES_PER_WEIGHT


def layer_count(wanted_bytes: float) -> int:
    outer = sum(map(size, OUTER_SHAPES.values()))
    layer = sum(map(size, LAYER_SHAPES.values()))
    return max(1, round((wanted_bytes - outer) / layer))


def model_shapes(layers: int) -> Shapes:
    return OUTER_SHAPES | {
        f"model.layers.{i}.{name}": shape
        for i in range(layers)
        for name, shape in LAYER_SHAPES.items()
    }


def write_weights(path: Path, shapes: Shapes, seed: int, f16: bool) -> None:
    """Write the file as safetensors does: sorted names, header padded to 8 bytes."""
    header = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in sorted(shapes):
        start, end = end, end + size(shapes[name])
        header[name] = {
            "dtype": "F16" if f16 else "BF16",
            "shape": shapes[name],
            "data_offsets": [start, end],
        }
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)

    generator = torch.Generator().manual_seed(seed)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little"))
        file.write(encoded)
        for name in sorted(shapes):
            values = torch.randn(shapes[name], generator=generator).mul_(STD)
            values = values.half() if f16 else values.bfloat16()
            file.write(values.view(torch.uint8).numpy())


def write_config(path: Path, layers: int) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "vocab_size": VOCAB,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }
    path.write_text(json.dumps(config, indent=2) + "\n")


def write_mergekit_configs(out: Path) -> None:
    """JSON is YAML, so mergekit reads these. Neither merge divides by its weights' sum."""

    def write(method: str, weights: dict[str, float], **more: str) -> None:
        config = {
            "merge_method": method.replace("-", "_"),
            "models": [
                {"model": str(out / name), "parameters": {"weight": weight}}
                for name, weight in weights.items()
            ],
            "parameters": {"normalize": False},
            "dtype": "bfloat16",
            **more,
        }
        path = out / f"mergekit-{method}.yml"
        path.write_text(json.dumps(config, indent=2) + "\n")

    write("linear", LINEAR_WEIGHTS)
    write("task-arithmetic", TASK_WEIGHTS, base_model=str(out / TASK_BASE))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--gb", type=float, default=1.0, help="size of each model")
    parser.add_argument(
        "--count", type=int, default=3, help="models; the configs need three"
    )
    parser.add_argument("--f16", action="store_true", help="F16 in place of BF16")
    args = parser.parse_args()

    layers = layer_count(args.gb * 1e9)
    shapes = model_shapes(layers)
    out = args.out.resolve()
    for seed in range(args.count):
        folder = out / f"m{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        write_config(folder / "config.json", layers)
        write_weights(folder / "model.safetensors", shapes, seed, args.f16)
    write_mergekit_configs(out)


if __name__ == "__main__":
    main()
