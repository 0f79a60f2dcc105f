#!/bin/bash
# All checks of speed on one GPU, in less than ten minutes: bash benchmarks/gpu.sh [OUT]
# It writes JSON files to OUT (benchmarks/results by default). Every part has a limit of its own, so
# that a slow one takes no time from the others.
set -uo pipefail
out=${1:-benchmarks/results}
mkdir -p "$out"
nvidia-smi --query-gpu=name,driver_version,power.limit --format=csv
timeout 60 python -m benchmarks.waits
timeout 60 python -m benchmarks.pixels --widths 500 --images 256 | tee "$out/gpu_pixels.txt"
timeout 90 python -m benchmarks.bench --shapes base16 --repeats 5 --out "$out/gpu_base16.json"
timeout 120 python -m benchmarks.bench --shapes huge14 --repeats 4 --out "$out/gpu_huge14.json"
timeout 120 python -m benchmarks.bench --shapes huge14 --repeats 4 --compile teachers --out "$out/gpu_huge14_teachers.json"
timeout 150 python -m benchmarks.bench --shapes huge14 --repeats 4 --compile all --out "$out/gpu_huge14_all.json"
timeout 60 python -m benchmarks.bench --shapes base16 --batch-size 128 --repeats 4 --precision tf32 --out "$out/gpu_base16_tf32.json"
timeout 60 python -m benchmarks.bench --shapes base16 --batch-size 128 --repeats 4 --precision float32 --out "$out/gpu_base16_float32.json"
