#!/usr/bin/env bash
# All checks that need a GPU, in one go: mixed precision, time to 94 % beside airbench94_muon, NCCL, a whole run through Ray Train.
#
#   PEER=airbench94_muon.py benchmarks/gpu.sh DIR [OUT]      DIR holds CIFAR-10 as train/<class>/… and test/<class>/…
#
# Without PEER the comparison is left out. SEEDS (10) trainings each. To try the script on a CPU: IMAGES=2000 cuts the data short, SEEDS=1,
# EPOCHS=1, and PRECISIONS="bf16 fp32", as fp16 is emulated there.
# Full logs go to OUT; the table at the end is OUT/table.txt.
set -uo pipefail
cd "$(dirname "$0")/.."
data=${1:?the folder of CIFAR-10 images}
out=${2:-/tmp/gpu-checks}
mkdir -p "$out"
python=${PYTHON:-python3}
table=$out/table.txt
: >"$table"

check() { # name, command…: a row of the table is the last line that the command prints
  local name=$1 started=$SECONDS
  shift
  if "$@" >"$out/$name.log" 2>&1; then status=ok; else status=FAILED; fi
  printf '%-14s %-6s %5d s  %s\n' "$name" "$status" $((SECONDS - started)) "$(tail -n 1 "$out/$name.log" | tr '\r' '\n' | tail -n 1)" | tee -a "$table"
}

cut=${IMAGES:+--images $IMAGES}
for precision in ${PRECISIONS:-bf16 fp16 fp32}; do check "$precision" "$python" benchmarks/gpu.py precision "$data" --precision $precision $cut; done
check nccl "$python" benchmarks/gpu.py collective
check tests "$python" -m pytest -q -m gpu tests
check forward "$python" benchmarks/gpu.py forward
check eager "$python" benchmarks/gpu.py time "$data" --seeds "${SEEDS:-10}" --cuda-graph off $cut
check graph "$python" benchmarks/gpu.py time "$data" --seeds "${SEEDS:-10}" $cut
check compiled "$python" benchmarks/gpu.py time "$data" --seeds "${SEEDS:-10}" --compile default $cut
check ours "$python" benchmarks/gpu.py time "$data" --seeds "${SEEDS:-10}" --compile max-autotune $cut
if [ -n "${PEER:-}" ]; then
  "$python" benchmarks/gpu.py peer-data "$data" "$out/peer"
  check peer env -C "$out/peer" "$python" "$(realpath "$PEER")"
  check ours-again "$python" benchmarks/gpu.py time "$data" --seeds "${SEEDS:-10}" --compile max-autotune $cut
fi
check ray-train bash -c '"$@" && found=$(grep "^accuracy" "$0") && echo "$found"' "$out/ray-train.log" "$python" -m cifar_ray.train --dataset folder --data-dir "$data" --epochs "${EPOCHS:-8}" --storage "$out/storage"
echo
cat "$table"
