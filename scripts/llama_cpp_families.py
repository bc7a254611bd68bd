"""Logits of llama.cpp with GGUF files of `burn-lora export`, beside those of transformers.

    python scripts/llama_cpp_families.py BURN_LORA BINDINGS BUILD TESTDATA [TOKENIZER ..]

BURN_LORA is the program, BINDINGS the folder `llama_cpp` of the package llama-cpp-python (its source suffices), BUILD the
folder with llama.cpp's libraries, TESTDATA ours. Python needs numpy, safetensors, torch, transformers and tokenizers.

For each small model: the largest difference of logits in float32 and with MXFP4 experts, and the largest logit. For each
TOKENIZER, a folder with tokenizer.json: of how many texts llama.cpp makes the tokens that the package tokenizers makes.
"""

import ctypes
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import types

import numpy as np
from safetensors.numpy import load_file, save_file

BURN_LORA, BINDINGS, BUILD, TESTDATA, *TOKENIZERS = sys.argv[1:]
TESTDATA = pathlib.Path(TESTDATA)
OUT = pathlib.Path(tempfile.mkdtemp(prefix="llama-cpp-"))
os.environ["LLAMA_CPP_LIB_PATH"] = BUILD
# The package itself wants more than its bindings do.
package = types.ModuleType("llama_cpp")
package.__path__ = [BINDINGS]
sys.modules["llama_cpp"] = package
import llama_cpp.llama_cpp as llama  # noqa: E402

LOG = []
KEPT = llama.llama_log_callback(lambda level, text, _: LOG.append(text.decode()))
llama.llama_log_set(KEPT, ctypes.c_void_p(0))
llama.llama_backend_init()


def tokenizer(folder):
    """Writes a byte-level tokenizer of 28 tokens."""
    vocabulary = {letter: number for number, letter in enumerate("abcdefghijklmnopqrstuvwxyzĠ")}
    end = {"id": 27, "content": "<|end|>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    by = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {"type": "BPE", "vocab": vocabulary, "merges": [], "byte_fallback": False, "fuse_unk": False, "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None, "ignore_merges": False}
    json_ = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [end], "normalizer": None, "pre_tokenizer": by, "post_processor": None, "decoder": by, "model": model}
    (folder / "tokenizer.json").write_text(json.dumps(json_))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>"}))


def export(folder, kind="f32"):
    # llama.cpp expects certain tokens of a model that is called phi3.
    path = OUT / f"{folder.name.replace('phi', 'p')}-{kind}.gguf"
    done = subprocess.run([BURN_LORA, "export", folder, path, "--type", kind, "--force"], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{folder}: {done.stdout}{done.stderr}")
    return path


def load(path):
    settings = llama.llama_model_default_params()
    model = llama.llama_model_load_from_file(str(path).encode(), settings)
    return model or sys.exit(f"llama.cpp does not load {path}: {''.join(LOG[-4:])}")


def logits(path, ids):
    model = load(path)
    settings = llama.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_ubatch, settings.n_threads = 256, 256, 256, 2
    settings.type_k = settings.type_v = 0  # float32
    settings.flash_attn_type = 0
    context = llama.llama_init_from_model(model, settings)
    batch = llama.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for at, token in enumerate(ids):
        batch.token[at], batch.pos[at], batch.n_seq_id[at], batch.seq_id[at][0], batch.logits[at] = int(token), at, 1, 0, 1
    assert llama.llama_decode(context, batch) == 0
    size = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    found = np.stack([np.ctypeslib.as_array(llama.llama_get_logits_ith(context, at), (size,)).copy() for at in range(len(ids))])
    llama.llama_free(context)
    llama.llama_model_free(model)
    return found


def transformers_logits(folder, ids):
    import torch
    import transformers
    from transformers import AutoModelForCausalLM

    transformers.utils.logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.tensor([ids.tolist()])).logits[0].numpy()


def case(name, change=None):
    """A model of our test data with a tokenizer, the first of its batch's rows, and transformers' logits of it."""
    source, folder = TESTDATA / name, OUT / (pathlib.Path(name).name + ("-changed" if change else ""))
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("lora*", "grads*", "*.gguf", "config_old.json"))
    tokenizer(folder)
    io = load_file(source / "io.safetensors")
    ids = io["input_ids"][0]
    if not change:
        return folder, ids, io["logits"][0]
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
    if not config.get("attention_bias", True):
        tensors = load_file(folder / "model.safetensors")
        save_file({name: data for name, data in tensors.items() if not name.endswith(".bias")}, folder / "model.safetensors", {"format": "pt"})
    return folder, ids, transformers_logits(folder, ids)


def longer(config):
    # Within the original length, so that the short divisors are those of these tokens.
    for fields in (config, config["rope_parameters"]):
        fields["original_max_position_embeddings"] = 4096
    config["max_position_embeddings"] = 16384


def whole(config):
    # llama.cpp has no sliding window for Phi-3.
    config["sliding_window"] = None


def plain(config):
    # llama.cpp's Qwen 3 has no biases.
    config["attention_bias"] = False


CASES = [("gqa",), ("llama3",), ("families/yarn",), ("families/qwen2",), ("families/qwen3", plain), ("decoders/mixtral",),
         ("decoders/phi3", whole), ("decoders/phi4_mini",), ("decoders/phi4_mini", longer), ("decoders/gpt_oss",), ("decoders/gpt_oss_mxfp4",)]
print("| model | F32 | MXFP4 experts | largest logit |")
print("|---|---|---|---|")
for name, *change in CASES:
    folder, ids, expected = case(name, *change)
    off = lambda kind: f"{np.abs(logits(export(folder, kind), ids) - expected).max():.1e}"  # noqa: E731
    experts = off("mxfp4") if "gpt_oss" in name else ""
    print(f"| {folder.name} | {off('f32')} | {experts} | {np.abs(expected).max():.2f} |", flush=True)

TEXTS = ["Hello, world!", " 3 33 333 3333 33333", "it's I'M we'LL they'd", "tabs\t\tand\n\n \n lines  \n", "naïve café Größe", "яблоко ЯБЛОКО Яблоко", "日本語と中文字符", "🦙 emoji 👨‍👩‍👧", "camelCaseWords AND_SHOUTED/paths", "a\r\nb\r\n", "    indented = {x: [1, 2.5e-3]}", "ﬁ ½ ² Ⅷ", " ", "", "…—‘quotes’", "हिन्दी ไทย العربية"]


def tokenizes(folder):
    """A model of one small layer with the tokenizer of a folder, in llama.cpp and in tokenizers."""
    import tokenizers

    own = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    model = OUT / f"tokenizer-{folder.name}"
    model.mkdir()
    for file in folder.glob("*.json"):
        shutil.copy(file, model)
    config = json.loads((TESTDATA / "gqa/config.json").read_text())
    config["vocab_size"] = own.get_vocab_size() + 8
    config["bos_token_id"] = config["eos_token_id"] = None
    (model / "config.json").write_text(json.dumps(config))
    tensors = load_file(TESTDATA / "gqa/model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in tensors:
            tensors[name] = np.zeros((config["vocab_size"], config["hidden_size"]), np.float32)
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    loaded = load(export(model, "f16"))
    vocabulary, same, room = llama.llama_model_get_vocab(loaded), 0, (llama.llama_token * 4096)()
    for text in TEXTS:
        raw = text.encode()
        count = llama.llama_tokenize(vocabulary, raw, len(raw), room, 4096, False, False)
        expected = own.encode(text, add_special_tokens=False).ids
        same += list(room[:count]) == expected
        if list(room[:count]) != expected:
            print(f"  {text!r}: {list(room[:count])}, not {expected}")
    ends = [token for token in range(config["vocab_size"]) if llama.llama_vocab_is_eog(vocabulary, token)]
    names = [own.id_to_token(token) for token in ends]
    print(f"{folder.name}: {same} of {len(TEXTS)} texts; ends of text {names}", flush=True)


for folder in map(pathlib.Path, TOKENIZERS):
    tokenizes(folder)
