#!/usr/bin/env bash
# Checks what would be published: packs all crates as cargo does, and has a crate outside of the workspace, which knows
# only these packages, run the README's program.
#
#     scripts/check-packages.sh FOLDER [FEATURES]
#
# FOLDER is where it works. FEATURES (such as `cuda`) are switched on beside the default ones; the program is then built,
# and not run. It is not from a package that `cuda` takes the stand-in for LLVM: see the README.
set -euo pipefail
[ $# = 1 ] || [ $# = 2 ] || { echo "usage: $0 FOLDER [FEATURES]" >&2; exit 2; }
root=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$1"
work=$(cd "$1" && pwd)
cd "$root"

rm -rf "$work/packages" "$work/outside"
CARGO_TARGET_DIR="$work/target" cargo package --workspace --no-verify --allow-dirty
mkdir -p "$work/packages" "$work/outside/src" "$work/outside/models"
for package in "$work"/target/package/*.crate; do
    # A registry takes 10 MiB.
    [ "$(wc -c <"$package")" -lt 10485760 ] || { echo "$package is too large to be published" >&2; exit 1; }
    tar xzf "$package" -C "$work/packages"
done

cd "$work/outside"
{
    cat <<TOML
[package]
name = "outside"
version = "0.0.0"
edition = "2024"

[features]
cuda = ["burn-lora/cuda"]

[dependencies]
burn-lora = "0.1"

[workspace]

[profile.dev]
opt-level = 1
debug = "line-tables-only"

[profile.dev.package."*"]
opt-level = 2
debug = false

[patch.crates-io]
TOML
    for package in "$work"/packages/*; do
        name=$(basename "$package")
        echo "${name%-*} = { path = \"$package\" }"
    done
    case "${2-}" in *cuda*) echo "cubecl-llvm = { path = \"$root/crates/cubecl-llvm\" }" ;; esac
} >Cargo.toml
# The same versions of what they depend on.
cp "$root/Cargo.lock" Cargo.lock
# The program, with a small model and data where it looks for them.
awk '/^```rust/ { inside = 1; next } /^```/ { if (inside) exit } inside' "$root/README.md" >src/main.rs
cp -r "$root/testdata/quickstart/model" models/Llama-3.1-8B-Instruct
head -200 "$root/testdata/quickstart/train.jsonl" >chats.jsonl
if [ -n "${2-}" ]; then
    cargo build --features "$2"
else
    cargo run
    [ -s out/adapter_model.safetensors ] || { echo "the program left no adapter" >&2; exit 1; }
fi
