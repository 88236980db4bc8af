# What both scripts of the bundle share: where cuBLAS is, what machine this is, steps with logs, and
# the table of their results. Sourced, not run.

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
LOGS=${LOGS:-$HERE/logs}
rm -rf "$LOGS"
mkdir -p "$LOGS"
: > "$LOGS/table"
failures=0

# PyTorch brings its own cuBLAS; a host may have no other.
if ! ldconfig -p | grep -q libcublasLt; then
    packages=$(python3 - <<'PYTHON' || true
import glob, os, sysconfig

places = {sysconfig.get_paths()["purelib"], sysconfig.get_paths()["platlib"]}
found = [f for p in places for f in glob.glob(p + "/nvidia/**/libcublas*.so*", recursive=True)]
print(":".join(sorted({os.path.dirname(f) for f in found})))
PYTHON
    )
    export LD_LIBRARY_PATH="${packages:+$packages:}${LD_LIBRARY_PATH:-}"
fi
export LD_LIBRARY_PATH="$HERE/lib:${LD_LIBRARY_PATH:-}"

if ! python3 -c 'import ctypes; ctypes.CDLL("libcuda.so.1")' 2> /dev/null; then
    echo "no NVIDIA driver here (libcuda.so.1 does not load): nothing of this can run" >&2
    exit 2
fi

# usage WORD ALLOWED...: refuses a word that means nothing.
usage() {
    local word=$1
    shift
    [[ " $* " == *" $word "* ]] || { echo "\`$word\` is none of: $*" >&2; exit 2; }
}

# One line: date, commit, GPU, driver.
machine() {
    local gpu
    gpu=$(nvidia-smi --query-gpu=name,driver_version,clocks.sm,power.draw,temperature.gpu \
        --format=csv,noheader 2> /dev/null || echo "no nvidia-smi")
    echo "$(date -u +%Y-%m-%d), commit $(cat "$HERE/commit"): $gpu"
}

# step NAME SECONDS COMMAND...: runs with a time limit, keeps the log, adds a line to the table.
step() {
    local name=$1 limit=$2 start end rc=0
    shift 2
    start=$(date +%s)
    # Through a shell, so that the command may be a function of the script (exported).
    timeout -k 5 "$limit" bash -c '"$@"' step "$@" > "$LOGS/$name.log" 2>&1 || rc=$?
    end=$(date +%s)
    local verdict=ok
    if [ "$rc" -ne 0 ]; then
        verdict="FAILED ($rc)"
        failures=$((failures + 1))
    fi
    printf '%-28s %-12s %4d s  %s\n' "$name" "$verdict" $((end - start)) \
        "$(grep -v '^ *$' "$LOGS/$name.log" | tail -1 | cut -c1-90)" >> "$LOGS/table"
}
