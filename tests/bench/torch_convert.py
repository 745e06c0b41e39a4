"""Convert a checkpoint of torch's to safetensors in F16, as people do it.

    python torch_convert.py OUT IN
"""

import sys

import torch
from safetensors.torch import save_file

out, path = sys.argv[1:]
model = torch.load(path, map_location="cpu", weights_only=True)
model = model.get("state_dict", model)
save_file({name: tensor.to(torch.float16).contiguous() for name, tensor in model.items()}, out)
