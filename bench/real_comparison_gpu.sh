#!/usr/bin/env bash
# The arms of real_comparison_gpu.yaml as parallel processes on one card:
#   bash bench/real_comparison_gpu.sh --data FOLDER --model MODEL --out RUN
# `random` and `fixed` match the merges of `aim`, so they begin when it has ended. The same command
# continues what was killed; each process writes its lines to RUN.<arm>.log.
set -euo pipefail
config="$(dirname "${BASH_SOURCE[0]}")/real_comparison_gpu.yaml"
[ "$#" -eq 6 ] || { echo "usage: $0 --data FOLDER --model MODEL --out RUN" >&2; exit 2; }
out=
for ((i = 1; i < $#; i++)); do
  [ "${!i}" != --out ] || { j=$((i + 1)); out=${!j}; }
done
[ -n "$out" ] || { echo "usage: $0 --data FOLDER --model MODEL --out RUN" >&2; exit 2; }

wave() {
  local arm pids=() failed=0
  for arm in "$@"; do
    aimmerge run "$config" "${settings[@]}" --only "$arm" > "$out.$arm.log" 2>&1 &
    pids+=($!)
  done
  for arm in "${pids[@]}"; do wait "$arm" || failed=1; done
  [ "$failed" -eq 0 ] || { echo "an arm failed; see $out.*.log" >&2; exit 1; }
}

settings=("$@")
wave seqlora replay aim aim-floor released kif
wave random fixed
aimmerge report "$out"
