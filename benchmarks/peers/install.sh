#!/bin/sh
# Makes an environment for each peer below the folder $1: plain, ray, syne-tune. Some GB each, because of PyTorch.
set -e
torch="torch==2.14.1 torchvision==0.29.1 safetensors"
install() {
    python3 -m venv "$1"
    shift_to="$1"; shift
    "$shift_to/bin/pip" install --quiet $torch "$@"
}
install "$1/plain" optuna==5.0.0
install "$1/ray" "ray[tune]==2.60.0" optuna==5.0.0
install "$1/syne-tune" "syne-tune[basic]==0.16.0"
