"""The processes that check operators, with operators that have one fault each (fake_operators.py)."""

import re

import pytest
from fastdgl_kernels.certify.calls import Call, Operand
from fastdgl_kernels.certify.pool import CRASHED, HUNG, OVER, DeviceLost, Limits, Pool, PoolError

FAULTS = {
    "right": ("right", ""),
    "prints": ("right", ""),
    "wrong": ("wrong", "y errs by"),
    "leaves_nan": ("wrong", "y errs by nan"),
    "writes_inputs": ("wrong", "x was given and is written to"),
    "writes_beyond": ("wrong", "memory next to an allocation is written to"),
    "differs": ("wrong", "y differs when computed again"),
    "wrong_second": ("wrong", "second gradient of x errs by"),
    "exits": (CRASHED, "its process died with exit status 7"),
    "segfaults": (CRASHED, "its process died with exit status -11"),
    "out_of_resources": ("failed", "OutOfResources: out of resource: shared memory, Required: 300000"),
    "out_of_memory": ("skipped", "OutOfMemoryError: CUDA out of memory"),
}


def job(name):
    call = Call(name, {"x": Operand((4, 6, 5, 5), "float32")})
    return {"kind": "check", "call": call.to_json(), "implementation": "triton"}


def outcomes(pool, names, **options):
    return {done["call"]["operator"]: outcome for done, outcome in pool.outcomes([job(name) for name in names], **options)}


@pytest.fixture(scope="module")
def found():
    """What is found of each operator, one process after another: where one crashes, the next goes on."""
    pytest.importorskip("triton")
    with Pool("cpu", "fake_operators") as pool:
        return outcomes(pool, FAULTS)


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_found(found, name):
    outcome, words = FAULTS[name]
    assert found[name]["outcome"] == outcome and words in found[name]["words"], found[name]


def test_what_hangs_is_killed_and_the_rest_goes_on():
    asked = []
    with Pool("cpu", "fake_operators", limits=Limits(run=1.0)) as pool:
        found = outcomes(pool, ["sleeps", "wrong_second"], skip=lambda job: asked.append(job["call"]["operator"]) or job["call"]["operator"] == "wrong_second")
    assert found.keys() == {"sleeps"} and found["sleeps"]["outcome"] == HUNG
    # since the job started, of which a busy machine makes more
    assert re.fullmatch(r"it did not end within \d+ s", found["sleeps"]["words"])
    # each is asked for again until it starts
    assert list(dict.fromkeys(asked)) == ["sleeps", "wrong_second"]


def test_after_the_time_is_over_nothing_starts():
    with Pool("cpu", "fake_operators", until=0.0) as pool:
        assert outcomes(pool, ["right", "wrong"]) == dict.fromkeys(["right", "wrong"], {"outcome": OVER, "words": "the time was over"})
        assert not pool._workers


def test_where_no_process_starts_one_sentence_says_why(tmp_path):
    with pytest.raises(PoolError, match="a process to check the kernels in could not start: ModuleNotFoundError: No module named 'no_such_module'") as error:
        with Pool("cpu", "no_such_module") as pool:
            outcomes(pool, ["right"])
    assert not isinstance(error.value, DeviceLost)


STARTS_ONCE = """
from pathlib import Path
from fake_operators import exits, right
started = Path(__file__).with_name("started")
if started.exists():
    raise RuntimeError("the GPU is busy")
started.touch()
"""


def test_a_device_that_a_crash_leaves_busy_is_lost(tmp_path, monkeypatch):
    (tmp_path / "operators_that_start_once.py").write_text(STARTS_ONCE)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DeviceLost, match="the GPU cannot be used after a kernel was stopped: .* RuntimeError: the GPU is busy"):
        with Pool("cpu", "operators_that_start_once") as pool:
            outcomes(pool, ["exits", "right"])


def test_a_process_that_cannot_be_killed_holds_the_device(monkeypatch):
    from fastdgl_kernels.certify import pool as pools

    class Immortal:
        """Stands for a process in a driver that does not return."""

        job, ready, since = None, True, 0.0

        def end(self, patience):
            assert patience == 20.0
            return False

    with Pool("cpu") as pool, pytest.raises(DeviceLost, match="a stopped kernel still holds the GPU after 20 s"):
        pool._workers.append(late := Immortal())
        list(pool._lose(late, pools.HUNG))
