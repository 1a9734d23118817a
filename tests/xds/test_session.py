"""One Envoy's subscription: order, nonces, what is sent again, what is refused."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from controllers.xds.session import LINGER_S, Ack, Nack, Request, Session
from controllers.xds.snapshot import CDS, EDS, LDS, RDS, Resource, Snapshot, version

SHORT = {CDS: "clusters", EDS: "endpoints", LDS: "listeners", RDS: "routes"}


def a_snapshot(clusters="a", endpoints="", routes="r1"):
    """`clusters` names them by letter; `endpoints` is a mark that changes their endpoints."""
    made = {name: Resource(f"c-{name}", b"") for name in clusters}
    return Snapshot(
        {
            CDS: made,
            EDS: {name: Resource(f"e-{name}{endpoints}", b"") for name in clusters},
            LDS: {"gateway": Resource("l", b"")},
            RDS: {"gateway": Resource(routes, b"")},
        }
    )


class Peer:
    """An Envoy: subscribes to what it is told of and answers everything."""

    def __init__(self, snapshot):
        self.session, self.snapshot = Session(), snapshot
        self.now = 1000.0
        self.log = []
        self.clusters = frozenset()
        self.pending = []
        self.have = {CDS: frozenset(), EDS: frozenset(), LDS: frozenset(), RDS: frozenset()}

    def say(self, type_url, names=(), nonce="", error=None):
        answer = self.session.receive(Request(type_url, frozenset(names), nonce, error))
        self._take()
        return answer

    def show(self, snapshot):
        self.snapshot = snapshot
        self._take()

    def after(self, seconds):
        self.now += seconds
        self._take()

    def _take(self):
        for response in self.session.send(self.snapshot, self.now):
            self.log.append((SHORT[response.type_url], "".join(sorted(response.resources))))
            self.pending.append(response)

    def answer(self, *, error=None):
        """Answer the oldest response; for clusters only when the new ones are warm, which takes their endpoints."""
        response = self.pending.pop(0)
        names = {EDS: self.clusters, RDS: {"gateway"}}.get(response.type_url, ())
        if error is None and response.type_url == CDS:
            self.clusters = frozenset(response.resources)
            self.say(EDS, self.clusters, self.session._types[EDS].nonce if EDS in self.session._types else "")
            while any(one.type_url == EDS for one in self.pending):
                self.answer()
        return self.say(response.type_url, names, response.nonce, error)

    def start(self):
        self.say(CDS)
        self.answer()
        self.say(LDS)
        self.say(RDS, ["gateway"])
        self.finish()
        self.log.clear()
        return self

    def finish(self):
        while self.pending:
            self.answer()


def test_an_envoy_that_starts_gets_everything_in_order():
    peer = Peer(a_snapshot())

    peer.say(CDS)
    peer.answer()
    peer.finish()
    peer.say(LDS)
    peer.finish()
    peer.say(RDS, ["gateway"])
    peer.finish()

    assert [kind for kind, _ in peer.log] == ["clusters", "endpoints", "listeners", "routes"]
    assert peer.session.settled


def test_a_pod_that_comes_sends_the_endpoints_of_its_cluster_only():
    peer = Peer(a_snapshot("ab")).start()
    changed = a_snapshot("ab")
    moved = Snapshot(changed.resources | {EDS: changed.resources[EDS] | {"b": Resource("moved", b"")}})

    peer.show(moved)
    peer.finish()

    assert peer.log == [("endpoints", "b")]


def test_the_same_snapshot_sends_nothing():
    peer = Peer(a_snapshot()).start()

    peer.show(a_snapshot())

    assert peer.log == []


def test_routes_wait_until_a_new_cluster_is_warm():
    peer = Peer(a_snapshot("a")).start()

    peer.show(a_snapshot("ab", routes="r2"))
    before = list(peer.log)
    peer.finish()

    assert before == [("clusters", "ab")]
    assert peer.log == [("clusters", "ab"), ("endpoints", "ab"), ("routes", "gateway")]


def test_a_cluster_goes_some_time_after_the_routes_that_named_it():
    peer = Peer(a_snapshot("ab")).start()

    peer.show(a_snapshot("a", routes="r2"))
    peer.finish()
    peer.after(LINGER_S - 1)
    before, at = list(peer.log), peer.session.leaves_at
    peer.after(1)

    assert before == [("routes", "gateway")]
    assert at == peer.now
    assert peer.log == [("routes", "gateway"), ("clusters", "a")]
    assert peer.session.settled  # nobody has to wait for that
    assert peer.session.leaves_at is None
    peer.finish()
    assert peer.session.leaves_at is None


def test_a_cluster_that_is_wanted_again_stays_and_lingers_anew_when_it_is_not():
    peer = Peer(a_snapshot("ab")).start()

    for clusters in ("a", "ab", "a"):
        peer.show(a_snapshot(clusters, routes=clusters))
        peer.finish()
        peer.after(LINGER_S - 1)

    assert [what for what, _ in peer.log] == ["routes"] * 3
    assert peer.session.leaves_at == peer.now + 1


def test_a_cluster_stays_while_the_routes_without_it_are_refused():
    peer = Peer(a_snapshot("ab")).start()

    peer.show(a_snapshot("a", routes="r2"))
    refused = peer.answer(error="bad route")

    assert refused == Nack(RDS, "bad route", frozenset({"gateway"}))
    assert peer.log == [("routes", "gateway")]
    assert list(peer.session.refused(peer.snapshot)) == [refused]


def test_what_was_refused_is_not_sent_again_until_it_changes():
    peer = Peer(a_snapshot()).start()
    peer.show(a_snapshot(routes="bad"))
    peer.answer(error="bad route")

    peer.show(a_snapshot(routes="bad"))
    again = list(peer.log)
    peer.show(a_snapshot(routes="good"))
    taken = peer.answer()

    assert again == [("routes", "gateway")]
    assert taken == Ack(RDS, version(peer.snapshot.resources[RDS]))
    assert list(peer.session.refused(peer.snapshot)) == []


def test_a_refusal_that_names_a_resource_is_about_that_one():
    peer = Peer(a_snapshot("ab")).start()

    peer.show(a_snapshot("ab", endpoints="2"))
    refused = peer.answer(error="bug in b")

    assert refused == Nack(EDS, "bug in b", frozenset({"b"}))


def test_endpoints_that_are_refused_together_are_sent_one_by_one():
    peer = Peer(a_snapshot("ab")).start()

    peer.show(a_snapshot("ab", endpoints="2"))
    peer.answer(error="no")
    peer.answer(error="no")
    peer.answer()

    assert peer.log == [("endpoints", "ab"), ("endpoints", "b"), ("endpoints", "a")]
    assert list(peer.session.refused(peer.snapshot)) == [Nack(EDS, "no", frozenset({"b"}))]


def test_an_answer_to_an_older_response_changes_nothing():
    peer = Peer(a_snapshot()).start()
    peer.show(a_snapshot(routes="r2"))

    stale = peer.say(RDS, ["gateway"], nonce="1")

    assert stale is None
    assert not peer.session.settled


def test_a_subscription_that_is_renewed_is_answered_though_nothing_changed():
    peer = Peer(a_snapshot("a")).start()

    peer.say(EDS, ["a"], nonce=peer.session._types[EDS].nonce)

    assert peer.log == [("endpoints", "a")]


def test_types_that_we_do_not_serve_are_passed_over():
    peer = Peer(a_snapshot())

    assert peer.say("type.googleapis.com/envoy.service.runtime.v3.Runtime") is None
    assert peer.log == []


@given(
    st.lists(
        st.tuples(st.sets(st.sampled_from("abcd")), st.sampled_from(["", "2", "3"]), st.sampled_from(["r1", "r2"])),
        max_size=8,
    ),
    st.lists(st.integers(0, 3), max_size=20),
)
def test_whatever_is_shown_and_however_slowly_it_is_answered_envoy_ends_with_the_last(shown, patience):
    peer = Peer(a_snapshot("a")).start()

    for (clusters, endpoints, routes), wait in zip(shown, [*patience, *[0] * 8], strict=False):
        peer.show(a_snapshot("".join(sorted(clusters)), endpoints, routes))
        for _ in range(wait):
            if peer.pending:
                peer.answer()
    peer.finish()
    peer.after(LINGER_S)
    peer.finish()

    have = {type_url: known.sent for type_url, known in peer.session._types.items()}
    wanted = peer.snapshot.resources
    assert peer.session.settled
    assert have[CDS] == wanted[CDS]
    assert {name: have[EDS][name] for name in wanted[EDS]} == wanted[EDS]
    assert have[RDS] == wanted[RDS]
