#!/bin/sh
# The six benchmarks of the second Open LLM Leaderboard, against `sppo serve`.
#
#   sppo serve --model DIR --port 8000            # in another terminal
#   configs/eval/leaderboard-v2.sh DIR NAME lm-eval
#   sppo eval leaderboard --results lm-eval
#
# DIR is the model's folder, from which lm_eval takes tokenizer and chat template; NAME is what the
# server calls the model. Needs lm_eval with its API clients and what IFEval and MATH check answers
# with: pip install 'lm_eval[api,ifeval,math]==0.4.13'. GPQA's data set has to be asked for on the Hub.
#
# Each task of the group has its own number of examples, so none is given. The template is applied and
# examples are turns of a conversation, as the leaderboard did it for chat models; for a base model
# leave the last two flags out, and say add_bos_token=True: the template writes the BOS. SPPO_CONTEXT is
# the model's context (8192 for Llama 3): lm_eval would cut prompts at 2048 tokens.
set -eu
dir=${1:?the folder of the model} name=${2:?what the server calls the model} out=${3:-lm-eval}
url=${SPPO_URL:-http://127.0.0.1:8000/v1/completions}
args="model=$name,base_url=$url,tokenizer_backend=huggingface,tokenizer=$dir,num_concurrent=8,max_retries=3"
args="$args,max_length=${SPPO_CONTEXT:-8192},add_bos_token=False"

lm_eval --model local-completions --model_args "$args" \
    --tasks leaderboard --output_path "$out" \
    --apply_chat_template --fewshot_as_multiturn true
