"""Memory does not grow with the length of a run."""

import psutil
import pytest
from breaking import run_in_child
from conftest import load


@pytest.mark.parametrize(
    ("steps", "settled"), [(600, 200), pytest.param(20_000, 1000, marks=pytest.mark.long)]
)
def test_memory_stays_flat(steps, settled, tiny):
    files = load("DCGAN")
    config = tiny(files, max_steps=steps, log_every=10, frame_every=100, checkpoint_every=100)

    def job():
        step, calls, at = files.train.generator_step, 0, []

        def watched(*args):
            nonlocal calls
            calls += 1
            if calls in (settled, steps):
                at.append(psutil.Process().memory_info().rss)
            return step(*args)

        files.train.generator_step = watched
        files.train.train(config)
        print(f"after {settled} steps {at[0] / 1e6:.1f} MB, after {steps} {at[1] / 1e6:.1f} MB")
        assert at[1] < 1.02 * at[0]

    code, said = run_in_child(job)
    assert code == 0, said
    print(said.splitlines()[-1])
