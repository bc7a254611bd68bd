"""Adapters by PEFT of small models whose vocabulary was resized: 32 tokens, and 35 afterwards.

    python make.py

`untied` and `tied` are the bases before. Each folder in them is an adapter as PEFT saves it, with
`logits` of `tokens` (both in `io.safetensors`) beside it:

- `lora`: LoRA of q and v. PEFT stores embedding and head whole, as the vocabulary is another one.
- `rows`: rows of the new tokens beside LoRA (`trainable_token_indices`), of the head, too, if it has
  weights of its own.
- `rows_alone`: the same stored without embedding and head (`save_embedding_layers=False`).
- `whole`: copies of embedding and head (`modules_to_save`).

`means` in `io.safetensors` of a base are the last rows of embedding and head after
`resize_token_embeddings(35)`: transformers draws them around the mean of the others.
"""

import pathlib
import shutil

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

HERE = pathlib.Path(__file__).parent
OLD, NEW = 32, 35
TOKENS = torch.tensor([[1, 33, 7, 34, 20, 32, 5], [34, 34, 2, 3, 4, 32, 0]])


def adapters(tied):
    new = list(range(OLD, NEW))
    rows = new if tied else {"embed_tokens": new, "lm_head": new}
    lora = {"r": 2, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    return {
        "lora": LoraConfig(**lora),
        "rows": LoraConfig(**lora, trainable_token_indices=rows),
        "rows_alone": LoraConfig(**lora, trainable_token_indices=rows),
        "whole": LoraConfig(**lora, modules_to_save=["embed_tokens", "lm_head"]),
    }


def shake(model):
    """Gives all that is trained other values."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn_like(parameter) * 0.2


def main():
    for name, tied in [("untied", False), ("tied", True)]:
        torch.manual_seed(7)
        folder = HERE / name
        shutil.rmtree(folder, ignore_errors=True)
        config = LlamaConfig(
            vocab_size=OLD, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
            tie_word_embeddings=tied, initializer_range=0.5, bos_token_id=1, eos_token_id=2,
        )
        LlamaForCausalLM(config).save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        for adapter, settings in adapters(tied).items():
            base = LlamaForCausalLM.from_pretrained(folder)
            base.resize_token_embeddings(NEW)
            if adapter == "lora":
                rows = {
                    "embedding": base.get_input_embeddings().weight[OLD:].clone(),
                    "head": base.get_output_embeddings().weight[OLD:].clone(),
                }
                save_file(rows, folder / "io.safetensors")
            base.name_or_path = base.config._name_or_path = str(folder)
            model = get_peft_model(base, settings).eval()
            shake(model)
            whole = False if adapter == "rows_alone" else "auto"
            model.save_pretrained(folder / adapter, save_embedding_layers=whole)
            with torch.no_grad():
                logits = model(TOKENS).logits
            save_file({"tokens": TOKENS, "logits": logits}, folder / adapter / "io.safetensors")
            (folder / adapter / "README.md").unlink(missing_ok=True)
            config = folder / adapter / "adapter_config.json"
            config.write_text(config.read_text().replace(f'"{folder}"', '"base"'))


main()
