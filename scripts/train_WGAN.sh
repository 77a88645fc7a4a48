#!/bin/sh
# Train WGAN; arguments go on to train.py, for example: scripts/train_WGAN.sh --config quick.json
exec python "$(dirname "$0")/../WGAN/train.py" "$@"
