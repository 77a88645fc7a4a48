#!/bin/sh
# Train DCGAN; arguments go on to train.py, for example: scripts/train_DCGAN.sh --config quick.json
exec python "$(dirname "$0")/../DCGAN/train.py" "$@"
