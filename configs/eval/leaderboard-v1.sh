#!/bin/sh
# The six benchmarks of the first Open LLM Leaderboard, against `sppo serve`.
#
#   sppo serve --model DIR --port 8000            # in another terminal
#   configs/eval/leaderboard-v1.sh DIR NAME lm-eval
#   sppo eval leaderboard --results lm-eval
#
# DIR is the model's folder, from which lm_eval takes the tokenizer; NAME is what the server calls the
# model. Needs lm_eval with its API clients: pip install 'lm_eval[api]==0.4.13'. Data sets come from
# the Hub, unless they are in its cache.
#
# SPPO_CONTEXT is the model's context (8192 for Llama 3): lm_eval would cut prompts at 2048 tokens.
# Llama's tokenizer writes a BOS before texts, as the leaderboard's runs had it; lm_eval leaves it out
# with servers unless told so.
#
# The old leaderboard pinned lm_eval at commit b281b09 (2023). Newer versions differ: prompts of some
# tasks, GSM8K's stop words and filter, and whether MMLU is one group. So these numbers stand beside
# the card's, and are not the same measurement.
set -eu
dir=${1:?the folder of the model} name=${2:?what the server calls the model} out=${3:-lm-eval}
url=${SPPO_URL:-http://127.0.0.1:8000/v1/completions}
args="model=$name,base_url=$url,tokenizer_backend=huggingface,tokenizer=$dir,num_concurrent=8,max_retries=3"
args="$args,max_length=${SPPO_CONTEXT:-8192},add_bos_token=True"

# task, examples before each question
while read -r task shots; do
    lm_eval --model local-completions --model_args "$args" \
        --tasks "$task" --num_fewshot "$shots" --output_path "$out"
done <<TASKS
arc_challenge 25
hellaswag 10
mmlu 5
truthfulqa_mc2 0
winogrande 5
gsm8k 5
TASKS
