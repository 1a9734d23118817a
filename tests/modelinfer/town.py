"""A cluster small enough to hold in the hand: pods as values, a kubelet that does one thing at a time, and a clock."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import replace

from controllers.modelinfer.instances import FORMING_S
from controllers.modelinfer.plan import observed, plan
from controllers.modelinfer.shapes import Limits, RoleShape, Seen, Shape, Wanted


def a_role(name="decode", *, replicas=1, pods=1, version="a"):
    return RoleShape(name, replicas, pods, f"{name}-{version}-{pods}")


def a_shape(*roles, revision="a"):
    return Shape(revision, roles or (a_role(version=revision),))


def wanting(replicas=1, update=None, *, current=None, limits=None, **fields):
    update = update or a_shape()
    current = current or update
    shapes = {shape.revision: shape for shape in (*fields.pop("known", ()), current, update)}
    return Wanted(replicas, update, current, limits=limits or Limits(), shapes=shapes, **fields)


class Town:
    """Pods by name. `step` lets the controller act, the other methods are what the world does."""

    def __init__(self, wanted, *, now=1000.0):
        self.wanted = wanted
        self.pods: dict[str, Seen] = {}
        self.now = now
        self.record: dict[str, int] = {}
        self.made: list[str] = []
        self.bad: set[str] = set()  # revisions whose pods never become ready
        self._uids = itertools.count()

    def want(self, wanted):
        self.wanted = wanted

    def plan(self):
        return plan(replace(self.wanted, recorded=self.record), list(self.pods.values()), self.now)

    def step(self, actions=None):
        """Perform a plan, or as many of its actions as are given: the controller dies then."""
        steps = self.plan()
        if self.record != steps.record:
            self.record = dict(steps.record)
        todo = [*steps.delete, *steps.create][:actions]
        for action in todo:
            if action in steps.delete:
                self.delete(action.pod.name)
            else:
                self._make(action)
        return steps

    def _make(self, place):
        name = "-".join(map(str, (place.instance.group, place.instance.role, place.instance.index, place.member)))
        assert name not in self.pods, f"{name} is there already"
        role = self.wanted.shape(place.revision).role(place.instance.role)
        self.pods[name] = Seen(
            name=name,
            uid=str(next(self._uids)),
            instance=place.instance,
            member=place.member,
            revision=place.revision,
            hash=role.hash,
            ready=False,
            leaving=False,
            ended=False,
            failed_at=None,
            created=self.now,
            cost=0,
        )
        self.made.append(name)

    def change(self, name, **fields):
        self.pods[name] = dataclasses.replace(self.pods[name], **fields)

    def delete(self, name):
        self.change(name, leaving=True)

    def fail(self, name, **fields):
        self.change(name, ready=False, failed_at=self.now, **fields)

    def gone(self, name):
        del self.pods[name]

    def kubelet(self):
        """Everything that a kubelet would get to do."""
        for name, pod in list(self.pods.items()):
            if pod.leaving:
                self.gone(name)
            elif pod.failed_at is None and pod.revision not in self.bad:
                self.change(name, ready=True)

    def settle(self, rounds=60):
        """Let controller and kubelet work until neither has anything to do; return the number of rounds."""
        for number in range(rounds):
            before = dict(self.pods)
            steps = self.step()
            self.kubelet()
            if before == self.pods and not (steps.create or steps.delete or steps.look_at):
                return number
            self.now += FORMING_S / 10
        raise AssertionError(f"not settled: {sorted(self.pods)}")

    # Looking

    def groups(self):
        return observed(self.wanted, self.pods.values())

    def available(self):
        return sum(group.ready for group in self.groups().values())

    def live(self):
        return sorted(ordinal for ordinal, group in self.groups().items() if group.live)

    def revisions(self):
        """Revision of each live group's pods."""
        return {
            ordinal: "".join(sorted({pod.revision for pod in group.pods if not pod.leaving}))
            for ordinal, group in sorted(self.groups().items())
            if group.live
        }

    def uids(self):
        return {name: pod.uid for name, pod in self.pods.items()}
