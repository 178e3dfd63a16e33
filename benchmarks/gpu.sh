#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# All that is to be measured on a GPU, in three commands of less than ten minutes: bash benchmarks/gpu.sh 1|2|3 OUT
#
#   1  is it right, and compress     2  a training step     3  recommending
#
# From the root of the tree, with torch, triton and transformers; nothing is installed or compiled, nothing downloaded.
# DATA, a folder with ml-1m and goodreads, and TOKENIZER, a folder of Llama-3's, give real titles. COMMIT names the tree
# where it is a copy without its repository. Each part has a time limit of its own, and what it measured until then
# stays: OUT is a few files, gpu.csv the table. The exit status is 1 where something failed.
set -u -o pipefail
command=${1:?expected 1, 2 or 3} out=${2:?expected a folder for what is measured}
python=${PYTHON:-python3} failed=0
export PYTHONPATH="$PWD:$PWD/kernels" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
common=(--out "$out" ${COMMIT:+--commit "$COMMIT"})
data=(${DATA:+--data "$DATA"} ${TOKENIZER:+--tokenizer "$TOKENIZER"})
mkdir -p "$out"

run() { # seconds, command
  echo "+ $*"
  timeout "$@" || { echo "exit status $?: ${*:2}"; failed=1; }
}

{
  case $command in
    1)
      run 150 "$python" -m benchmarks.gpu_smoke --minutes 2 "${common[@]}"
      if command -v compute-sanitizer > /dev/null; then
        run 100 compute-sanitizer --tool memcheck "$python" -m benchmarks.gpu_smoke --tiny --minutes 1 "${common[@]}"
      fi
      run 230 "$python" -m benchmarks.bench_gpu --minutes 3 "${common[@]}" "${data[@]}"
      if command -v ncu > /dev/null; then
        run 100 ncu --clock-control none --section SpeedOfLight --section MemoryWorkloadAnalysis \
          -k 'regex:sum_rows|copy_rows|sum_groups' --log-file "$out/ncu.txt" \
          "$python" -m benchmarks.bench_gpu --only dense/bf16/A --rounds 1 --out "$(mktemp -d)" "${data[@]}"
      fi
      ;;
    2)
      run 280 "$python" -m benchmarks.bench_gpu_train --minutes 4 "${common[@]}" "${data[@]}"
      run 180 "$python" -m benchmarks.bench_gpu_train --minutes 2 --users 64 --only 64/pft-s/stock 64/text/stock \
        "${common[@]}" "${data[@]}"
      run 110 "$python" -m benchmarks.bench_gpu_train --minutes 1 --vocabulary 128259 --only 16/pft-s/stock \
        "${common[@]}" "${data[@]}"
      ;;
    3)
      run 360 "$python" -m benchmarks.bench_gpu_decode --minutes 5 "${common[@]}" "${data[@]}"
      if [ -n "${DATA:-}" ] && [ -n "${TOKENIZER:-}" ]; then
        run 220 "$python" -m patchrec_fast.cli profile --data "$DATA/ml-1m" --tokenizer "$TOKENIZER" --shape llama-1b \
          --dtype bfloat16 --users 4 --batch-size 4 --lengths 50 200 800 1435 --out "$out/profile"
      else
        echo "Figure 8 by length needs DATA and TOKENIZER"
      fi
      ;;
    *)
      echo "expected 1, 2 or 3, got $command" >&2
      exit 2
      ;;
  esac
  exit $failed
} 2>&1 | tee -a "$out/log-$command.txt"
