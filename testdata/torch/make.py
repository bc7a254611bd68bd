"""Files of `torch.save` with the tensors of `../gqa`: python make.py

Made with torch 2.5.1. transformers before 4.35 and PEFT before 0.7 wrote such files.
"""

import json
import pathlib
import shutil

import torch
from safetensors.torch import load_file

HERE = pathlib.Path(__file__).parent
GQA = HERE.parent / "gqa"


def folder(name):
    path = HERE / name
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    return path


def model():
    """A model in two shards: one in the format of these days, one in that before PyTorch 1.6."""
    out = folder("gqa")
    tensors = load_file(GQA / "model.safetensors")
    names = sorted(tensors)
    shards = [names[: len(names) // 2], names[len(names) // 2 :]]
    where = {}
    for number, shard in enumerate(shards, 1):
        file = f"pytorch_model-{number:05}-of-00002.bin"
        part = {}
        for name in shard:
            tensor = tensors[name]
            # Not contiguous, or part of a larger storage: PyTorch saves views as they are.
            if name.endswith("q_proj.weight"):
                tensor = tensor.t().contiguous().t()
            if name.endswith("k_proj.weight"):
                tensor = torch.cat([torch.zeros(1, tensor.shape[1]), tensor])[1:]
            part[name] = torch.nn.Parameter(tensor) if number == 1 else tensor
            where[name] = file
        torch.save(part, out / file, _use_new_zipfile_serialization=number == 1)
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": where}
    (out / "pytorch_model.bin.index.json").write_text(json.dumps(index, indent=2))
    shutil.copy(GQA / "config.json", out)


def adapter(name, dtype, **options):
    out = folder(name)
    tensors = load_file(GQA / "lora_qv" / "adapter_model.safetensors")
    tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    torch.save(tensors, out / "adapter_model.bin", **options)
    shutil.copy(GQA / "lora_qv" / "adapter_config.json", out)


model()
adapter("lora", torch.float32)
adapter("lora_legacy", torch.float32, _use_new_zipfile_serialization=False)
adapter("lora_bf16", torch.bfloat16)
# A few bytes that claim gigabytes.
torch.save({"a": torch.zeros(1).expand(1 << 15, 1 << 15)}, HERE / "expanded.bin")
