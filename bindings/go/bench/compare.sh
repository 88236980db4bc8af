#!/usr/bin/env bash
# Runs benches/stream.c and its twin in turns, and prints the medians, in nanoseconds a token, of wall
# time and of the CPU time of all threads but the engine's, with what Go adds:
# compare.sh C-PROGRAM GO-PROGRAM MODEL. `make go-bench` runs it.
set -euo pipefail

c=$1 go=$2 model=$3
rounds=${ROUNDS:-15}
times=$(mktemp -d)
trap 'rm -r "$times"' EXIT

median() { # file, column
    cut -d ' ' -f "$2" "$1" | sort -n | sed -n "$((rounds / 2 + 1))p"
}

echo "streams  C wall  Go wall  added   C CPU   Go CPU  added   (ns a token, medians of $rounds)"
for shape in "1 4000" "16 1000" "256 200"; do
    rm -f "$times"/*
    for _ in $(seq "$rounds"); do
        # shellcheck disable=SC2086 # two arguments
        "$c" "$model" $shape >>"$times/c"
        # shellcheck disable=SC2086
        "$go" "$model" $shape >>"$times/go"
    done
    cw=$(median "$times/c" 1) gw=$(median "$times/go" 1)
    cc=$(median "$times/c" 2) gc=$(median "$times/go" 2)
    printf '%7s %7d %8d %6d %7d %8d %6d\n' "${shape% *}" "$cw" "$gw" $((gw - cw)) "$cc" "$gc" $((gc - cc))
done
