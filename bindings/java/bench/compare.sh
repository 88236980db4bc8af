#!/usr/bin/env bash
# Runs benches/stream.c and its twin in turns, and prints the medians, in nanoseconds a token, of wall
# time and of the CPU time of all threads but the engine's, with what Java adds:
# compare.sh C-PROGRAM MODEL JAVA-COMMAND... `make java-bench` runs it.
set -euo pipefail

c=$1 model=$2
java=("${@:3}")
rounds=${ROUNDS:-9}
times=$(mktemp -d)
trap 'rm -r "$times"' EXIT

median() { # file, column
    cut -d ' ' -f "$2" "$1" | sort -n | sed -n "$((rounds / 2 + 1))p"
}

echo "streams  C wall  Java wall  added   C CPU  Java CPU  added   (ns a token, medians of $rounds)"
for shape in "1 4000" "16 1000" "256 200"; do
    rm -f "$times"/*
    for _ in $(seq "$rounds"); do
        # shellcheck disable=SC2086 # two arguments; a thread reads each stream, as in Java
        "$c" "$model" $shape threads >>"$times/c"
        # shellcheck disable=SC2086
        "${java[@]}" "$model" $shape >>"$times/java"
    done
    cw=$(median "$times/c" 1) jw=$(median "$times/java" 1)
    cc=$(median "$times/c" 2) jc=$(median "$times/java" 2)
    printf '%7s %7d %10d %6d %7d %9d %6d\n' "${shape% *}" "$cw" "$jw" $((jw - cw)) "$cc" "$jc" $((jc - cc))
done
