"""Several processes compress together: one makes the plan, all of them learn, and one writes."""

import re
import signal
import textwrap

import pytest
import torch
from safetensors.torch import load_file

import shared_recovery
from launching import outputs, start
from shoal.pipeline.plan_checkpoint import FILENAME
from shoal.recover.distill import CHECKPOINT

pytestmark = [pytest.mark.slow, pytest.mark.several]

COMMON = """
import os, signal, sys
import shoal.pipeline.api as api
from safetensors.torch import save_file
from shared_recovery import compressed, data
first = os.environ["RANK"] == "0"
"""
SAVE = """
result = compressed(sys.argv[1])
if first:
    save_file(result.model.state_dict(), sys.argv[2])
print(result.plan.model_dump_json())
print(result.record.model_dump_json(exclude={"seconds"}))
"""


def launched(code, *arguments, count=2):
    return start(COMMON + textwrap.dedent(code), count, *arguments)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process makes."""
    return shared_recovery.compressed(tmp_path_factory.mktemp("alone"))


def check_same(weights, alone):
    for name, value in alone.model.state_dict().items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=5e-6)


def test_several_processes_make_what_one_does_and_plan_once(tmp_path, alone):
    only_first = """
    def planned(*args):
        raise AssertionError("only the first process makes a plan")
    if not first:
        api.build_planner = api.measure_outcome = api.save_plan = planned
    """
    processes = launched(textwrap.dedent(only_first) + SAVE, tmp_path / "run", tmp_path / "weights")
    printed = outputs(processes)
    assert [process.returncode for process in processes] == [0, 0], printed
    plans, records = zip(*(output.splitlines()[-2:] for output, _ in printed), strict=True)
    assert plans[0] == plans[1] == alone.plan.model_dump_json()
    assert records[0] == records[1]
    assert alone.record.planning.race is not None
    assert '"processes":2' in records[0]
    assert f'"samples":{alone.record.recovery.samples}' in records[0], "every sample counted once"
    check_same(load_file(tmp_path / "weights"), alone)
    assert alone.record.recovery.kept_step, "something was learned"


def test_another_number_of_processes_goes_on_where_several_were_asked_to_end(tmp_path, alone):
    asked = """
    def images_of(epoch):
        for number, batch in enumerate(data):
            if epoch == 2 and number == 2 and not first:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch
    compressed(sys.argv[1], training=images_of)
    """
    processes = launched(asked, tmp_path)
    printed = outputs(processes)
    assert all("Terminated" in error for _, error in printed), printed
    assert {FILENAME, CHECKPOINT} <= {path.name for path in tmp_path.iterdir()}
    result = shared_recovery.compressed(tmp_path)
    assert result.record.recovery.resumed
    assert any("begun by 2 and continued by 1 processes" in warning for warning in result.record.warnings)
    check_same(result.model.state_dict(), alone)


def test_where_the_first_fails_the_others_end_and_say_so(tmp_path):
    failing = """
    def fails(*args):
        raise OSError("the tables are on fire")
    api.build_planner = fails
    compressed(sys.argv[1])
    """
    printed = outputs(launched(failing, tmp_path))
    assert "the tables are on fire" in printed[0][1]
    assert "process 0 failed, and the others cannot go on alone" in printed[1][1]


def test_where_the_first_is_killed_the_others_end(tmp_path):
    killed = """
    def fails(*args):
        os.kill(os.getpid(), signal.SIGKILL)
    api.build_planner = fails
    compressed(sys.argv[1])
    """
    processes = launched(killed, tmp_path)
    printed = outputs(processes)
    assert processes[0].returncode == -signal.SIGKILL
    # Killed so early the first may leave the other one while this is still joining.
    assert re.search("(process 0 failed|while all were joining .*), and the others cannot go on alone", printed[1][1])
