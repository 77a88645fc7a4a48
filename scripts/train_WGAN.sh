#!/bin/sh
# Train WGAN from any directory. Arguments are passed to train.py, for example --config quick.json.
exec python "$(dirname "$0")/../WGAN/train.py" "$@"
