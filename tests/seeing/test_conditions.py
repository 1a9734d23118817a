"""Conditions of routes and servers, as the picker's metrics tell them."""

from tests.picker.running import a_picker, a_route, eventually, put

UNMET = 'matrixinfer_resource_conditions_unmet{condition="Programmed",kind="ModelRoute"}'


def with_condition(status):
    since = "2026-01-31T13:46:58Z"
    conditions = [
        {"type": "Programmed", "status": status, "reason": "Refused", "message": "no", "lastTransitionTime": since}
    ]
    return a_route("other", "other") | {"status": {"conditions": conditions}}


async def test_what_envoy_refused_is_counted_until_it_takes_it():
    async with a_picker(engines=1) as picker:

        async def told():
            return [line for line in (await picker.get("/metrics"))[1].splitlines() if line.startswith(UNMET)]

        assert await told() == []

        await put(picker.cluster, with_condition("False"))
        assert await eventually(told) == [f"{UNMET} 1.0"]

        async def over():
            return not await told()

        await put(picker.cluster, with_condition("True"))
        await eventually(over)
