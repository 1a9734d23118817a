"""Which rows may be chosen from."""

from dataclasses import replace

from extproc.scheduling.endpoints import Endpoint, EndpointTable
from extproc.traffic.pools import Pools


def test_only_ready_endpoints_may_be_chosen():
    table = EndpointTable()
    a, b = Endpoint("127.0.0.1:1", "ns/a", "vLLM"), Endpoint("127.0.0.2:1", "ns/b", "vLLM", ready=False)
    rows = [table.upsert(a), table.upsert(b)]
    pools = Pools(table)

    pools.set({"ns/s": [a.address, b.address], "ns/empty": [], "ns/waiting": [b.address]})
    before = pools.ready("ns/s").tolist()
    table.upsert(replace(b, ready=True))
    pools.refresh()

    assert before == rows[:1]
    assert pools.ready("ns/s").tolist() == sorted(rows)
    assert pools.has_endpoints("ns/waiting")
    assert not pools.has_endpoints("ns/empty")
    assert pools.ready("ns/unknown").tolist() == []
    assert pools.members("ns/s") == {a.address, b.address}
