#!/usr/bin/env bash
# Runs the fuzz targets, and says what each of them did:
#
#     cargo fuzz build -s none any                # by cargo-fuzz; needs a C++ compiler
#     scripts/fuzz.sh SECONDS fuzz/target/x86_64-unknown-linux-gnu/release/any FOLDER [TARGET..]
#
# The program has all targets, and makes their seeds itself: it can be carried to another machine, with
# this script. FOLDER/TARGET keeps the corpus, the log, and under `artifacts` what failed, which
# `FOLDER/TARGET/TARGET ARTIFACT` runs again. JOBS targets run at a time (2), each in WORKERS processes
# (1). The status is 0 if nothing failed.
set -euo pipefail
[ $# -ge 3 ] || { echo "usage: $0 SECONDS PROGRAM FOLDER [TARGET..]" >&2; exit 2; }
seconds=$1 program=$(realpath "$2") folder=$(realpath -m "$3")
shift 3
targets=("$@")
# By its own name it is no target, and says which there are.
[ $# -gt 0 ] || read -ra targets < <("$program" 2>&1 | sed -n 's/.*targets: //p')
temporary=$(mktemp -d -p "$([ -w /dev/shm ] && echo /dev/shm || echo "${TMPDIR:-/tmp}")")
trap 'rm -rf "$temporary"' EXIT
export seconds program folder temporary workers="${WORKERS:-1}" RAYON_NUM_THREADS=1

one() {
    export TMPDIR="$temporary/$1"
    mkdir -p "$folder/$1/corpus" "$folder/$1/artifacts" "$TMPDIR"
    cd "$folder/$1"
    ln -sf "$program" "$1"
    # Memory that is asked for and not used counts, too.
    ulimit -v 8388608
    FUZZ_SEEDS=corpus "$PWD/$1" >log 2>&1 || { echo "$1 made no seeds: see $PWD/log"; return; }
    # What fails is kept, and the run goes on.
    "$PWD/$1" "-fork=$workers" -ignore_crashes=1 -ignore_timeouts=1 -ignore_ooms=1 "-max_total_time=$seconds" \
        -timeout=10 -rss_limit_mb=2048 -artifact_prefix=artifacts/ -dict=corpus.dictionary corpus >>log 2>&1 || true
    rm -rf "$TMPDIR"
}
export -f one
printf '%s\n' "${targets[@]}" | xargs -P "${JOBS:-2}" -I{} bash -c 'one {}'

printf '%-16s %12s %8s %8s  %s\n' target executions features corpus failures
failed=0
for target in "${targets[@]}"; do
    # libFuzzer's lines: `#1234: cov: 1 ft: 2 corp: 3 exec/s: 4 oom/timeout/crash: 0/0/0 time: 5s ..`
    line=$(grep -a '^#[0-9]*: cov:' "$folder/$target/log" | tail -1 || true)
    field() { sed -n "s|.* $1:* \([^ ]*\).*|\1|p" <<<"$line"; }
    executions=$(sed -n 's|^#\([0-9]*\):.*|\1|p' <<<"$line")
    found=$(find "$folder/$target/artifacts" -type f -printf '%f ')
    printf '%-16s %12s %8s %8s  %s\n' "$target" "${executions:-none}" "$(field ft)" "$(field corp)" "${found:-none}"
    [ -z "$found" ] && [ "${executions:-0}" -gt 0 ] || failed=1
done
exit "$failed"
