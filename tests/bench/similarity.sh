#!/bin/bash
# Time the comparison of five task vectors against reading the files and against torch, and of many small models.
#
#   python models.py DIR --gb 1.7 --count 6 --f16
#   CKPTMERGE=... READ=... PYTHON=... ./similarity.sh DIR
#
# READ is the `read` of this folder. ROUNDS (default 7) time each of ours once, in turn; torch runs ROUNDS_TORCH times
# (default 1). Inputs are in the page cache. Prints medians and their ratios to `similarity` with a base.
set -euo pipefail

: "${CKPTMERGE:?}" "${READ:?}" "${PYTHON:?}"
dir=${1:?usage: similarity.sh DIR}
here=$(cd "$(dirname "$0")" && pwd)
times=$(mktemp -d)
trap 'rm -rf "$times"' EXIT

all=("$dir"/m?/model.safetensors)
five=("${all[@]:1}")
declare -A command=(
    [similarity]="$CKPTMERGE similarity ${all[*]}"
    [read]="$READ ${all[*]}"
    [similarity_base_less]="$CKPTMERGE similarity --base-less ${five[*]}"
    [read_five]="$READ ${five[*]}"
)
for how in pairs tensors chunked; do
    command[torch_$how]="$PYTHON $here/torch_similarity.py $how ${all[*]}"
done
for round in $(seq "${ROUNDS:-7}"); do
    cat "${all[@]}" >/dev/null
    for tool in $(printf '%s\n' "${!command[@]}" | shuf); do
        [[ $tool == torch_* && $round -gt ${ROUNDS_TORCH:-1} ]] && continue
        hyperfine --shell=none --warmup "$((round == 1 && ${#tool} < 12))" --runs 1 --export-json "$times/$tool.$round.json" \
            "${command[$tool]}" >/dev/null
    done
done
"$PYTHON" "$here/summary.py" "$times" similarity
