"""What holds for every ModelInfer, whatever happens to it: random specs, random steps of a kubelet, a controller that dies."""

from __future__ import annotations

import asyncio
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from controllers.modelinfer.plan import plan
from controllers.modelinfer.shapes import Limits
from matrixinfer.api import kinds
from tests.modelinfer import village as villages
from tests.modelinfer.town import Town, a_role, a_shape, wanting

shapes = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3), st.sampled_from("ab")), min_size=1, max_size=2).map(
    lambda roles: a_shape(
        *(
            a_role(name, replicas=replicas, pods=pods, version=version)
            for name, (replicas, pods, version) in zip(("prefill", "decode"), roles, strict=False)
        ),
        revision="-".join(f"{pods}{version}" for _, pods, version in roles),
    )
)
limits = st.builds(
    Limits, unavailable=st.integers(0, 3), surge=st.integers(0, 2), partition=st.sampled_from([0, 0, 1, 3])
).map(lambda one: Limits(one.unavailable or (0 if one.surge else 1), one.surge, one.partition))
recoveries = st.sampled_from(["InferGroupRecreate", "RoleRecreate", "None"])


@st.composite
def rollouts(draw):
    """What stood, and what is wanted then."""
    by_role = draw(st.booleans())
    recovery = draw(recoveries.filter(lambda policy: not by_role or policy != "InferGroupRecreate"))
    old, new = draw(shapes), draw(shapes)
    groups = draw(limits)
    fields = {
        "by_role": by_role,
        "recovery": recovery,
        "limits": Limits(groups.unavailable or 1) if by_role else groups,
        "role_limits": {name: draw(limits) for name in ("prefill", "decode")} if by_role else {},
    }
    before = wanting(draw(st.integers(0, 5)), old, recovery=recovery, by_role=by_role)
    after = wanting(draw(st.integers(0, 5)), new, current=old, known=(old,), **fields)
    return before, after


def floor(wanted):
    return wanted.replicas - wanted.limits.unavailable


def turn(town, chance):
    """One thing happens to one pod, or not."""
    if not town.pods:
        return
    name = chance.choice(sorted(town.pods))
    pod = town.pods[name]
    if pod.leaving:
        town.gone(name)
    elif pod.failed_at is None:
        town.change(name, ready=True)
    town.now += 1


@given(rollouts(), st.randoms(use_true_random=False))
@settings(max_examples=80)
def test_a_rollout_keeps_the_floor_and_the_ceiling_and_ends(rollout, chance):
    before, after = rollout
    town = Town(before)
    town.settle()
    town.want(after)
    # More instances or roles than before are missing at first; what must not happen is that more goes than may.
    same_roles = [(one.name, one.replicas) for one in before.update.roles] == [
        (one.name, one.replicas) for one in after.update.roles
    ]
    lowest = min(town.available(), floor(after))

    for _ in range(120):
        town.step(actions=chance.choice([None, 0, 1, 2]))  # the controller may die in the middle of its work
        if same_roles or not after.by_role:
            assert town.available() >= lowest
        created_for = after.replicas + after.limits.surge
        assert len(town.live()) <= max(created_for, before.replicas)
        for _ in range(chance.randint(0, 6)):
            turn(town, chance)
        lowest = min(max(lowest, town.available()), floor(after))

    town.settle(rounds=300)
    assert len(town.live()) == after.replicas
    assert town.available() == after.replicas
    if not after.limits.partition and not any(one.partition for one in after.role_limits.values()):
        hashes = {role.name: role.hash for role in after.update.roles}
        assert all(pod.hash == hashes[pod.instance.role] for pod in town.pods.values())


@given(rollouts(), st.randoms(use_true_random=False))
@settings(max_examples=50)
def test_the_same_world_gives_the_same_plan_in_whatever_order_it_is_seen(rollout, chance):
    before, after = rollout
    town = Town(before)
    town.settle()
    town.want(after)
    for _ in range(chance.randint(0, 8)):
        town.step(actions=chance.choice([None, 1]))
        turn(town, chance)
    shuffled = list(town.pods.values())
    chance.shuffle(shuffled)

    assert plan(after, shuffled, town.now) == plan(after, list(town.pods.values()), town.now)


@given(rollouts(), st.randoms(use_true_random=False))
@settings(max_examples=50)
def test_going_back_leaves_pods_that_had_not_changed(rollout, chance):
    before, after = rollout
    town = Town(before)
    town.settle()
    first = town.uids()
    town.want(after)
    for _ in range(chance.randint(0, 6)):
        town.step()
        turn(town, chance)
    stood = {
        ordinal
        for ordinal, group in town.groups().items()
        if group.ready and all(pod.revision == before.update.revision and not pod.leaving for pod in group.pods)
    }
    kept = {
        name: uid
        for name, uid in town.uids().items()
        if first.get(name) == uid and town.pods[name].instance.group in stood
    }
    back = wanting(
        before.replicas, before.update, recovery=before.recovery, by_role=before.by_role, known=(after.update,)
    )
    town.want(back)
    town.settle(rounds=300)

    assert kept.items() <= town.uids().items()
    assert town.available() == before.replicas


@given(
    st.integers(1, 4),
    recoveries,
    st.lists(st.tuples(st.sampled_from(["delete", "gone", "fail", "ended", "flap"]), st.randoms()), max_size=6),
)
@settings(max_examples=80)
def test_whatever_happens_to_pods_everything_is_there_in_the_end(replicas, recovery, troubles):
    shape = a_shape(a_role("prefill"), a_role("decode", replicas=2, pods=2))
    town = Town(wanting(replicas, shape, recovery=recovery, grace_s=7.0))
    town.settle()
    for trouble, chance in troubles:
        name = chance.choice(sorted(town.pods)) if town.pods else ""
        pod = town.pods.get(name)
        if pod is None or pod.leaving:
            pass
        elif trouble == "delete":
            town.delete(name)
        elif trouble == "gone":
            town.gone(name)
        elif trouble == "flap":
            town.change(name, ready=False)
        elif recovery != "None":
            town.fail(name, ended=trouble == "ended")
        town.step(actions=chance.choice([None, 1]))
        turn(town, chance)
    town.settle(rounds=200)

    assert town.available() == replicas
    assert len(town.pods) == replicas * 5


specs = st.fixed_dictionaries(
    {
        "replicas": st.integers(0, 3),
        "image": st.sampled_from(["sim:1", "sim:2", "sim:3"]),
        "workers": st.integers(0, 1),
        "roles": st.integers(1, 2),
        "surge": st.integers(0, 1),
        "recovery": st.sampled_from(["InferGroupRecreate", "RoleRecreate", "None"]),
    }
)


def manifest_of(spec):
    roles = [villages.a_role(name, workers=spec["workers"], image=spec["image"]) for name in ("decode", "prefill")]
    return villages.an_infer(
        *roles[: spec["roles"]],
        replicas=spec["replicas"],
        recoveryPolicy=spec["recovery"],
        rolloutStrategy=villages.rolling(maxSurge=spec["surge"]),
    )


@given(st.lists(specs, min_size=1, max_size=4), st.integers(0, 2**32))
@settings(max_examples=15)
def test_a_controller_that_dies_at_any_write_leaves_nothing_wrong(edits, seed):
    """Edits in the middle of rollouts, a new controller after every few writes; in the end all is as the last spec says."""

    async def story():
        chance = random.Random(seed)
        village = villages.Village(now=1_800_000_000.0 + seed)
        for spec in edits:
            await village.apply(manifest_of(spec))
            for _ in range(chance.randint(0, 6)):
                await village.reconcile(actions=chance.choice([None, 0, 1, 2, 3]))
                if chance.random() < 0.7:
                    await village.kubelet()
                village.now += 1
        await village.settle()
        last = edits[-1]
        pods = await village.pods()
        services = (await village.cluster.list(kinds.SERVICE)).items
        status = await village.status()
        return last, pods, services, status

    last, pods, services, status = asyncio.run(story())

    assert len(pods) == last["replicas"] * last["roles"] * (1 + last["workers"])
    assert {pod["spec"]["containers"][0]["image"] for pod in pods.values()} <= {last["image"]}
    assert len(services) == last["replicas"] * last["roles"] * min(last["workers"], 1)
    assert (status["replicas"], status["availableReplicas"]) == (last["replicas"], last["replicas"])
    assert status["updatedReplicas"] == last["replicas"]
