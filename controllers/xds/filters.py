"""The HTTP filters in their order: ask the picker; if it was silent, read the model natively; watch the answer; route.

Nothing of an answer goes through Python: our module (`envoy/modules`) stamps the first token, reads usage and hides what
only we asked for; without it Lua does, and Envoy's own filters read the model of undecided requests.
"""

from __future__ import annotations

from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from envoy_data_plane.envoy.config.common.mutation_rules.v3 import (
    HeaderMutation,
    HeaderMutationRemoveOnMatch,
    HeaderMutationRules,
)
from envoy_data_plane.envoy.config.core.v3 import (
    DataSource,
    GrpcService,
    GrpcServiceEnvoyGrpc,
    TypedExtensionConfig,
)
from envoy_data_plane.envoy.extensions.common.matching.v3 import ExtensionWithMatcher
from envoy_data_plane.envoy.extensions.dynamic_modules.v3 import DynamicModuleConfig
from envoy_data_plane.envoy.extensions.filters.common.matcher.action.v3 import SkipFilter
from envoy_data_plane.envoy.extensions.filters.http.dynamic_modules.v3 import DynamicModuleFilter
from envoy_data_plane.envoy.extensions.filters.http.ext_proc.v3 import (
    ExternalProcessor,
    MetadataOptions,
    MetadataOptionsMetadataNamespaces,
    ProcessingMode,
    ProcessingModeBodySendMode,
    ProcessingModeHeaderSendMode,
)
from envoy_data_plane.envoy.extensions.filters.http.json_to_metadata.v3 import (
    JsonToMetadata,
    JsonToMetadataKeyValuePair,
    JsonToMetadataMatchRules,
    JsonToMetadataRule,
    JsonToMetadataSelector,
    JsonToMetadataValueType,
)
from envoy_data_plane.envoy.extensions.filters.http.lua.v3 import Lua
from envoy_data_plane.envoy.extensions.filters.http.router.v3 import Router
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import HttpFilter
from envoy_data_plane.envoy.extensions.http.early_header_mutation.header_mutation.v3 import (
    HeaderMutation as EarlyHeaderMutation,
)
from envoy_data_plane.envoy.type.matcher.v3 import (
    HttpRequestHeaderMatchInput,
    RegexMatcher,
    StringMatcher,
)
from envoy_data_plane.envoy.type.v3 import HttpStatus, StatusCode
from envoy_data_plane.xds.type.matcher.v3 import (
    Matcher,
    MatcherMatcherList,
    MatcherMatcherListFieldMatcher,
    MatcherMatcherListPredicate,
    MatcherMatcherListPredicateSinglePredicate,
    MatcherOnMatch,
)
from envoy_data_plane.xds.type.matcher.v3 import RegexMatcher as XdsRegexMatcher
from envoy_data_plane.xds.type.matcher.v3 import RegexMatcherGoogleRe2 as XdsRegexMatcherGoogleRe2
from envoy_data_plane.xds.type.matcher.v3 import StringMatcher as XdsStringMatcher

from controllers.xds import access, providers
from controllers.xds.clusters import PICKER
from controllers.xds.routes import EXT_PROC
from controllers.xds.typed import extension, packed, xds_extension
from matrixinfer.api import dataplane, transfer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from betterproto2 import Message

    from controllers import ir

SOURCES = Path(__file__).resolve().parents[2] / "envoy"
MODEL_LUA = SOURCES / "model.lua"
RESPONSE_LUA = SOURCES / "response.lua"
RENAME_LUA = SOURCES / "rename.lua"
LISTING_LUA = SOURCES / "listing.lua"
OURS = "x-matrixinfer-"
MODULE = "matrixinfer"  # libmatrixinfer.so, of envoy/modules


def door() -> TypedExtensionConfig:
    """Strip, before anything reads them, the headers by which a client could choose what is ours to choose."""
    # With its ^ the expression is tried on headers only that begin as ours do.
    ours = RegexMatcher(regex="^" + OURS + but(dataplane.EXPLAIN.removeprefix(OURS)))
    return extension(
        "envoy.http.early_header_mutation.header_mutation",
        EarlyHeaderMutation(
            mutations=[
                HeaderMutation(
                    remove_on_match=HeaderMutationRemoveOnMatch(key_matcher=StringMatcher(prefix="x-envoy-"))
                ),
                HeaderMutation(remove=dataplane.ENDPOINT),
                HeaderMutation(remove=dataplane.SUBSET),
                HeaderMutation(remove=dataplane.SERVED),
                *(HeaderMutation(remove=name) for name in transfer.HEADERS),
                HeaderMutation(remove_on_match=HeaderMutationRemoveOnMatch(key_matcher=StringMatcher(safe_regex=ours))),
            ]
        ),
    )


def but(word: str) -> str:
    """Write a regular expression (RE2: no look-around) for every text except `word`."""
    if not word:
        return ".+"
    return f"(?:|[^{word[0]}].*|{word[0]}{but(word[1:])})"


def filters(gateway: ir.Gateway) -> list[HttpFilter]:
    """Write the chain; on an answer it runs from the last to the first."""
    return [
        # What a request has to pass before the picker hears of it, if there are policies.
        *access.before(),
        *(access.switched(access.EARLY + name, message) for name, message in _model(gateway)),
        access.after(),
        access.listing(_lua(LISTING_LUA)),
        _filter("matrixinfer.response", _ours("response") if gateway.module else _lua(RESPONSE_LUA)),
        _filter(EXT_PROC, _ask_the_picker(gateway.picker, along=gateway.module)),
        # The module's takes in what the picker answered, too.
        *(
            _filter(name, message)
            for name, message in (_model(gateway) if gateway.picker.fail_open or gateway.module else ())
        ),
        *providers.answers(gateway.picker),
        _filter("envoy.filters.http.router", Router(suppress_envoy_headers=True)),
    ]


def _model(gateway: ir.Gateway) -> Iterator[tuple[str, Message]]:
    """Read the model's name out of the body of a request that the picker gave no target."""
    if gateway.module:
        how: tuple[Message, ...] = (_ours("model"),)
    else:
        how = (
            _unless_picked("envoy.filters.http.json_to_metadata", _read_model()),
            _unless_picked("envoy.filters.http.lua", _lua(MODEL_LUA)),
        )
    return zip(access.readers(gateway), how, strict=True)


@cache
def rename(*, module: bool) -> HttpFilter:
    """Write the filter that runs for every try: it puts another name of the model into the body where the next one needs it."""
    return _filter("matrixinfer.rename", _ours("rename") if module else _lua(RENAME_LUA))


def picker_service() -> GrpcService:
    """Reach the picker: one HTTP/2 connection a worker thread, and no header on a call that nobody reads."""
    return GrpcService(envoy_grpc=GrpcServiceEnvoyGrpc(cluster_name=PICKER, skip_envoy_headers=True))


@cache
def _lua(file: Path) -> Lua:
    source = file.read_text(encoding="utf-8")
    return Lua(default_source_code=DataSource(inline_string=source), clear_route_cache=False)


def _filter(name: str, message: Message) -> HttpFilter:
    return HttpFilter(name=name, typed_config=packed(message))


def the_whole_request() -> ProcessingMode:
    """Ask with headers and body; of the answer nothing is told."""
    return ProcessingMode(
        request_header_mode=ProcessingModeHeaderSendMode.SEND,
        request_body_mode=ProcessingModeBodySendMode.BUFFERED,
        request_trailer_mode=ProcessingModeHeaderSendMode.SKIP,
        response_header_mode=ProcessingModeHeaderSendMode.SKIP,
        response_body_mode=ProcessingModeBodySendMode.NONE,
        response_trailer_mode=ProcessingModeHeaderSendMode.SKIP,
    )


def _ask_the_picker(picker: ir.Picker, *, along: bool) -> ExternalProcessor:
    """`along`: a filter before this one puts the body into metadata, and the picker takes it from there."""
    return ExternalProcessor(
        grpc_service=picker_service(),
        failure_mode_allow=picker.fail_open,
        status_on_error=HttpStatus(code=StatusCode.ServiceUnavailable),
        message_timeout=timedelta(seconds=picker.timeout_s),
        max_message_timeout=timedelta(seconds=picker.max_timeout_s),
        processing_mode=the_whole_request(),
        metadata_options=MetadataOptions(
            forwarding_namespaces=MetadataOptionsMetadataNamespaces(
                untyped=[dataplane.ACCESS_METADATA, *([dataplane.METADATA] if along else ())],
                typed=[dataplane.BODY_METADATA] if along else [],
            ),
            receiving_namespaces=MetadataOptionsMetadataNamespaces(
                untyped=[dataplane.ENDPOINT_METADATA, dataplane.METADATA, dataplane.NAMES_METADATA]
            ),
        ),
        mutation_rules=HeaderMutationRules(),
        stat_prefix="picker",
    )


def _ours(name: str) -> DynamicModuleFilter:
    """Run a filter of our module."""
    return DynamicModuleFilter(
        dynamic_module_config=DynamicModuleConfig(name=MODULE, do_not_close=True), filter_name=name
    )


def _unless_picked(name: str, message: Message) -> ExtensionWithMatcher:
    """Run the filter only for requests to which the picker gave no target."""
    picked = MatcherMatcherListPredicate(
        single_predicate=MatcherMatcherListPredicateSinglePredicate(
            input=xds_extension("request-headers", HttpRequestHeaderMatchInput(header_name=dataplane.TARGET)),
            value_match=XdsStringMatcher(safe_regex=XdsRegexMatcher(google_re2=XdsRegexMatcherGoogleRe2(), regex=".+")),
        )
    )
    return ExtensionWithMatcher(
        extension_config=extension(name, message),
        xds_matcher=Matcher(
            matcher_list=MatcherMatcherList(
                matchers=[
                    MatcherMatcherListFieldMatcher(
                        predicate=picked, on_match=MatcherOnMatch(action=xds_extension("skip", SkipFilter()))
                    )
                ]
            )
        ),
    )


def _read_model() -> JsonToMetadata:
    found = JsonToMetadataKeyValuePair(
        metadata_namespace=dataplane.REQUEST_METADATA, key="model", type=JsonToMetadataValueType.STRING
    )
    return JsonToMetadata(
        request_rules=JsonToMetadataMatchRules(
            rules=[JsonToMetadataRule(selectors=[JsonToMetadataSelector(key="model")], on_present=found)],
            allow_content_types_regex=RegexMatcher(regex=".*"),
            allow_empty_content_type=True,
        )
    )
