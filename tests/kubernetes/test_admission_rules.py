"""Every rule about ModelInfers, kept by a real API server with our schema and our webhook: what is refused, and with which words.

Numbers are those of the peers' rules for their ModelServing; the rest are gaps that they have. Whether schema or webhook refuses
does not matter here: a user sees one answer.
"""

from __future__ import annotations

import pytest
from kubernetes import client as official

from matrixinfer.api import kinds
from tests.kubernetes.test_webhooks import Place, User, a_configuration, in_force, webhooks
from tests.modelinfer.village import a_role, a_template, an_infer, rolling

BY_ROLE = {"type": "RoleRollingUpdate"}


def entry(**spec):
    """Give a role whose entry's pod has these fields."""
    return a_role(entryTemplate=a_template(**spec))


def engine(**fields):
    return entry(containers=[{"name": "engine", "image": "sim:1"} | fields])


def labelled(**metadata):
    return a_role(entryTemplate=a_template() | {"metadata": metadata})


def with_workers(spec):
    return a_role(workers=1, workerTemplate={"spec": spec})


REFUSED = {
    # 1, 2: names
    "1 pods' names too long": (an_infer(name="n" * 50, replicas=10), "at most 63 characters"),
    "1 pods' names too long with surge": (
        an_infer(name="n" * 50, replicas=9, rolloutStrategy=rolling(maxSurge=1)),
        "at most 63 characters",
    ),
    "1 a dot in the name": (an_infer(name="llama3.1"), "write no '.'"),
    "1 a digit first in the name": (an_infer(name="8b"), "begin with a letter"),
    "2 a role that begins with a digit": (an_infer(a_role("405b")), "spec.template.roles[0].name"),
    "2 a role in capitals": (an_infer(a_role("Decode")), "spec.template.roles[0].name"),
    # 3: images
    "3 a space in an entry's image": (an_infer(engine(image="sim: 1")), "must not contain spaces"),
    "3 a space in a worker's image": (
        an_infer(with_workers({"containers": [{"name": "e", "image": " x"}]})),
        "must not contain spaces",
    ),
    "3 a space in an init container's image": (
        an_infer(entry(initContainers=[{"name": "i", "image": "a b"}])),
        "must not contain spaces",
    ),
    # 4: counts
    "4 negative replicas": (an_infer(replicas=-1), "spec.replicas"),
    "4 negative replicas of a role": (an_infer(a_role(replicas=-1)), "spec.template.roles[0].replicas"),
    "4 no role": (an_infer(template={"roles": []}), "spec.template.roles"),
    "4 two roles of one name": (an_infer(a_role(), a_role()), "two roles have the same name"),
    # 5: rolling groups
    "5 a share that is none": (an_infer(rolloutStrategy=rolling(maxUnavailable="a few")), "percentage"),
    "5 a share over 100 %": (an_infer(rolloutStrategy=rolling(partition="150%")), "percentage"),
    "5 a negative number": (an_infer(rolloutStrategy=rolling(maxUnavailable=-1)), "0 or more"),
    "5 nothing may be missing and nothing added": (
        an_infer(rolloutStrategy=rolling(maxUnavailable="0%")),
        "maxUnavailable and maxSurge must not both be 0",
    ),
    # 6, 7: rolling roles
    "6 a partition of groups when rolling roles": (
        an_infer(rolloutStrategy=BY_ROLE | {"rollingUpdateConfiguration": {"partition": 1}}),
        "maxSurge and partition are fields of each role",
    ),
    "6 nothing of a role may be missing": (
        an_infer(a_role(maxUnavailable=0), rolloutStrategy=BY_ROLE),
        "maxUnavailable and maxSurge must not both be 0",
    ),
    "6 more may be missing than a role has": (an_infer(a_role(replicas=2, maxUnavailable=3)), "more than the role's"),
    "6 a role's share that is none": (an_infer(a_role(maxUnavailable="x%"), rolloutStrategy=BY_ROLE), "percentage"),
    "7 a role's partition when rolling groups": (an_infer(a_role(partition=1)), "RoleRollingUpdate only"),
    # 8: gangs
    "8 a gang of a role that is not there": (
        an_infer(template={"gangPolicy": {"minRoleReplicas": {"ghost": 1}}}),
        "names a role that is not there",
    ),
    "8 a gang of more than there are": (
        an_infer(template={"gangPolicy": {"minRoleReplicas": {"decode": 2}}}),
        "more than its replicas",
    ),
    "8 a gang of less than none": (
        an_infer(template={"gangPolicy": {"minRoleReplicas": {"decode": -1}}}),
        "minRoleReplicas",
    ),
    # 9, 10
    "9 workers without a template": (an_infer(a_role() | {"workerReplicas": 1}), "workerTemplate"),
    "9 fewer workers than none": (an_infer(a_role() | {"workerReplicas": -1}), "workerReplicas"),
    "10 groups recreated when rolling roles": (
        an_infer(rolloutStrategy=BY_ROLE, recoveryPolicy="InferGroupRecreate"),
        "InferGroupRecreate cannot go with RoleRollingUpdate",
    ),
    # What the peers let pass
    "an unknown plugin": (an_infer(plugins=[{"name": "ghost"}]), "spec.plugins[0].name"),
    "an unknown kind of plugin": (
        an_infer(plugins=[{"name": "lws-standard-labels", "type": "Webhook"}]),
        "spec.plugins[0].type",
    ),
    "a plugin told what it does not know": (
        an_infer(plugins=[{"name": "lws-standard-labels", "config": {"a": 1}}]),
        "spec.plugins[0].config",
    ),
    "a plugin for pods of no kind": (
        an_infer(plugins=[{"name": "lws-standard-labels", "scope": {"target": "Leader"}}]),
        "spec.plugins[0].scope.target",
    ),
    "a plugin for a role that is not there": (
        an_infer(plugins=[{"name": "lws-standard-labels", "scope": {"roles": ["ghost"]}}]),
        "a plugin's scope names a role that is not there",
    ),
    "a variable set twice": (
        an_infer(engine(env=[{"name": "A", "value": "1"}, {"name": "A", "value": "2"}])),
        "the same environment variable twice",
    ),
    "a port named twice": (
        an_infer(engine(ports=[{"containerPort": 80}, {"containerPort": 80}])),
        "the same port and protocol twice",
    ),
    "a port that is none": (an_infer(engine(ports=[{"containerPort": 70000}])), "containerPort"),
    "a template's label that is ours": (
        an_infer(labelled(labels={"modelinfer.matrixinfer.ai/role": "x"})),
        "modelinfer.matrixinfer.ai/ are set by the controller",
    ),
    "a template's annotation that is ours": (
        an_infer(labelled(annotations={"modelinfer.matrixinfer.ai/x": "x"})),
        "modelinfer.matrixinfer.ai/ are set by the controller",
    ),
    "a tier named twice": (
        an_infer(template={"networkTopology": {"groupPolicy": {"highestTierAllowed": 1, "highestTierName": "rack"}}}),
        "highestTierAllowed or highestTierName, not both",
    ),
    "nearness of no kind": (
        an_infer(template={"networkTopology": {"groupPolicy": {"mode": "near"}}}),
        "networkTopology.groupPolicy.mode",
    ),
    "a gang in both forms": (
        an_infer(template={"gangPolicy": {}, "gangSchedule": {}}),
        "gangPolicy, or gangSchedule in the older form, not both",
    ),
    "a spread that cannot be": (
        an_infer(
            topologySpreadConstraints=[{"maxSkew": 0, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}]
        ),
        "maxSkew",
    ),
    "a policy that is none": (an_infer(recoveryPolicy="Never"), "spec.recoveryPolicy"),
    "a strategy that is none": (an_infer(rolloutStrategy={"type": "Recreate"}), "spec.rolloutStrategy.type"),
    "grace that has been": (an_infer(template={"restartGracePeriodSeconds": -1}), "restartGracePeriodSeconds"),
    "no container": (an_infer(entry(containers=[])), "at least one container"),
    "a field that nobody knows": (an_infer(replica=2), "replica"),
}


@pytest.fixture
async def user(plane, look, namespace, other_namespace, configured):
    """Somebody in a namespace about which the API server asks our webhook."""
    somebody = User(look, namespace)
    place = Place(other_namespace, f"webhooks-{namespace}")
    async with webhooks(plane, place) as (_, port):
        await configured(a_configuration(place.name, port, namespace))
        await in_force(somebody)
        yield somebody


@pytest.fixture
async def configured(look):
    """Makes one configuration, and takes it away again."""
    admission = official.AdmissionregistrationV1Api(look)
    made = []

    async def make(configuration):
        admission.create_validating_webhook_configuration(configuration)
        made.append(configuration["metadata"]["name"])

    yield make
    for name in made:
        admission.delete_validating_webhook_configuration(name)


@pytest.mark.parametrize("rule", REFUSED)
async def test_it_is_refused_with_what_to_change(rule, user):
    manifest, words = REFUSED[rule]

    assert words in await user.refused(kinds.MODEL_INFER, manifest, dry_run="All", field_validation="Strict")


async def test_the_same_rules_hold_for_edits(user):
    await user.create(kinds.MODEL_INFER, an_infer(name="demo"))
    let_pass = []
    for rule, (manifest, _) in REFUSED.items():
        if manifest["metadata"]["name"] != "demo":
            continue
        try:
            await user.patch(
                kinds.MODEL_INFER, "demo", {"spec": manifest["spec"]}, dry_run="All", field_validation="Strict"
            )
        except official.ApiException:
            continue
        let_pass.append(rule)

    assert let_pass == []


async def test_all_that_schema_and_webhook_find_comes_with_the_fields_to_change(user):
    both = an_infer(
        engine(image="a b", env=[{"name": "A"}, {"name": "A"}]),
        plugins=[{"name": "lws-standard-labels", "scope": {"roles": ["ghost"]}}],
        rolloutStrategy=rolling(maxUnavailable=0),
    )
    said = await user.refused(kinds.MODEL_INFER, both, dry_run="All")

    for field in (
        "spec.template.roles[0].entryTemplate.spec: an image",
        "spec.template.roles[0].entryTemplate.spec: a container sets",
        "spec.plugins",
        "spec.rolloutStrategy.rollingUpdateConfiguration.maxUnavailable",
    ):
        assert field in said


async def test_more_replicas_by_scale_than_names_can_be_made_for_are_refused_there(user):
    longest = "n" * (63 - len("-9-decode-1-0"))
    await user.create(kinds.MODEL_INFER, an_infer(name=longest, replicas=1))
    with pytest.raises(official.ApiException) as refused:
        await user.call("patch_namespaced_custom_object_scale", kinds.MODEL_INFER, longest, {"spec": {"replicas": 100}})

    assert "at most 63 characters" in refused.value.body
