#!/usr/bin/env bash
# On a machine with an NVIDIA card (CUDA's headers, PyTorch, transformers; vLLM if it is there; no Rust):
# the golden cases and the kernels against Flex first, then training, generation and judging against
# PyTorch on the same card, what each kernel takes, and adapters with both libraries' products, as one table.
#
#   SPPO=bin/sppo TESTS=bin/main scripts/gpu.sh                    # at most 10 minutes (LIMIT seconds)
#   REHEARSE=1 SPPO=... TESTS=... scripts/gpu.sh                   # the same road on wgpu, tiny shapes
#   tests/cuda/run.py bin/sppo --rehearse                          # on the driver without a card
#
# Built elsewhere with: CUDARC_CUDA_VERSION=13000 cargo build --release --features cuda, and
# cargo test --release --features cuda --test main --no-run. Kernels are compiled beforehand by
# tests/cuda/run.py bin/sppo --fill FOLDER, and found where SPPO_KERNEL_CACHE names that FOLDER.
# OUT receives table.md and the logs. Every part has a bound; one that is left out says why.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit

export SPPO=${SPPO:-target/release/sppo} TESTS=${TESTS:-} OUT=${OUT:-runs/gpu}
PYTHON=${PYTHON:-python3}
WORK=${WORK:-/tmp/sppo-gpu}
LIMIT=${LIMIT:-570}
REHEARSE=${REHEARSE:-}
export SPPO_KERNEL_CACHE=${SPPO_KERNEL_CACHE:-$(realpath -m "$OUT")/kernels}
mkdir -p "$OUT" "$WORK"
TABLE=$OUT/table.md

# Of a part: at most so many seconds. Together they are more than LIMIT, since most end sooner; what
# LIMIT leaves no time for comes last.
kind=cuda dtype=bf16 golden_seconds=180 kernels_seconds=90 train_seconds=150 generate_seconds=100
judge_seconds=120 profile_seconds=60 adapters_seconds=60 shapes=(1b 8b) slots=(64 256)
sides=(--device cuda --dtype bf16) train=(--batch 4 --lengths ultrafeedback --steps 3)
generate=(--prompt 150 --new 128 --bytes) profile_generate=(--generate 64 --prompt 150 --new 16)
profile_train=(--batch 1 --prompt 512 --response 512 --steps 1)
judge=(--device cuda --precision bf16 --prompts 8 --responses 5 --batch-tokens 65536 --rounds 1)
adapters=(--batch 4 --prompt 150 --response 600 --steps 3) products=(cubecl cublaslt)
card="" memory_mib=1000000
case $REHEARSE in
"")
    card=$(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | head -n 1)
    memory_mib=$(nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits | head -n 1)
    if "$PYTHON" -c 'import vllm' 2> /dev/null; then sides+=(--vllm); fi
    # PyTorch's wheels bring cuBLASLt along, where no loader looks.
    if [ -z "${SPPO_CUBLASLT:-}" ] && ! ldconfig -p | grep 'libcublasLt\.so\.1[23]' > /dev/null; then
        SPPO_CUBLASLT=$("$PYTHON" -c 'import glob, sys
print(next((f for p in sys.path for f in sorted(glob.glob(p + "/nvidia/*/lib/libcublasLt.so.1[23]"))), ""))')
        export SPPO_CUBLASLT
    fi
    ;;
null)
    # Shapes as on a card, since kernels are compiled for them; of the layers, which are alike, a few.
    card="a driver without a card" layers=(--layers "${LAYERS:-2}")
    sides+=("${layers[@]}" --sppo-only)
    generate=(--prompt 150 --new 8) train=(--batch 4 --lengths ultrafeedback --steps 1)
    profile_generate=(--generate 64 --prompt 150 --new 4) adapters=(--batch 4 --prompt 150 --response 600 --steps 1)
    judge+=("${layers[@]}" --sppo-only)
    train_seconds=$LIMIT generate_seconds=$LIMIT judge_seconds=$LIMIT profile_seconds=$LIMIT adapters_seconds=$LIMIT
    ;;
*)
    kind=wgpu dtype=f32 card="wgpu" golden_seconds=600 kernels_seconds=600 train_seconds=300 generate_seconds=400
    judge_seconds=600 profile_seconds=300 adapters_seconds=400 shapes=(tiny) slots=(4 8)
    sides=(--device cpu --sppo-device wgpu --dtype f32)
    train=(--batch 2 --prompt 12 --response 16 --steps 1) generate=(--prompt 12 --new 8)
    profile_generate=(--generate 4 --prompt 12 --new 8) profile_train=(--batch 1 --prompt 12 --response 16 --steps 1)
    judge=(--device wgpu --size small --layers 1 --prompts 1 --responses 2 --prompt-tokens 8 --response-tokens 8 --batch-tokens 64 --rounds 1)
    # Without PyTorch the rest of the road is still walked.
    if ! "$PYTHON" -c 'import torch, transformers' 2> /dev/null; then sides+=(--sppo-only) judge+=(--sppo-only); fi
    adapters=(--batch 2 --prompt 12 --response 16 --steps 1) products=(cubecl)
    ;;
esac

# Of two runs the second: the first makes autotune's trials, which would be in the table, too.
profiled=(bash -c '"$@" > /dev/null && SPPO_PROFILE=kernels exec "$@"' profiled)

say() { printf '%s\n' "$*" | tee -a "$TABLE"; }

skip() { say "" ; say "### $1" ; say "" ; say "left out: $2"; }

# part NAME SECONDS COMMAND...: bounded, logged, its output in the table where it succeeds.
part() {
    local name=$1 seconds=$2 log begun=$SECONDS left=$((LIMIT - SECONDS))
    shift 2
    log=$OUT/$name.log
    say "" ; say "### $name" ; say ""
    if [ "$left" -lt 20 ]; then
        say "left out: $LIMIT s are over"
        failed=1
        return
    fi
    [ "$seconds" -lt "$left" ] || seconds=$left
    if timeout "$seconds" "$@" > "$log.out" 2> "$log"; then
        tee -a "$TABLE" < "$log.out"
    else
        say "failed ($?) after $((SECONDS - begun)) of $seconds s: $*"
        tail -n 15 "$log" "$log.out"
        failed=1
    fi
    say "" ; say "($((SECONDS - begun)) s)"
}

# The tests whose names the words choose, in a process of its own so that it can be timed out.
tests() {
    local name=$1 kept work code
    shift
    # The tests' kernels are kept, too: CubeCL reads where from a file in the current folder.
    kept=$SPPO_KERNEL_CACHE/tests-$(sha256sum "$TESTS" | cut -c 1-16)
    work=$(mktemp -d)
    cat > "$work/cubecl.toml" << EOF
[compilation]
cache = { file = "$kept" }
[autotune]
cache = { file = "$kept" }
EOF
    # The fixtures lie in this checkout, not where the tests were built.
    export CARGO_MANIFEST_DIR=$PWD
    (cd "$work" && "$TESTS" --include-ignored --test-threads=1 "$@") > "$OUT/$name.txt" 2>&1
    code=$?
    rm -r "$work"
    grep -E "^test |test result|panicked|is not" "$OUT/$name.txt"
    return $code
}

if [ "${1:-}" = tests ]; then
    shift
    tests "$@"
    exit
fi

failed=
: > "$TABLE"
say "# $kind, $(date -u +%F)"
say ""
say "$card; $("$SPPO" --version)"
OUT=$(realpath "$OUT") SPPO=$(realpath "$SPPO")
if [ "$REHEARSE" = null ]; then
    skip golden "this driver computes nothing"
    skip kernels "this driver computes nothing"
elif [ -z "$TESTS" ]; then
    skip golden "TESTS is not set"
    skip kernels "TESTS is not set"
else
    TESTS=$(realpath "$TESTS")
    part golden "$golden_seconds" scripts/gpu.sh tests golden "$kind" --skip kernels::
    part kernels "$kernels_seconds" scripts/gpu.sh tests kernels "kernels::$kind"
fi
if [ -z "$REHEARSE" ] && [[ " ${sides[*]} " != *" --vllm "* ]]; then
    say "" ; say "vLLM is not installed, so generation is compared with PyTorch alone."
fi

for shape in "${shapes[@]}"; do
    model=$WORK/$shape-$dtype
    bench=("$PYTHON" scripts/bench.py --sppo "$SPPO" --work "$WORK" --shape "$shape" --rounds 1 "${sides[@]}")
    here=("$SPPO" bench --model "$model" --device "$kind" --precision "$dtype")
    all_weights=1
    [ "$shape" != 8b ] || [ "$memory_mib" -ge 135000 ] || all_weights=
    # Generation first: it makes the model, and needs the least.
    for count in "${slots[@]}"; do
        part "generate-$shape-$count" "$generate_seconds" "${bench[@]}" --what generate --generate "$count" "${generate[@]}"
    done
    if [ -n "$all_weights" ]; then
        part "train-$shape" "$train_seconds" "${bench[@]}" --what train --recompute layer "${train[@]}"
    else
        skip "train-$shape" "all weights take more than the $memory_mib MiB of this card (sppo plan); see adapters-$shape-*"
    fi
    part "kernels-of-decoding-$shape" "$profile_seconds" "${profiled[@]}" "${here[@]}" --only generate "${profile_generate[@]}"
    if [ -n "$all_weights" ]; then
        part "kernels-of-training-$shape" "$profile_seconds" "${profiled[@]}" "${here[@]}" --only train --recompute layer "${profile_train[@]}"
    else
        skip "kernels-of-training-$shape" "as train-$shape"
    fi
    [ "$shape" = 8b ] || part judge "$judge_seconds" "$PYTHON" scripts/bench_pairrm.py --sppo "$SPPO" --work "$WORK/pairrm" "${judge[@]}"
done
for shape in "${shapes[@]}"; do
    for matmul in "${products[@]}"; do
        part "adapters-$shape-$matmul" "$adapters_seconds" "$SPPO" bench --model "$WORK/$shape-$dtype" --device "$kind" \
            --precision "$dtype" --only train --lora 16 --recompute layer --matmul "$matmul" "${adapters[@]}"
    done
done
[ -z "$failed" ] || { say ""; say "something failed; see the logs in $OUT"; exit 1; }
