"""Checks GGUF files of `burn-lora export` with llama.cpp itself.

    python scripts/llama_cpp.py BURN_LORA LLAMA_CPP BUILD MODEL TEXT [ADAPTER]

BURN_LORA is the program, LLAMA_CPP the source folder of llama.cpp, BUILD the folder with its programs
`llama-perplexity` and `llama-quantize`, MODEL a model in Hugging Face's layout, TEXT a file of at least 1,100
tokens, ADAPTER a LoRA of the model. Python needs torch, transformers, safetensors and gguf (of LLAMA_CPP).

For each type: perplexity of TEXT with our file, and with the file that llama.cpp's converter and quantizer make;
how many tensors of both are the same byte for byte. With ADAPTER: merged by us, as our GGUF adapter, and as our
exported folder through llama.cpp's converter.
"""

import pathlib
import re
import subprocess
import sys
import tempfile

BURN_LORA, LLAMA_CPP, BUILD, MODEL, TEXT, *ADAPTER = sys.argv[1:]
sys.path.insert(0, f"{LLAMA_CPP}/gguf-py")
from gguf import GGUFReader  # noqa: E402

OUT = pathlib.Path(tempfile.mkdtemp(prefix="llama-cpp-"))
TYPES = ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_k", "q6_k"]


def run(*command):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{command}\n{done.stdout}\n{done.stderr}")
    return done.stdout + done.stderr


def perplexity(model, *more):
    # llama-perplexity sometimes ends before its last line is written.
    for _ in range(10):
        out = run(f"{BUILD}/llama-perplexity", "-m", model, "-f", TEXT, "-c", "256", "-t", "2", *more)
        if found := re.search(r"Final estimate: PPL = ([\d.]+)", out):
            return float(found[1])
    sys.exit(f"{model}: no perplexity in\n{out}")


def tensors(path):
    return {tensor.name: (tensor.tensor_type.name, tensor.data.tobytes()) for tensor in GGUFReader(path).tensors}


def fields(path):
    skip = {"general.name", "general.file_type"}
    found = {name: field.contents() for name, field in GGUFReader(path).fields.items() if not name.startswith("GGUF.")}
    return {name: value for name, value in found.items() if name not in skip and not name.startswith("general.")}


# The converter knows tokenizers by a hash: PRE names the pre-tokenizer of one that it does not know.
CONVERT = """
import os, runpy, sys
sys.path.insert(0, os.path.dirname(sys.argv[1]))
sys.argv = sys.argv[1:]
if os.environ.get("PRE"):
    import conversion.base
    conversion.base.TextModel.get_vocab_base_pre = lambda self, tokenizer: os.environ["PRE"]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
convert = [sys.executable, "-c", CONVERT, f"{LLAMA_CPP}/convert_hf_to_gguf.py", MODEL, "--outtype", "f32"]
run(*convert, "--outfile", OUT / "theirs-f32.gguf")
print("| type | perplexity | llama.cpp's own file | tensors equal |")
print("|---|---|---|---|")
for kind in TYPES:
    ours, theirs = OUT / f"ours-{kind}.gguf", OUT / f"theirs-{kind}.gguf"
    run(BURN_LORA, "export", MODEL, ours, "--type", kind, "--force")
    if kind != "f32":
        name = {"q4_k": "Q4_K_S"}.get(kind, kind.upper())
        run(f"{BUILD}/llama-quantize", "--pure", OUT / "theirs-f32.gguf", theirs, name)
    a, b = tensors(ours), tensors(theirs)
    same = sum(a[name] == b[name] for name in b if name in a)
    print(f"| {kind} | {perplexity(ours):.4f} | {perplexity(theirs):.4f} | {same} of {len(b)} |", flush=True)
a, b = fields(OUT / "ours-f32.gguf"), fields(OUT / "theirs-f32.gguf")
for name in sorted(set(a) | set(b)):
    if a.get(name) != b.get(name):
        shown = [str(side.get(name, "missing"))[:60] for side in (a, b)]
        print(f"metadata {name}: ours {shown[0]}, theirs {shown[1]}")
if ADAPTER:
    base = OUT / "ours-f32.gguf"
    run(BURN_LORA, "export", MODEL, OUT / "merged.gguf", "--adapter", ADAPTER[0], "--type", "f32")
    run(BURN_LORA, "export", MODEL, OUT / "lora.gguf", "--adapter", ADAPTER[0], "--adapter-only")
    run(BURN_LORA, "export", MODEL, OUT / "lora", "--adapter", ADAPTER[0], "--adapter-only")
    converter = [sys.executable, f"{LLAMA_CPP}/convert_lora_to_gguf.py", "--base", OUT / "lora/base", OUT / "lora"]
    run(*converter, "--outtype", "f32", "--outfile", OUT / "theirs-lora.gguf")
    print(f"base {perplexity(base):.4f}, merged {perplexity(OUT / 'merged.gguf'):.4f}", end=", ")
    print(f"our adapter {perplexity(base, '--lora', OUT / 'lora.gguf'):.4f}", end=", ")
    print(f"exported and converted {perplexity(base, '--lora', OUT / 'theirs-lora.gguf'):.4f}")
