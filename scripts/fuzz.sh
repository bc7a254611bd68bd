#!/usr/bin/env bash
# Runs fuzz targets that are built, and says what each of them did:
#
#     cargo fuzz build -s none                    # by cargo-fuzz; needs a C++ compiler
#     scripts/fuzz.sh SECONDS PROGRAMS FOLDER [TARGET..]
#
# PROGRAMS is the folder of the built targets (fuzz/target/x86_64-unknown-linux-gnu/release). They need
# no other file, and make their seeds themselves: they can be carried to another machine, with this
# script. FOLDER/TARGET keeps the corpus, the log, and under `artifacts` what failed: `PROGRAMS/TARGET
# ARTIFACT` fails again. JOBS targets run at a time (2), each in WORKERS processes (1).
set -euo pipefail
[ $# -ge 3 ] || { echo "usage: $0 SECONDS PROGRAMS FOLDER [TARGET..]" >&2; exit 2; }
seconds=$1 programs=$(cd "$2" && pwd)
mkdir -p "$3"
folder=$(cd "$3" && pwd)
shift 3
[ $# -gt 0 ] || mapfile -t targets < <(find "$programs" -maxdepth 1 -type f -perm -u+x ! -name '*.*' -printf '%f\n' | sort)
[ $# = 0 ] || targets=("$@")
temporary=$(mktemp -d -p "$([ -w /dev/shm ] && echo /dev/shm || echo "${TMPDIR:-/tmp}")")
trap 'rm -rf "$temporary"' EXIT
export seconds programs folder temporary workers="${WORKERS:-1}" RAYON_NUM_THREADS=1

one() {
    mkdir -p "$folder/$1/corpus" "$folder/$1/artifacts" "$temporary/$1"
    cd "$folder/$1"
    export TMPDIR="$temporary/$1"
    # Memory that is asked for and not used counts, too.
    ulimit -v 8388608
    FUZZ_SEEDS=corpus "$programs/$1" >log 2>&1 || { echo "$1: no seeds: see $folder/$1/log"; return 1; }
    # A failure is kept, and the run goes on.
    "$programs/$1" "-fork=$workers" -ignore_crashes=1 -ignore_timeouts=1 -ignore_ooms=1 "-max_total_time=$seconds" \
        -timeout=10 -rss_limit_mb=2048 -artifact_prefix=artifacts/ -dict=corpus.dictionary corpus >>log 2>&1 || true
    rm -rf "$TMPDIR"
}
export -f one
printf '%s\n' "${targets[@]}" | xargs -P "${JOBS:-2}" -I{} bash -c 'one {}'

printf '%-16s %12s %8s %8s %s\n' target executions features corpus failures
failed=0
for target in "${targets[@]}"; do
    # libFuzzer's lines: `#1234: cov: 1 ft: 2 corp: 3 exec/s: 4 oom/timeout/crash: 0/0/0 time: 5s ..`
    line=$(grep -a '^#[0-9]*: cov:' "$folder/$target/log" | tail -1 || true)
    field() { sed -n "s|.* $1:* \([^ ]*\).*|\1|p" <<<"$line"; }
    executions=$(sed -n 's|^#\([0-9]*\):.*|\1|p' <<<"$line")
    found=$(find "$folder/$target/artifacts" -type f -printf '%f ')
    printf '%-16s %12s %8s %8s %s\n' "$target" "${executions:-none}" "$(field ft)" "$(field corp)" "${found:-none}"
    [ -z "$found" ] && [ "${executions:-0}" -gt 0 ] || failed=1
done
exit "$failed"
