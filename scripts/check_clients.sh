#!/usr/bin/env bash
# Checks `sppo serve` with lm-evaluation-harness, openai, inspect-ai, evalplus, lighteval's body,
# arena-hard-auto and alpaca_eval, unmodified, each version as below; about 20 minutes on 2 cores.
#
#   scripts/check_clients.sh [--record DIR] [--arena-hard CLONE] [--only openai,harness,alpaca,lm_eval]
#
# VENV (default /var/tmp/sppo-clients) holds their virtual environments, 3 GB, outside the repository.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
VENV=${VENV:-/var/tmp/sppo-clients}
SPPO=${SPPO:-${CARGO_TARGET_DIR:-target}/release/sppo}

make_venv() {
    local dir=$1
    shift
    [ -f "$dir/complete" ] && return
    python3 -m venv "$dir"
    "$dir/bin/pip" install -q "$@"
    touch "$dir/complete"
}

if [ ! -f "$VENV/main/complete" ]; then
    python3 -m venv "$VENV/main"
    "$VENV/main/bin/pip" install -q torch --index-url https://download.pytorch.org/whl/cpu \
        || echo "the index of CPU builds of torch is not there; the next step takes PyPI's"
fi
make_venv "$VENV/main" "lm-eval[api]==0.4.13" transformers==5.24.0 openai==3.57.0 inspect-ai==0.3.285 \
    evalplus==0.3.1 accelerate
# 0.6.6 imports pkg_resources, which newer setuptools do not have.
make_venv "$VENV/alpaca" "setuptools<81" alpaca_eval==0.6.6
[ -x "$SPPO" ] || cargo build --release --locked
exec "$VENV/main/bin/python" scripts/clients/check_clients.py --sppo "$SPPO" \
    --model tests/fixtures/golden/llama --alpaca-python "$VENV/alpaca/bin/python" "$@"
