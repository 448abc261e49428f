#!/usr/bin/env bash
# Every check that needs an NVIDIA GPU, offline and from source:
#
#     bash bench/gpu_check.sh                  all stages in order
#     bash bench/gpu_check.sh sync merge       some of them, in this order
#
# build     the compiled module from source: time, architectures, registers, spills
# test      tests/test_gpu_*.py: values, training, graphs, streams, faults, torch.compile
# sanitise  memcheck, racecheck, synccheck, initcheck of compute-sanitizer
# sync      synchronising calls, launches, waits, 10,000 repeats, more than 2^32 entries
# merge     bench/merge_overhead.py against its targets
# train     bench/training_overhead.py, with CUDA graphs too; AIMMERGE_CASES names some cases
# sweep     bench/merge_sweep.py: 1e5 to 1e9 entries, 10 to 1e4 tensors
#
# Each stage prints a table and writes gpu_<stage>.json into bench/results, or into the folder
# AIMMERGE_RESULTS, row by row; it is stopped after AIMMERGE_STAGE_SECONDS (480, train 960). PYTHON
# names the interpreter (python3), AIMMERGE_COMMIT the commit outside git. Then
# bench/readme_tables.py puts the figures of merge, train and sweep into the README.
# Exit code 0: nothing failed; 1: a check failed; 2: no GPU, or an unknown stage.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2

known=(build test sanitise sync merge train sweep)

usage() { sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' bench/gpu_check.sh; }

stages=("$@")
[ $# -gt 0 ] || stages=("${known[@]}")
for stage in "${stages[@]}"; do
  case " ${known[*]} -h --help " in
    *" $stage "*) ;;
    *) echo "error: unknown stage '$stage'; known are ${known[*]}" >&2; exit 2 ;;
  esac
done
case " ${stages[*]} " in *" -h "* | *" --help "*) usage; exit 0 ;; esac

python=${PYTHON:-python3}
export PYTHONPATH="$PWD/bench${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export HF_HUB_OFFLINE=1 PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# CUDA's installer leaves its programs off the PATH.
[ ! -d /usr/local/cuda/bin ] || export PATH="$PATH:/usr/local/cuda/bin"

"$python" -c 'import torch' 2> /dev/null ||
  { echo "error: $python has no torch; PYTHON can name another interpreter" >&2; exit 2; }
"$python" -P -m gpu.machine || exit 2

failed=()
run_stage() {
  local module=$1 limit=480 status
  [ "$module" != train ] || limit=960
  limit=${AIMMERGE_STAGE_SECONDS:-$limit}
  [ "$module" != test ] || module=suite
  printf '\n======== %s ========\n' "$1"
  timeout --kill-after=20 "$limit" "$python" -P -m "gpu.$module"
  status=$?
  [ "$status" -ne 124 ] && [ "$status" -ne 137 ] ||
    echo "$1: stopped after $limit s; its file has the rows so far"
  [ "$status" -eq 0 ] || failed+=("$1")
}

if [ "${stages[0]}" != build ] && ! "$python" -P -m gpu.built; then
  echo "these sources are not built for this interpreter: build comes first"
  run_stage build
fi
for stage in "${stages[@]}"; do run_stage "$stage"; done

echo
if [ ${#failed[@]} -gt 0 ]; then
  echo "gpu check: FAILED: ${failed[*]}; $SECONDS s"
  exit 1
fi
echo "gpu check: nothing failed in ${stages[*]}; $SECONDS s"
