#!/usr/bin/env bash
# What needs a GPU, one step at a time: bash scripts/gpu.sh STEP
#
#   smoke                which device this is, how fast its memory reads, and the tests of the runtimes on it
#   prices               price lists of the paper's pairs at true shapes with random weights, and of the SmolLM2 pair
#   record               the acceptance table of the SmolLM2 pair on all of Spec-Bench
#   beside-transformers  our loop beside transformers' own, and what lies outside the forwards
#   live                 a live run on Spec-Bench: 17 arms, 15 questions of each task
#   train                a feature draft, from at least 10 million tokens of the target
#
# A step ends after MINUTES (8) at the latest; the same command then continues where it stopped. Results are written as they
# come, into OUT (results/reference/DEVICE NAME). DRY=1 prints the commands without running any.
set -euo pipefail
cd "$(dirname "$0")/.."

step=${1:-} PYTHON=${PYTHON:-python} DEVICE=${DEVICE:-cuda} MINUTES=${MINUTES:-8} DRY=${DRY:-}
name=$({ nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null || echo no gpu; } | head -n 1 | tr 'A-Z ' 'a-z-')
OUT=${OUT:-results/reference/$name}

# run WORD...: a Python command within what is left of the step's minutes, asked by Ctrl-C before it is killed
run() {
    printf '%q ' "$PYTHON" "$@" && echo
    local left=$((60 * MINUTES - SECONDS))
    [ -n "$DRY" ] || { [ $left -gt 0 ] && timeout -s INT -k 60 $left "$PYTHON" "$@"; }
}
# keep FILE WORD...: the same with its output in OUT/FILE too; nothing where that is there and complete
keep() {
    local file=$OUT/$1 && shift
    if [ -n "$DRY" ]; then run "$@"; elif [ ! -e "$file" ]; then run "$@" | tee "$file.partial" && mv "$file.partial" "$file"; fi
}
# price PAIR RUNTIME [KEY=VALUE...]: one price list; nothing where it is there
price() {
    local file=$OUT/prices/$1-$2.json
    [ -z "$DRY" ] && [ -e "$file" ] || run -m gammatune prices "model_pair=$1" "runtime=$2" "runtime.device=$DEVICE" \
        tasks=demo "${@:3}" --contexts 128,512,1700 --gamma-max 24 --repeats 3 --out "$file"
}

step-smoke() {
    keep bandwidth.txt benchmarks/bandwidth.py --copy-mib 4096 "runtime.device=$DEVICE"
    keep roofline.txt benchmarks/roofline.py "runtime.device=$DEVICE"
    keep tests.txt -m pytest tests/runtimes
}
step-prices() {
    for runtime in compiled eager; do price vicuna-68m-7b $runtime model_pair.weights=random; done
    for pair in vicuna-160m-13b llama-3.2-1b-3.1-8b; do price $pair compiled model_pair.weights=random; done
    for runtime in compiled eager; do price smollm2-draft-135m $runtime; done
}
step-record() {
    run -m gammatune record tasks=specbench decode.max_new_tokens=256 runtime=compiled "runtime.device=$DEVICE" \
        --out "$OUT/acceptance"
}
step-beside-transformers() {
    keep transformers.txt benchmarks/vs_transformers.py --questions 12 --tokens 128 --repeats 2 tasks=specbench \
        "runtime.device=$DEVICE"
    keep overhead.txt benchmarks/overhead.py --questions 12 --tokens 128 tasks=specbench "runtime.device=$DEVICE"
}
step-live() {
    run run.py tasks=specbench tasks.limit=15 tasks.seed=0 decode.max_new_tokens=128 runtime=compiled \
        "runtime.device=$DEVICE" 'policy=[ar,fixed,gammatune,gammatune_plus,hf_heuristic]' 'starts=[1,3,5,12]' "results=$OUT"
}
step-train() {
    run -m gammatune train-draft "runtime.device=$DEVICE" --tokens 10000000 --epochs 4 --step-places 8192 \
        --minutes "$MINUTES" --out "${WORK:-build/draft-gpu}"
}

if ! declare -F "step-$step" >/dev/null; then
    sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$0" >&2
    exit 2
fi
if [ -z "$DRY" ]; then
    mkdir -p "$OUT/prices"
    {
        date -u; git rev-parse HEAD; nvidia-smi; "$PYTHON" -V
        "$PYTHON" -m pip list 2>/dev/null | grep -E '^(torch|transformers|triton) '
    } | tee "$OUT/environment-$step.txt" || true
fi
step-"$step"
