"""Manifests at random: valid ones of our kinds, and anything that JSON or YAML can hold."""

from __future__ import annotations

import copy

from hypothesis import strategies as st

from matrixinfer.api import networking

names = st.from_regex(r"[a-z]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)
label_keys = st.one_of(names, st.builds("{}.com/{}".format, names, names))
labels = st.dictionaries(label_keys, st.one_of(st.just(""), names), min_size=1, max_size=4)
durations = st.sampled_from(["100ms", "1s", "1h30m", "1.5s", "90us", "3ns"])
text = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)


def objects(required, optional=None):
    """A mapping with all of `required` and some of `optional`."""
    return st.fixed_dictionaries(required, optional=optional or {})


metadata = objects({"name": names, "namespace": names}, {"labels": labels, "annotations": labels})
model_server_specs = objects(
    {
        "inferenceEngine": st.sampled_from(["vLLM", "SGLang"]),
        "workloadSelector": objects(
            {"matchLabels": labels},
            {"pdGroup": objects({"groupKey": label_keys, "prefillLabels": labels, "decodeLabels": labels})},
        ),
        "workloadPort": objects({"port": st.integers(1, 65535)}, {"protocol": st.sampled_from(["http", "https"])}),
    },
    {
        "model": text,
        "trafficPolicy": objects(
            {},
            {
                "timeout": durations,
                "retry": objects({"attempts": st.integers(0, 100)}, {"retryInterval": durations}),
            },
        ),
        "kvConnector": objects({}, {"type": st.sampled_from(["http", "lmcache", "nixl", "mooncake"])}),
    },
)
string_matches = st.one_of(
    st.just({}),
    st.builds(lambda way, value: {way: value}, st.sampled_from(["exact", "prefix"]), text),
    st.builds(lambda value: {"regex": value}, st.sampled_from(["", "^/v1/", "a|b", "(?i)x+$", r"\d{2,3}"])),
)
targets = objects({"modelServerName": names}, {"weight": st.integers(1, 100)})
model_route_specs = objects(
    {
        "modelName": text.filter(bool),
        "rules": st.lists(
            objects(
                {"targetModels": st.lists(targets, min_size=1, max_size=3)},
                {
                    "name": text,
                    "modelMatch": objects(
                        {},
                        {
                            "headers": st.dictionaries(names, string_matches, max_size=3),
                            "uri": string_matches,
                            "body": objects({}, {"model": text}),
                        },
                    ),
                },
            ),
            min_size=1,
            max_size=3,
        ),
    },
    {
        "loraAdapters": st.lists(text.filter(bool), max_size=4, unique=True),
        "parentRefs": st.lists(
            objects(
                {"name": names},
                {"namespace": names, "sectionName": names, "port": st.integers(1, 65535), "group": st.just("")},
            ),
            max_size=2,
        ),
        "rateLimit": objects(
            {},
            {
                "inputTokensPerUnit": st.integers(1, 2**32 - 1),
                "outputTokensPerUnit": st.integers(1, 2**32 - 1),
                "unit": st.sampled_from(["second", "minute", "hour", "day", "month"]),
                "global": st.just({"redis": {"address": "redis.default:6379"}}),
            },
        ),
    },
)


def _manifest(kind, spec):
    return objects(
        {"apiVersion": st.just(networking.API_VERSION), "kind": st.just(kind), "metadata": metadata, "spec": spec}
    )


model_servers = _manifest("ModelServer", model_server_specs)
model_routes = _manifest("ModelRoute", model_route_specs)

anything = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.just(10**4000),
        st.floats(),
        st.text(max_size=10),
        st.just("\ud800"),
        st.binary(max_size=3),
        st.dates(),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.one_of(st.text(max_size=8), st.integers(), st.none(), st.just("\ud800"), st.just("[key]")),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=12,
)


SUSPECTS = (0, 1, -1, "", "x", [], {}, 101, 70000, 2**40)


@st.composite
def damaged(draw, manifests):
    """A valid manifest with a few of its values, at any depth, replaced, removed or added to."""
    manifest = copy.deepcopy(draw(manifests))
    for _ in range(draw(st.integers(1, 3))):
        holder, key = draw(st.sampled_from(_places(manifest)))
        match draw(st.sampled_from(["replace", "replace", "remove", "null", "add"])):
            case "replace":
                holder[key] = copy.deepcopy(draw(st.one_of(anything, st.sampled_from(SUSPECTS))))
            case "null":
                holder[key] = None
            case "remove":
                del holder[key]
            case "add" if isinstance(holder, dict):
                holder[draw(st.sampled_from(["exact", "regex", "weight", "externalModelProviderName", "oops"]))] = draw(
                    anything
                )
            case "add":
                holder.append(draw(anything))
        if not manifest:
            break
    return manifest


def _places(value):
    """Every place in a manifest that holds a value, as (holder, key)."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = []
    for key, item in items:
        found.append((value, key))
        found.extend(_places(item))
    return found
