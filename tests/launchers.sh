#!/usr/bin/env bash
# Runs sweeps=smoke by every launcher, each in an environment of its own on top of $VENV, and compares the results with
# those of Hydra's own launcher, bit for bit. Environments and runs are put into a folder, which is kept.
#
#     make launchers        # or: tests/launchers.sh FOLDER joblib ray slurm
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
base=$(cd "${VENV:-$root/.venv}" && pwd)
folder=$(mkdir -p "${1:-$root/outputs/launchers}" && cd "${1:-$root/outputs/launchers}" && pwd)
shift || true
export OMP_NUM_THREADS=1 WANDB_MODE=offline # the numbers depend on the number of threads
smoke=(-m sppbench.train -m sweeps=smoke spp=none logger=csv)
declare -A options=(
    [joblib]="hydra/launcher=joblib hydra.launcher.n_jobs=2"
    [ray]="hydra/launcher=ray +hydra.launcher.ray.init.num_cpus=2 +hydra.launcher.ray.init.include_dashboard=false +hydra.launcher.ray.remote.max_calls=1"
    [slurm]="hydra/launcher=submitit_local"
)

run() { # name, python, further arguments
    rm -rf "$folder/$1" && mkdir -p "$folder/$1"
    (cd "$folder/$1" && time "$2" "${smoke[@]}" "${@:3}")
}

run plain "$base/bin/python"
for name in "${@:-joblib ray slurm}"; do for launcher in $name; do
    environment=$folder/venv-$launcher
    if [ ! -e "$environment/.ready" ]; then
        python=$("$base/bin/python" -c 'import sys; print(getattr(sys, "_base_executable", sys.executable))')
        "$python" -m venv "$environment"
        packages=$("$base/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
        echo "$packages" > "$("$environment/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/base.pth"
        "$environment/bin/python" -m pip install --quiet --disable-pip-version-check --editable "$root[$launcher]"
        touch "$environment/.ready"
    fi
    read -ra arguments <<< "${options[$launcher]}"
    run "$launcher" "$environment/bin/python" "${arguments[@]}"
    "$base/bin/python" - "$folder/plain/outputs/smoke" "$folder/$launcher/outputs/smoke" <<'END'
import json
import sys
from pathlib import Path

plain, other = map(Path, sys.argv[1:])
cells = sorted(path.relative_to(plain) for path in plain.rglob("result.json"))
for cell in cells:
    left, right = (json.loads((folder / cell).read_text()) for folder in (plain, other))
    assert (left["status"], left["test"], left["val"]) == (right["status"], right["test"], right["val"]), cell
assert len(cells) == 16
print(f"{other.parents[1].name}: the same results as Hydra's own launcher in all {len(cells)} cells")
END
done; done
