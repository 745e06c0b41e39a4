#!/bin/bash
# Time merge methods against the linear merge of as many models, and against mergekit where it is given.
#
#   python models.py DIR
#   CKPTMERGE=... PYTHON=... [MERGEKIT=...] ./methods.sh DIR
#
# As run.sh: ROUNDS (default 5) time each method once, in turn; inputs are in the page cache and
# outputs are new files, not synced; mergekit runs once. linear_N merges N models without a base. Prints
# medians and their ratios to linear_3.
set -euo pipefail

: "${CKPTMERGE:?}" "${PYTHON:?}"
dir=${1:?usage: methods.sh DIR}
here=$(cd "$(dirname "$0")" && pwd)
out=$dir/out
times=$(mktemp -d)
trap 'rm -rf "$out" "$out.safetensors" "$times"' EXIT
export HF_HUB_OFFLINE=1

model() { echo "$dir/m$1/model.safetensors"; }
merge() { echo "$CKPTMERGE merge $* -o $out.safetensors --no-sync"; }
based="$(model 1) $(model 2) --base $(model 0)"
declare -A command=(
    [linear_3]="$(merge "$(model 0)" "$(model 1)" "$(model 2)")"
    [linear_2]="$(merge "$(model 0)" "$(model 1)")"
    [ties]="$(merge "$based" --method ties -p density=0.3)"
    [dare_linear]="$(merge "$based" --method dare-linear -p density=0.3)"
    [dare_ties]="$(merge "$based" --method dare-ties -p density=0.3)"
    [della]="$(merge "$based" --method della -p density=0.5)"
    [model_stock]="$(merge "$based" --method model-stock)"
    [karcher]="$(merge "$(model 0)" "$(model 1)" "$(model 2)" --method karcher)"
    [slerp_of_2]="$(merge "$(model 1)" --base "$(model 0)" --method slerp -p t=0.3)"
)
if [[ -n ${MERGEKIT:-} ]]; then
    for name in linear_3 slerp_of_2 karcher ties dare_linear dare_ties della model_stock; do
        # The same merge, for mergekit.
        method=${name%_3} parameters= base="base_model: $dir/m0" models="1 2"
        case $name in
        linear_3) parameters="weight: 0.333" base= models="0 1 2" ;;
        karcher) base= models="0 1 2" ;;
        slerp_of_2) method=slerp base="$base"$'\n'"parameters: {t: 0.3}" models="0 1" ;;
        ties | dare_*) parameters="weight: 1.0, density: 0.3" ;;
        della) parameters="weight: 1.0, density: 0.5" ;;
        esac
        {
            printf 'merge_method: %s\n%s\nmodels:\n' "$method" "$base"
            for model in $models; do echo "  - {model: $dir/m$model, parameters: {$parameters}}"; done
        } >"$times/$name.yml"
        command[mergekit_$name]="$MERGEKIT $times/$name.yml $out --no-copy-tokenizer --no-write-model-card --quiet"
    done
fi

for round in $(seq "${ROUNDS:-5}"); do
    for tool in $(printf '%s\n' "${!command[@]}" | shuf); do
        [[ $tool == mergekit_* && $round -gt 1 ]] && continue
        rm -rf "$out" "$out.safetensors"
        sync
        cat "$dir"/m?/model.safetensors >/dev/null
        hyperfine --shell=none --warmup "$((round == 1 && ${#tool} < 12))" --runs 1 \
            --prepare "rm -rf $out $out.safetensors" \
            --export-json "$times/$tool.$round.json" "${command[$tool]}" >/dev/null
        echo "round $round: $tool" >&2
    done
done
"$PYTHON" "$here/summary.py" "$times" linear_3
