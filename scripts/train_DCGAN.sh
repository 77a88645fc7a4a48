#!/bin/sh
# Train DCGAN from any directory. Arguments are passed to train.py, for example --config quick.json.
exec python "$(dirname "$0")/../DCGAN/train.py" "$@"
