#!/usr/bin/env bash
# The arms of real_comparison_gpu.yaml as parallel processes on one card:
#   bash bench/real_comparison_gpu.sh --data FOLDER --model MODEL --out RUN
# `random` and `fixed` match the merges of `aim`, so they begin when it has ended. The same command
# continues what was killed; each process writes its lines to RUN.<arm>.log.
set -euo pipefail
config="$(dirname "${BASH_SOURCE[0]}")/real_comparison_gpu.yaml"
settings=("$@")
out=
while [ "$#" -gt 1 ]; do
  case "$1" in
    --data | --model) ;;
    --out) out=$2 ;;
    *) echo "unknown option $1; give --data FOLDER --model MODEL --out RUN" >&2; exit 2 ;;
  esac
  shift 2
done
if [ "$#" -ne 0 ] || [ -z "$out" ]; then
  echo "usage: $0 --data FOLDER --model MODEL --out RUN" >&2
  exit 2
fi
mkdir -p "$(dirname "$out")"
running=()
trap '[ "${#running[@]}" -eq 0 ] || kill "${running[@]}" 2> /dev/null || true' EXIT

wave() {
  local arm pid failed=0
  running=()
  for arm in "$@"; do
    aimmerge run "$config" "${settings[@]}" --only "$arm" > "$out.$arm.log" 2>&1 &
    running+=($!)
  done
  for pid in "${running[@]}"; do wait "$pid" || failed=1; done
  running=()
  [ "$failed" -eq 0 ] || { echo "an arm failed; see $out.*.log" >&2; exit 1; }
}

wave seqlora replay aim aim-floor released kif
wave random fixed
aimmerge report "$out"
