#!/usr/bin/env bash
# All that can be learnt from a machine with a GPU in nine minutes: tests/gpu/run.sh [FOLDER_OF_WHEELS]
#
#   DEVICE=cuda    or "cpu", or "pretend": the CPU under another name (tests/gpu/pretend.cpp), strict as CUDA is
#   RECIPE=glow    what is trained, any of `densegen train`; MINUTES=5 of it; JOBS=8 lectures at a time; LECTURES="11 33" for a few; OUT=gpu_report
#
# Writes $OUT/report.md: the card, the contracts, the speeds, the training, the lectures. Needs Python 3.11 or later with
# PyTorch; whatever else is missing is taken from the wheels, without a network.
set -uo pipefail
cd "$(dirname "$0")/../.."
DEVICE=${DEVICE:-cuda} RECIPE=${RECIPE:-glow} MINUTES=${MINUTES:-5} JOBS=${JOBS:-8} LECTURES=${LECTURES:-} OUT=${OUT:-gpu_report}
PYTHON=${PYTHON:-python3}
mkdir -p "$OUT"
export OUT PYTHONUNBUFFERED=1 PYTHONPATH="$PWD:$PWD/tests/gpu:$PWD/tests/benchmarks${PYTHONPATH:+:$PYTHONPATH}"
if [ $# -gt 0 ]; then
    "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target "$OUT/site" "$1"/*.whl || exit 1
    export PYTHONPATH="$PYTHONPATH:$PWD/$OUT/site"
fi
report="$OUT/report.md"
began=$SECONDS
say() { echo "$@" | tee -a "$report"; }
: > "$report"

"$PYTHON" - "$DEVICE" >> "$report" <<'CARD' || exit 1
import platform, sys, torch
if sys.argv[1] == "cuda" and not torch.cuda.is_available():
    sys.exit("DEVICE=cuda: PyTorch sees no GPU here; DEVICE=cpu or DEVICE=pretend tries the script without one")
card = torch.cuda.get_device_name() if sys.argv[1] == "cuda" else f"no GPU ({sys.argv[1]})"
print(f"# {card}\n\nPyTorch {torch.__version__}, CUDA {torch.version.cuda}, Python {platform.python_version()}, {platform.machine()}\n")
CARD

say "## Contracts"
say
if [ "$DEVICE" = cpu ]; then
    words="rank metrics"  # enough to see that the list is read
else
    words=""
fi
timeout 120 "$PYTHON" tests/gpu/probes.py "$DEVICE" "$words" > "$OUT/contracts.jsonl" 2> "$OUT/contracts.log"
"$PYTHON" - "$OUT/contracts.jsonl" >> "$report" <<'CONTRACTS'
import json, sys
rows = [json.loads(line) for line in open(sys.argv[1])]
wrong = [row for row in rows if row["error"]]
print(f"{len(rows) - len(wrong)} of {len(rows)} hold.\n")
for row in wrong:
    print(f"- {row['probe']}: {row['error'].splitlines()[0][:200]}")
CONTRACTS
[ "$DEVICE" != cuda ] || timeout 60 "$PYTHON" -m pytest -q tests/gpu -k fit 2>&1 | tail -1 >> "$report"

say
say "## Speed"
say
size=$([ "$DEVICE" = cuda ] || echo "--batch 4 --rounds 1 --side 256 --no-compile")
on=${DEVICE/pretend/cpu}
# shellcheck disable=SC2086
timeout 150 "$PYTHON" tests/benchmarks/gpu.py --device "$on" $size >> "$report" 2> "$OUT/speed.log" || say "stopped: see speed.log"

say
say "## Training, while the lectures run"
say
timeout $((${MINUTES%.*} * 60 + 150)) "$PYTHON" tests/gpu/training.py "$DEVICE" "$MINUTES" "$RECIPE" > "$OUT/training.md" 2> "$OUT/training.log" &
training=$!

[ "$DEVICE" != pretend ] || export PYTHONPATH="$PWD/tests/gpu/hook:$PYTHONPATH"
# shellcheck disable=SC2086
timeout 300 "$PYTHON" -c "from densegen.course.cli import main; main()" run $LECTURES --scale smoke --device "$DEVICE" \
    --jobs "$JOBS" --fresh > "$OUT/lectures.txt" 2>&1
lectures=$?
wait "$training"
cat "$OUT/training.md" >> "$report"
[ -s "$OUT/training.md" ] || say "stopped: $(tail -1 "$OUT/training.log")"

say
say "## Lectures at scale smoke"
say
if [ "$lectures" = 0 ]; then say "All ended well."; else say "Exit code $lectures:"; fi
say
say '```'
tail -120 "$OUT/lectures.txt" >> "$report"
say '```'
say
say "$((SECONDS - began)) seconds in all."
