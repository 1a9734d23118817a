from matrixinfer.api import core
from matrixinfer.local.status import ContainerStatus, Running, Terminated, Waiting, pod_status

NOON = 1_800_000_000.0


def a_pod(*, init=(), restart="Always", **containers):
    return core.Pod.model_validate(
        {
            "metadata": {"name": "demo-0"},
            "spec": {
                "restartPolicy": restart,
                "initContainers": list(init),
                "containers": [{"name": name} for name in containers or ("engine",)],
            },
        }
    )


def status(pod, *containers, init=(), previous=None, now=NOON):
    return pod_status(
        pod,
        address="127.10.0.1",
        started_at=NOON,
        now=now,
        init=list(init),
        containers=list(containers),
        previous=previous or {},
    )


def running(name="engine", *, ready=True, **fields):
    return ContainerStatus(name, "image", Running(NOON), started=True, ready=ready, **fields)


def ended(code, name="engine"):
    return ContainerStatus(name, "image", Terminated(code, "Error", "", NOON, NOON + 1))


def conditions(manifest):
    return {condition["type"]: condition["status"] for condition in manifest["conditions"]}


def test_a_pod_is_ready_when_all_containers_are():
    pod = a_pod(a=1, b=2)

    assert conditions(status(pod, running("a"), running("b"))) == {
        "PodScheduled": "True",
        "Initialized": "True",
        "ContainersReady": "True",
        "Ready": "True",
    }
    assert conditions(status(pod, running("a"), running("b", ready=False)))["Ready"] == "False"


def test_a_condition_keeps_its_time_until_its_status_changes():
    before = status(a_pod(), running(ready=False), now=NOON)
    same = status(a_pod(), running(ready=False), previous=before, now=NOON + 60)
    after = status(a_pod(), running(), previous=same, now=NOON + 120)

    times = {c["type"]: c["lastTransitionTime"] for c in after["conditions"]}
    assert same["conditions"] == before["conditions"]
    assert times["PodScheduled"] == "2027-01-15T08:00:00Z"
    assert times["Ready"] == "2027-01-15T08:02:00Z"


def test_an_unready_pod_says_which_container_and_why():
    manifest = status(a_pod(), running(ready=False, complaint="readiness probe, GET http://x: connection refused"))

    ready = next(c for c in manifest["conditions"] if c["type"] == "Ready")
    assert ready["reason"] == "ContainersNotReady"
    assert ready["message"] == (
        "containers with unready status: engine (readiness probe, GET http://x: connection refused)"
    )


def test_the_phase_follows_the_containers():
    back = ContainerStatus("engine", "image", Waiting("CrashLoopBackOff"), last=ended(1).state, restarts=1)

    assert status(a_pod(), ContainerStatus("engine", "image"))["phase"] == "Pending"
    assert status(a_pod(), running(ready=False))["phase"] == "Running"
    assert status(a_pod(), back)["phase"] == "Running"
    assert status(a_pod(restart="Never"), ended(0))["phase"] == "Succeeded"
    assert status(a_pod(restart="Never"), ended(1))["phase"] == "Failed"
    assert status(a_pod(restart="Never", a=1, b=2), ended(0, "a"), running("b"))["phase"] == "Running"


def test_a_pod_is_pending_until_its_init_containers_succeeded():
    pod = a_pod(init=[{"name": "download"}])
    idle = ContainerStatus("engine", "image")

    assert status(pod, idle, init=[running("download")])["phase"] == "Pending"
    assert conditions(status(pod, idle, init=[running("download")]))["Initialized"] == "False"
    assert conditions(status(pod, running(), init=[ended(0, "download")]))["Ready"] == "True"


def test_a_failed_init_container_fails_a_pod_that_never_restarts():
    pod = a_pod(init=[{"name": "download"}], restart="Never")

    assert status(pod, ContainerStatus("engine", "image"), init=[ended(1, "download")])["phase"] == "Failed"


def test_container_statuses_read_as_the_kubelets():
    last = Terminated(137, "Error", "killed", NOON, NOON + 1)
    manifest = status(a_pod(), running(last=last, restarts=2, pid=42))

    assert manifest["podIP"] == "127.10.0.1"
    assert manifest["containerStatuses"] == [
        {
            "name": "engine",
            "image": "image",
            "imageID": "",
            "containerID": "process://42",
            "ready": True,
            "started": True,
            "restartCount": 2,
            "state": {"running": {"startedAt": "2027-01-15T08:00:00Z"}},
            "lastState": {
                "terminated": {
                    "exitCode": 137,
                    "reason": "Error",
                    "message": "killed",
                    "startedAt": "2027-01-15T08:00:00Z",
                    "finishedAt": "2027-01-15T08:00:01Z",
                }
            },
        }
    ]
