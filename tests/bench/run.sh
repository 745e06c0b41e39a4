#!/bin/bash
# Time the linear merge of three models with ckptmerge, its floor and other tools.
#
#   python models.py DIR
#   CKPTMERGE=... FLOOR=... PYTHON=... MERGEKIT=... ./run.sh DIR
#
# CKPTMERGE and FLOOR are binaries, PYTHON has torch and safetensors, and MERGEKIT is
# mergekit-yaml. ROUNDS (default 7) times the tools each run once, in an order that is
# shuffled anew, so that what drifts on the machine falls on all alike; mergekit takes part
# in the first SLOW_ROUNDS (default 3) only. The inputs are in the page cache, and each run
# writes a new file, not synced but where it is said. Prints medians and their ratios to ckptmerge.
set -euo pipefail

: "${CKPTMERGE:?}" "${FLOOR:?}" "${PYTHON:?}" "${MERGEKIT:?}"
dir=${1:?usage: run.sh DIR}
rounds=${ROUNDS:-7}
slow_rounds=${SLOW_ROUNDS:-3}
here=$(cd "$(dirname "$0")" && pwd)

weights=0.5,0.3,0.2
files="$dir/m0/model.safetensors $dir/m1/model.safetensors $dir/m2/model.safetensors"
out=$dir/out
times=$(mktemp -d)
trap 'rm -rf "$out" "$out.safetensors" "$times"' EXIT
export HF_HUB_OFFLINE=1

declare -A command=(
    [ckptmerge]="$CKPTMERGE merge $files --weights $weights -o $out.safetensors --no-sync"
    [ckptmerge_64M]="$CKPTMERGE merge $files --weights $weights -o $out.safetensors --no-sync --memory 64M"
    [ckptmerge_synced]="$CKPTMERGE merge $files --weights $weights -o $out.safetensors"
    [floor]="$FLOOR $out.safetensors $files"
    [floor_synced]="$FLOOR --sync $out.safetensors $files"
    [numpy_linear]="$PYTHON $here/numpy_linear.py $out.safetensors $weights $files"
    [torch_linear]="$PYTHON $here/torch_linear.py $out.safetensors $weights $files"
    [torch_naive]="$PYTHON $here/torch_naive.py $out.safetensors $weights $files"
    [mergekit]="$MERGEKIT $dir/mergekit-linear.yml $out --no-copy-tokenizer --no-write-model-card --quiet"
)

for round in $(seq "$rounds"); do
    for tool in $(printf '%s\n' "${!command[@]}" | shuf); do
        [[ $tool == mergekit && $round -gt $slow_rounds ]] && continue
        # Leave nothing of the last run to be written back, and the inputs in the cache.
        rm -rf "$out" "$out.safetensors"
        sync
        cat $files >/dev/null
        hyperfine --shell=none --warmup "$((round == 1))" --runs 1 \
            --prepare "rm -rf $out $out.safetensors" \
            --export-json "$times/$tool.$round.json" "${command[$tool]}" >/dev/null
        echo "round $round of $rounds: $tool" >&2
    done
done

"$PYTHON" "$here/summary.py" "$times"
