"""Reads adapters of `burn-lora export --adapter-only FOLDER` with vLLM's own code.

    python scripts/vllm_adapters.py BURN_LORA VLLM TESTDATA

BURN_LORA is the program, VLLM a folder with the Python files of vLLM's wheel (`vllm/lora`, `vllm/model_executor/models`): only
its checks of settings and names run, so that neither a GPU nor its other packages are needed. TESTDATA is ours. Python
needs torch and safetensors.

For each adapter: what vLLM says of the folder as it was trained, and of the export, and whether B·A times the scaling is
the same in both.
"""

import ast
import importlib.abc
import importlib.machinery
import json
import pathlib
import subprocess
import sys
import tempfile
from types import SimpleNamespace
from unittest.mock import MagicMock

import torch
from safetensors.torch import load_file

BURN_LORA, VLLM, TESTDATA = sys.argv[1:]
VLLM, TESTDATA = pathlib.Path(VLLM), pathlib.Path(TESTDATA)
OWN = ["vllm.lora.peft_helper", "vllm.lora.lora_weights", "vllm.lora.lora_model", "vllm.lora.utils"]


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Modules of vLLM: those of OWN are read, all others are empty."""

    def find_spec(self, name, path, target=None):
        if name.split(".")[0] not in ("vllm", "regex", "transformers", "huggingface_hub"):
            return None
        if name in OWN:
            return importlib.util.spec_from_file_location(name, VLLM / (name.replace(".", "/") + ".py"))
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        module = MagicMock(name=spec.name)
        module.__path__, module.__spec__ = [], spec
        if spec.name == "regex":
            import re

            return re
        if spec.name == "vllm.utils.torch_utils":
            module.PIN_MEMORY = False
        return module

    def exec_module(self, module):
        pass


sys.meta_path.insert(0, Finder())
from vllm.lora.lora_model import LoRAModel  # noqa: E402
from vllm.lora.peft_helper import PEFTHelper  # noqa: E402

# Files with the classes of models, by `model_type`.
MODELS = {"llama": "llama", "mistral": "mistral", "qwen2": "qwen2", "qwen3": "qwen3", "qwen3_moe": "qwen3_moe", "mixtral": "mixtral",
          "phi3": "phi3", "gemma3_text": "gemma3", "gpt_oss": "gpt_oss"}


def attributes(file, name):
    """`packed_modules_mapping` and `embedding_modules` of a class, or of those that it is made from."""
    tree = ast.parse((VLLM / "vllm/model_executor/models" / f"{file}.py").read_text())
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    found = {"packed_modules_mapping": {}, "embedding_modules": {}}
    if name not in classes:
        return attributes("llama", name) if file != "llama" else found
    for base in classes[name].bases:
        if isinstance(base, ast.Name) and base.id.endswith("ForCausalLM"):
            found |= attributes(file, base.id)
    for node in classes[name].body:
        target = getattr(node, "targets", [getattr(node, "target", None)])[0]
        if isinstance(target, ast.Name) and target.id in found and node.value is not None:
            found[target.id] = ast.literal_eval(node.value)
    return found


def expected(config):
    """Names of layers that take an adapter, as vLLM's `worker_manager.py` makes them."""
    found = attributes(MODELS[config["model_type"]], config["architectures"][0])
    packed = found["packed_modules_mapping"]
    linear = {"qkv_proj", "gate_up_proj", "o_proj", "down_proj"} | set(found["embedding_modules"])
    # Layers of all experts: of other families than gpt-oss vLLM wants to be told that they are stacked.
    experts = {"experts"} if config["model_type"] == "gpt_oss" else set()
    return {name for module in linear for name in packed.get(module, [module])} | experts


def read(folder, config):
    """vLLM's layers of an adapter, or its complaint."""
    try:
        helper = PEFTHelper.from_local_dir(str(folder), None)
        helper.validate_legal(SimpleNamespace(max_lora_rank=512))
        lora = LoRAModel.from_local_checkpoint(str(folder), expected(config), helper, device="cpu", lora_model_id=1, model_vocab_size=config["vocab_size"])
        return {name: layer.scaling * layer.lora_b @ layer.lora_a for name, layer in lora.loras.items()}
    except (ValueError, RuntimeError, NotImplementedError) as error:
        return f"refused: {str(error)[:110]}"


def shown(found):
    return found if isinstance(found, str) else f"{len(found)} layers"


def difference(a, b):
    if isinstance(a, str) or isinstance(b, str):
        return ""
    assert a.keys() == b.keys()
    return f"{max((a[name] - b[name]).abs().max().item() for name in a):.0e}"


print("| adapter | vLLM of its folder | vLLM of the export | difference |")
print("|---|---|---|---|")
out = pathlib.Path(tempfile.mkdtemp(prefix="vllm-"))
for settings in sorted(TESTDATA.glob("*/*/adapter_config.json")) + sorted(TESTDATA.glob("*/*/*/adapter_config.json")):
    folder, base = settings.parent, settings.parent.parent
    name = str(folder.relative_to(TESTDATA))
    if not (base / "config.json").exists() or not (base / "model.safetensors").exists():
        continue
    config = json.loads((base / "config.json").read_text())
    if config["model_type"] not in MODELS or "CausalLM" not in config["architectures"][0]:
        continue
    # Models of the test data have no tokenizer.
    made = out / name.replace("/", "-")
    model = out / f"{made.name}-base"
    model.mkdir()
    for file in ("config.json", "model.safetensors"):
        (model / file).symlink_to((base / file).resolve())
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (model / file).symlink_to((TESTDATA / "tokenizer" / file).resolve())
    done = subprocess.run([BURN_LORA, "export", model, made, "--adapter", folder, "--adapter-only"], capture_output=True, text=True)
    before = read(folder, config)
    after = read(made, config) if done.returncode == 0 else f"not written: {done.stderr.strip().splitlines()[-1][:150]}"
    print(f"| {name} | {shown(before)} | {shown(after)} | {difference(before, after)} |", flush=True)
