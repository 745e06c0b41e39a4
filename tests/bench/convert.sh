#!/bin/bash
# Time the conversion of a checkpoint of torch's in F32 to safetensors in F16 with ckptmerge,
# its floor (the same bytes read, half as many written) and torch.
#
#   CKPTMERGE=... FLOOR=... PYTHON=... ./convert.sh MODEL.ckpt
#
# As run.sh: ROUNDS (default 7) time the tools once each, in turn; the input is in the page cache
# and outputs are new files, not synced. Prints medians and their ratios to ckptmerge.
set -euo pipefail

: "${CKPTMERGE:?}" "${FLOOR:?}" "${PYTHON:?}"
model=${1:?usage: convert.sh MODEL.ckpt}
here=$(cd "$(dirname "$0")" && pwd)
out=$(dirname "$model")/out.safetensors
times=$(mktemp -d)
trap 'rm -rf "$out" "$times"' EXIT

declare -A command=(
    [ckptmerge]="$CKPTMERGE convert $model $out --dtype f16 --no-sync"
    [ckptmerge_64M]="$CKPTMERGE convert $model $out --dtype f16 --no-sync --memory 64M"
    [floor]="$FLOOR --half $out $model"
    [torch]="$PYTHON $here/torch_convert.py $out $model"
)
for round in $(seq "${ROUNDS:-7}"); do
    for tool in "${!command[@]}"; do
        rm -f "$out"
        sync
        cat "$model" >/dev/null
        hyperfine --shell=none --warmup "$((round == 1))" --runs 1 --prepare "rm -f $out" \
            --export-json "$times/$tool.$round.json" "${command[$tool]}" >/dev/null
    done
done
"$PYTHON" "$here/summary.py" "$times"
