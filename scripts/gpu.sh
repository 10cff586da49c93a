#!/usr/bin/env bash
# On a machine with an NVIDIA card (CUDA toolkit headers, PyTorch, transformers; no Rust needed):
# the golden cases on CUDA first, then `sppo bench` against PyTorch on the same card, as one table.
#
#   SPPO=bin/sppo TESTS=bin/main scripts/gpu.sh                    # at most 10 minutes (LIMIT seconds)
#   REHEARSE=1 SPPO=... TESTS=... scripts/gpu.sh                   # the same road on wgpu, tiny shapes
#
# Built elsewhere with: CUDARC_CUDA_VERSION=13000 cargo build --release --features cuda, and
# cargo test --release --features cuda --test main --no-run. OUT receives table.md and the logs.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit

export SPPO=${SPPO:-target/release/sppo} TESTS=${TESTS:-} OUT=${OUT:-runs/gpu}
PYTHON=${PYTHON:-python3}
WORK=${WORK:-/tmp/sppo-gpu}
LIMIT=${LIMIT:-570}
# Kernels of an earlier run of the same binary, if the folder was brought along; they leave with OUT.
export SPPO_KERNEL_CACHE=${SPPO_KERNEL_CACHE:-$(realpath -m "$OUT")/kernels}
mkdir -p "$OUT" "$WORK"
TABLE=$OUT/table.md

if [ -n "${REHEARSE:-}" ]; then
    kind=wgpu dtype=f32 golden_seconds=600 adapter_seconds=400 generate_seconds=400
    sides=(--device cpu --sppo-device wgpu --dtype f32) shapes=(tiny) slots=(4 8)
    train=(--batch 2 --prompt 12 --response 16 --steps 1) generate=(--prompt 12 --new 8)
    adapters=(--batch 2 --prompt 12 --response 16 --steps 1) products=(cubecl)
else
    kind=cuda dtype=bf16 golden_seconds=300 adapter_seconds=120 generate_seconds=150
    sides=(--device cuda --dtype bf16) shapes=(1b 8b) slots=(64 256)
    train=(--batch 4 --lengths ultrafeedback --steps 3) generate=(--prompt 150 --new 128)
    adapters=(--batch 4 --prompt 150 --response 600 --steps 3 --precision bf16) products=(cubecl cublaslt)
    # PyTorch's wheels bring cuBLASLt along, where no loader looks.
    if [ -z "${SPPO_CUBLASLT:-}" ] && ! ldconfig -p | grep -q 'libcublasLt\.so\.1[23]'; then
        SPPO_CUBLASLT=$("$PYTHON" -c 'import glob, sys
print(next((f for p in sys.path for f in sorted(glob.glob(p + "/nvidia/*/lib/libcublasLt.so.1[23]"))), ""))')
        export SPPO_CUBLASLT
    fi
fi

say() { printf '%s\n' "$*" | tee -a "$TABLE"; }

# part NAME SECONDS COMMAND...: bounded, logged, its output in the table where it succeeds.
part() {
    local name=$1 seconds=$2 log begun=$SECONDS left=$((LIMIT - SECONDS))
    shift 2
    log=$OUT/$name.log
    say "" ; say "### $name" ; say ""
    if [ "$left" -lt 20 ]; then
        say "not run: $LIMIT s are over"
        failed=1
        return
    fi
    [ "$seconds" -lt "$left" ] || seconds=$left
    if timeout "$seconds" "$@" > "$log.out" 2> "$log"; then
        tee -a "$TABLE" < "$log.out"
    else
        say "failed ($?) after $((SECONDS - begun)) s: $*"
        tail -n 15 "$log" "$log.out"
        failed=1
    fi
    say "" ; say "($((SECONDS - begun)) s)"
}

golden() {
    # The fixtures lie in this checkout, not where the tests were built.
    CARGO_MANIFEST_DIR=$PWD "$TESTS" --include-ignored --test-threads=1 "$kind" > "$OUT/golden.txt" 2>&1
    local code=$?
    grep -E "^test |test result|panicked|is not" "$OUT/golden.txt"
    return $code
}

# A part of its own process, so that it can be timed out.
if [ "${1:-}" = golden ]; then
    golden
    exit
fi

failed=
: > "$TABLE"
say "# $kind, $(date -u +%F)"
[ "$kind" = wgpu ] || say "$(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader)"
if [ -n "$TESTS" ]; then
    part golden "$golden_seconds" scripts/gpu.sh golden
else
    say "TESTS is not set: the golden cases were not run"
fi
# Bytes of the device's memory; a rehearsal has enough for its tiny shapes.
memory_mib() {
    [ "$kind" = cuda ] || { echo 1000000; return; }
    nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits | head -n 1
}

for shape in "${shapes[@]}"; do
    bench=("$PYTHON" scripts/bench.py --sppo "$SPPO" --work "$WORK" --shape "$shape" --rounds 1 "${sides[@]}")
    if [ "$shape" = 8b ] && [ "$(memory_mib)" -lt 135000 ]; then
        say "" ; say "8b: all weights take more than this card has (sppo plan), so adapters alone are trained"
    else
        part "train-$shape" 240 "${bench[@]}" --what train --recompute layer "${train[@]}"
    fi
    for count in "${slots[@]}"; do
        part "generate-$shape-$count" "$generate_seconds" "${bench[@]}" --what generate --generate "$count" --bytes "${generate[@]}"
    done
    for matmul in "${products[@]}"; do
        part "adapters-$shape-$matmul" "$adapter_seconds" "$SPPO" bench --model "$WORK/$shape-${dtype}" --device "$kind" --only train \
            --lora 16 --recompute layer --matmul "$matmul" "${adapters[@]}"
    done
done
[ -z "$failed" ] || { say ""; say "something failed; see the logs in $OUT"; exit 1; }
