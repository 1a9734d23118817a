import asyncio
import os
import signal
import sys
from contextlib import asynccontextmanager, suppress

import pytest

from matrixinfer.api import core
from matrixinfer.local.addresses import Addresses
from matrixinfer.local.containers import Backoff, ContainerRunner, Settings
from matrixinfer.local.pods import PodRunner
from matrixinfer.local.processes import tail
from tests.local.waiting import eventually

SLEEP = "import time; time.sleep(1000)"
QUICKLY = Backoff(first_s=0.01, cap_s=0.05)
# Serves /health with the status that the file named by STATE holds.
SERVE = """
import http.server, os, pathlib
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(int(pathlib.Path(os.environ["STATE"]).read_text()))
        self.end_headers()
    def log_message(self, *args): pass
http.server.ThreadingHTTPServer((os.environ["POD_IP"], 8000), Handler).serve_forever()
"""


def python(code, **fields):
    return {"name": "engine", "command": ["python", "-c", code], **fields}


@pytest.fixture
def address():
    addresses = Addresses()
    yield addresses.take()
    addresses.close()


@pytest.fixture
def running(tmp_path, address):
    """Runs pods; gives each runner a `state()`: its status now."""

    @asynccontextmanager
    async def run(*containers, init=(), backoff=QUICKLY, **spec):
        pod = core.Pod.model_validate(
            {
                "metadata": {"namespace": "default", "name": "demo-0"},
                "spec": {"containers": list(containers), "initContainers": list(init), **spec},
            }
        )
        runner = PodRunner(pod, address=address, settings=Settings(tmp_path, backoff), sources={}, changed=lambda: None)
        runner.grace_s = 5
        task = asyncio.create_task(runner.run())
        try:
            yield runner, task
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    return run


def ready(runner):
    return core.Pod.model_validate({"status": runner.status({})}).ready


def engine(runner):
    return runner.status({})["containerStatuses"][0]


async def test_a_container_without_probes_is_ready_once_it_runs(running):
    async with running(python(SLEEP)) as (runner, _):
        await eventually(lambda: ready(runner))


async def test_stopping_leaves_no_process(running):
    async with running(python(SLEEP)) as (runner, _):
        await eventually(lambda: ready(runner))
        pid = runner.containers[0].status.pid

    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not ready(runner)


async def test_output_goes_to_a_log_named_after_the_container(running, tmp_path):
    async with running(python("print('hello')"), restartPolicy="Never") as (_, task):
        await task

    assert tail(tmp_path / "default_demo-0_engine.log") == ["hello"]


async def test_references_in_command_args_and_env_are_replaced(running, tmp_path, address):
    container = {
        "name": "engine",
        "command": ["python", "-c", "import os, sys; print(os.environ['URL'], sys.argv[1:])"],
        "args": ["$(POD_IP)", "$$(POD_IP)", "$(NAME)"],
        "env": [
            {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "URL", "value": "http://$(POD_IP)/$(NAME)"},
        ],
    }
    async with running(container, restartPolicy="Never") as (_, task):
        await task

    assert tail(tmp_path / "default_demo-0_engine.log") == [
        f"http://{address}/demo-0 ['{address}', '$(POD_IP)', 'demo-0']"
    ]


async def test_the_working_directory_is_kept(running, tmp_path):
    (tmp_path / "there").mkdir()
    container = python("import os; print(os.getcwd())", workingDir=str(tmp_path / "there"))
    async with running(container, restartPolicy="Never") as (_, task):
        await task

    assert tail(tmp_path / "default_demo-0_engine.log") == [str(tmp_path / "there")]


async def test_readiness_follows_the_probe_both_ways(running, tmp_path):
    state = tmp_path / "state"
    state.write_text("503")
    probe = {"httpGet": {"path": "/health", "port": "http"}, "periodSeconds": 1, "failureThreshold": 1}
    container = python(
        SERVE,
        ports=[{"name": "http", "containerPort": 8000}],
        readinessProbe=probe,
        env=[{"name": "STATE", "value": str(state)}],
    )
    async with running(container) as (runner, _):
        await eventually(lambda: "status 503" in str(runner.status({})["conditions"]))
        assert not ready(runner)

        state.write_text("200")
        await eventually(lambda: ready(runner))

        state.write_text("500")
        await eventually(lambda: not ready(runner))
        assert engine(runner)["restartCount"] == 0


async def test_a_failed_liveness_probe_restarts_the_container(running, tmp_path):
    state = tmp_path / "state"
    state.write_text("200")
    probe = {"httpGet": {"port": 8000}, "periodSeconds": 1, "failureThreshold": 1, "initialDelaySeconds": 1}
    container = python(SERVE, livenessProbe=probe, env=[{"name": "STATE", "value": str(state)}])
    async with running(container) as (runner, _):
        await eventually(lambda: engine(runner)["ready"])
        state.write_text("500")
        await eventually(lambda: engine(runner)["restartCount"] == 1)
        state.write_text("200")

        assert "liveness probe" in engine(runner)["lastState"]["terminated"]["message"]


async def test_readiness_waits_for_the_startup_probe(running, tmp_path):
    flag = tmp_path / "flag"
    check = [sys.executable, "-c", f"import os, sys; sys.exit(not os.path.exists({str(flag)!r}))"]
    probe = {"exec": {"command": check}, "failureThreshold": 1000, "timeoutSeconds": 20}
    async with running(python(SLEEP, startupProbe=probe)) as (runner, _):
        await eventually(lambda: "startup probe, exec" in str(runner.status({})["conditions"]))
        assert (engine(runner)["started"], engine(runner)["ready"]) == (False, False)

        flag.touch()
        await eventually(lambda: engine(runner)["started"] and ready(runner))


async def test_a_startup_probe_that_keeps_failing_restarts_the_container(running):
    probe = {"exec": {"command": ["false"]}, "failureThreshold": 1}
    async with running(python(SLEEP, startupProbe=probe)) as (runner, _):
        await eventually(lambda: engine(runner)["restartCount"] >= 1)


async def test_a_crash_is_restarted_after_a_growing_pause(running):
    async with running(python("import sys; sys.exit('boom')")) as (runner, _):
        await eventually(lambda: engine(runner)["restartCount"] >= 3)

        last = engine(runner)["lastState"]["terminated"]
        assert (last["exitCode"], last["reason"], last["message"].split(" | ")[-1]) == (1, "Error", "boom")


def test_the_first_restart_is_at_once_and_later_pauses_double_up_to_the_cap():
    kubernetes = Backoff(first_s=10, cap_s=300)

    assert [kubernetes.pause(crashes) for crashes in range(1, 9)] == [0, 10, 20, 40, 80, 160, 300, 300]
    assert kubernetes.pause(10_000) == 300


async def test_a_killed_container_starts_again_at_once(running):
    async with running(python(SLEEP), backoff=Backoff(first_s=1000, cap_s=1000)) as (runner, _):
        await eventually(lambda: ready(runner))
        os.kill(runner.containers[0].status.pid, signal.SIGKILL)
        await eventually(lambda: engine(runner)["restartCount"] == 1 and ready(runner))

        assert engine(runner)["lastState"]["terminated"]["exitCode"] == 137


@pytest.mark.parametrize(
    ("policy", "code", "phase"),
    [("Never", 0, "Succeeded"), ("Never", 3, "Failed"), ("OnFailure", 0, "Succeeded")],
)
async def test_the_restart_policy_lets_a_pod_end(running, policy, code, phase):
    async with running(python(f"raise SystemExit({code})"), restartPolicy=policy) as (runner, task):
        await task

        assert runner.status({})["phase"] == phase
        assert engine(runner)["restartCount"] == 0


async def test_init_containers_run_one_after_the_other_before_the_rest(running, tmp_path):
    trace = tmp_path / "trace"

    def writing(name):
        code = f"open({str(trace)!r}, 'a').write('{name} ')"
        return {"name": name, "command": ["python", "-c", code]}

    async with running(writing("c"), init=[writing("a"), writing("b")], restartPolicy="Never") as (_, task):
        await task

    assert trace.read_text() == "a b c "


async def test_an_init_container_is_tried_until_it_succeeds(running, tmp_path):
    flag = tmp_path / "flag"
    check = f"import os, sys; sys.exit(not os.path.exists({str(flag)!r}))"
    async with running(python(SLEEP), init=[{"name": "wait", "command": ["python", "-c", check]}]) as (runner, _):
        await eventually(lambda: runner.init[0].status.restarts >= 1)
        assert runner.status({})["phase"] == "Pending"

        flag.touch()
        await eventually(lambda: ready(runner))


async def test_a_sidecar_runs_beside_the_containers_and_goes_with_them(running):
    sidecar = {"name": "proxy", "command": ["python", "-c", SLEEP], "restartPolicy": "Always"}
    async with running(python("pass"), init=[sidecar], restartPolicy="Never") as (runner, task):
        await task

        assert runner.status({})["phase"] == "Succeeded"
        assert runner.init[0].status.pid is None


async def test_an_unknown_image_without_a_command_waits_and_says_what_to_set(running):
    async with running({"name": "engine", "image": "busybox"}) as (runner, _):
        await eventually(lambda: "set the container's `command`" in str(engine(runner)))

        assert engine(runner)["state"]["waiting"]["reason"] == "ErrImageNeverPull"


async def test_a_command_that_does_not_exist_is_a_start_error(running):
    async with running({"name": "engine", "command": ["no-such-program"]}, restartPolicy="Never") as (runner, task):
        await task

        terminated = engine(runner)["state"]["terminated"]
        assert (terminated["reason"], terminated["exitCode"]) == ("StartError", 128)
        assert "no-such-program" in terminated["message"]


async def test_a_pod_that_is_to_go_while_its_container_dies_does_not_run_again(running, monkeypatch):
    dying, may_end = asyncio.Event(), asyncio.Event()

    async def lingers(_runner, _process, _env):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            dying.set()
            await may_end.wait()
            raise

    monkeypatch.setattr(ContainerRunner, "_watch", lingers)
    async with running(python(SLEEP)) as (runner, task):
        container = runner.containers[0]
        await eventually(lambda: container.status.pid)
        os.kill(container.status.pid, signal.SIGKILL)
        await dying.wait()
        task.cancel()
        await asyncio.sleep(0)
        may_end.set()
        await asyncio.wait({task}, timeout=20)

        assert task.cancelled()
        assert container.status.restarts == 0
