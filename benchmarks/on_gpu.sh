#!/usr/bin/env bash
# What is measured where there is a GPU for some minutes: one NVIDIA H100 or H200, Python 3.12, torch 2.11, no network.
#
#   benchmarks/on_gpu.sh wheels        beforehand, with a network: the wheels of on_gpu.txt, into .gpu/wheels
#   benchmarks/on_gpu.sh data FOLDER   stores the Parquet files in FOLDER under $DATA; once for each part of CIFAR-100
#   benchmarks/on_gpu.sh a             one epoch of an EfficientNet, and the tests that need a GPU (2 minutes)
#   benchmarks/on_gpu.sh b             times of steps, of several processes at once, and of the probe (up to 5 minutes, most of it compiling)
#   benchmarks/on_gpu.sh c SECONDS     as much of Table 1 as fits, the smallest learning rate first
#
# Results are small files in $OUT, written as they come, so that a stage that is cut short leaves what it has. Stage c
# writes table1.tar: the finished cells. Unpacked into .gpu/table1 before the next visit, these cells count as done;
# `sppbench keep .gpu/table1 --output results/table1` adds them to the others.
#
# DEVICE=cpu TINY=1 tries a stage without a GPU, with small nets and few steps.
set -uo pipefail
cd "$(dirname "$0")/.."

OUT=${OUT:-outputs/gpu}
DATA=${DATA:-/tmp/cifar100}
DEVICE=${DEVICE:-cuda}
JOBS=${JOBS:-6}
TINY=${TINY:-}
PYTHON=${PYTHON:-python3}
mkdir -p "$OUT"
export PYTHONPATH=$PWD/src:$PWD/benchmarks${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 WANDB_MODE=disabled

# limited SECONDS NAME COMMAND...: runs it for so long at most; what it prints is in $OUT/NAME.txt.
limited() {
    local seconds=$1 name=$2 start=$SECONDS status
    shift 2
    timeout --kill-after=5 "$seconds" "$@" >"$OUT/$name.txt" 2>&1
    status=$?
    echo "$name: status $status after $((SECONDS - start)) s: $*" | tee -a "$OUT/stages.txt"
    tail -n 3 "$OUT/$name.txt"
}

install_wheels() {
    "$PYTHON" -c "import hydra, psutil, lazy_loader" 2>/dev/null ||
        "$PYTHON" -m pip install --quiet --no-index --no-deps --find-links .gpu/wheels $(grep -v '^#' benchmarks/on_gpu.txt)
}

if [ -n "$TINY" ]; then
    batch=(--batch-size 8) rounds=(--rounds 1) processes=(1 2) seconds=1 cases=(ffnn_bn:8) net=ffnn_bn
    nets=(ffnn_bn) tests=(tests/spp/sums/test_gpu_kernel.py -k "interpreter or compil")
    run=(model.width_mult=0.25 trainer.max_epochs=1 trainer.limit_train_batches=2 data=digits trainer=cpu)
else
    batch=(--batch-size 512) rounds=(--rounds 7) processes=(1 4 6 8) seconds=3 cases=(efficientnet_bn:512 ffnn_bn:512)
    net=efficientnet_bn nets=(efficientnet_nobn efficientnet_bn sn_efficientnet_nomp sn_efficientnet_mp)
    tests=(tests -k "gpu or cuda or Triton or losses") run=(trainer=gpu "data.root=$DATA")
fi

case ${1:-} in
wheels)
    mkdir -p .gpu/wheels
    "$PYTHON" -m pip wheel --quiet --no-deps --wheel-dir .gpu/wheels -r benchmarks/on_gpu.txt
    ls .gpu/wheels
    ;;
data)
    mkdir -p "$DATA"
    cp -v "${2:?the folder with the Parquet files}"/*.parquet "$DATA"/
    ;;
a)
    install_wheels
    limited 60 a_epoch "$PYTHON" -m sppbench.train model=efficientnet_bn trainer.max_epochs=1 spp=none logger=csv \
        "output_dir=$OUT/a_run" overwrite=true "${run[@]}"
    limited 60 a_tests "$PYTHON" -m pytest -q -x -p no:cacheprovider "${tests[@]}"
    rm -f "$OUT/a_run/last.ckpt"
    ;;
b)
    install_wheels
    common=(--device "$DEVICE" "${rounds[@]}")
    limited 20 b_steps "$PYTHON" benchmarks/training.py "${common[@]}" "${batch[@]}" --nets "${nets[@]}"
    limited 75 b_steps_graphs "$PYTHON" benchmarks/training.py "${common[@]}" "${batch[@]}" --nets "$net" \
        --compile reduce-overhead
    several=(benchmarks/several_at_once.py --device "$DEVICE" --net "$net" --seconds "$seconds" "${batch[@]}")
    limited 50 b_several "$PYTHON" "${several[@]}" --processes "${processes[@]}"
    [ "$DEVICE" = cpu ] || limited 50 b_several_mps "$PYTHON" "${several[@]}" --processes "${processes[@]}" --mps
    limited 15 b_probe "$PYTHON" benchmarks/spp_overhead.py "${common[@]}" --cases "${cases[@]}"
    limited 120 b_probe_compiled "$PYTHON" benchmarks/spp_overhead.py "${common[@]}" --cases "${cases[0]}" \
        --compile triton.cudagraphs,combo_kernels
    ;;
c)
    install_wheels
    cells=.gpu/table1
    mkdir -p "$cells"
    pack() { # the finished cells, without weights; whole or as it was
        (cd .gpu && find table1 -name result.json -exec grep -lE '"status": "(completed|diverged)"' {} + |
            xargs -r -n 1 dirname | while read -r cell; do find "$cell" -name '*.csv' -o -name '*.json' -o -name '*.yaml'; done |
            tar -cf table1.tar.part -T -) && cp .gpu/table1.tar.part "$OUT/table1.tar.part" &&
            mv "$OUT/table1.tar.part" "$OUT/table1.tar"
    }
    while sleep 15; do pack; done &
    packing=$!
    # Ctrl-C, so that running cells save where they are and say so; their checkpoints stay on this machine.
    timeout --signal=INT --kill-after=20 "${2:?seconds}" "$PYTHON" -m sppbench.train -m hydra/launcher=joblib \
        "hydra.launcher.n_jobs=$JOBS" sweeps=table1 spp=none logger=csv "${run[@]}" \
        "output_dir='$cells/\${name}/lr=\${optimizer.lr}/seed=\${seed}'" 2>&1 | tee "$OUT/c_sweep.txt" | tail -n 5
    kill $packing 2>/dev/null
    pack
    "$PYTHON" -m sppbench table "$cells" >"$OUT/c_table.txt" 2>&1
    tar -tf "$OUT/table1.tar" | grep -c result.json
    ;;
*)
    sed -n '2,17s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
