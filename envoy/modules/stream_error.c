/* Ends a broken event stream with an error event.
 *
 * When an engine dies after its response has begun, Envoy can only reset the client's stream: no filter that ships with
 * it is asked before. A dynamic module is: `local_reply` is called first, with the reason, and may still send. This one
 * sends a last event that OpenAI and Anthropic clients raise as an API error; Envoy then ends the stream as before.
 *
 * Envoy loads it as libstream_error.so from ENVOY_DYNAMIC_MODULES_SEARCH_PATH (filter name: stream_error). The
 * declarations are those of Envoy's dynamic module ABI (v0.2.0) that it uses.
 * One small allocation a stream, nothing per chunk but a flag; no state outside the stream, so no locks.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
  const char *ptr;
  size_t length;
} buffer;

enum { REQUEST_HEADER = 0, RESPONSE_HEADER = 2 };
enum { CONTINUE = 0 };

bool envoy_dynamic_module_callback_http_get_header(void *envoy, int type, buffer key, buffer *value, size_t index,
                                                   size_t *count);
void envoy_dynamic_module_callback_http_send_response_data(void *envoy, buffer data, bool end);

typedef struct {
  bool anthropic; /* the client speaks /v1/messages */
  bool open;      /* an event stream has begun and not ended */
} stream;

static bool header(void *envoy, int type, const char *name, buffer *value) {
  buffer key = {name, strlen(name)};
  return envoy_dynamic_module_callback_http_get_header(envoy, type, key, value, 0, NULL) && value->ptr != NULL;
}

static bool starts(buffer value, const char *prefix) {
  size_t length = strlen(prefix);
  return value.length >= length && memcmp(value.ptr, prefix, length) == 0;
}

const char *envoy_dynamic_module_on_program_init(void) { return "v0.2.0"; }

const void *envoy_dynamic_module_on_http_filter_config_new(void *envoy, buffer name, buffer config) {
  static const char only = 0; /* nothing to configure: any address but NULL, which would mean a bad configuration */
  (void)envoy, (void)name, (void)config;
  return &only;
}

void envoy_dynamic_module_on_http_filter_config_destroy(const void *config) { (void)config; }

const void *envoy_dynamic_module_on_http_filter_new(const void *config, void *envoy) {
  (void)config, (void)envoy;
  return calloc(1, sizeof(stream));
}

void envoy_dynamic_module_on_http_filter_destroy(stream *self) { free(self); }

int envoy_dynamic_module_on_http_filter_request_headers(void *envoy, stream *self, bool end) {
  buffer path;
  (void)end;
  self->anthropic = header(envoy, REQUEST_HEADER, ":path", &path) && starts(path, "/v1/messages");
  return CONTINUE;
}

int envoy_dynamic_module_on_http_filter_request_body(void *envoy, stream *self, bool end) {
  (void)envoy, (void)self, (void)end;
  return CONTINUE;
}

int envoy_dynamic_module_on_http_filter_request_trailers(void *envoy, stream *self) {
  (void)envoy, (void)self;
  return CONTINUE;
}

int envoy_dynamic_module_on_http_filter_response_headers(void *envoy, stream *self, bool end) {
  buffer type;
  self->open = !end && header(envoy, RESPONSE_HEADER, "content-type", &type) && starts(type, "text/event-stream");
  return CONTINUE;
}

int envoy_dynamic_module_on_http_filter_response_body(void *envoy, stream *self, bool end) {
  (void)envoy;
  if (end) self->open = false;
  return CONTINUE;
}

int envoy_dynamic_module_on_http_filter_response_trailers(void *envoy, stream *self) {
  (void)envoy;
  self->open = false;
  return CONTINUE;
}

/* Events that Envoy wants a symbol for and that this module has no use for; their arguments are never looked at. */
#define UNUSED(event) \
  void envoy_dynamic_module_on_http_filter_##event(void) {}
UNUSED(stream_complete)
UNUSED(scheduled)
UNUSED(http_callout_done)
UNUSED(http_stream_headers)
UNUSED(http_stream_data)
UNUSED(http_stream_trailers)
UNUSED(http_stream_complete)
UNUSED(http_stream_reset)
UNUSED(downstream_above_write_buffer_high_watermark)
UNUSED(downstream_below_write_buffer_low_watermark)

/* `details` is Envoy's response code detail, e.g. upstream_reset_after_response_started{connection_termination}. */
int envoy_dynamic_module_on_http_filter_local_reply(void *envoy, stream *self, uint32_t code, buffer details,
                                                    bool reset_imminent) {
  (void)code, (void)reset_imminent;
  if (self->open) {
    char event[512], why[128];
    size_t length = 0;
    for (size_t i = 0; i < details.length && length < sizeof why - 1; i++) /* only what JSON needs no escape for */
      if (details.ptr[i] >= ' ' && details.ptr[i] != '"' && details.ptr[i] != '\\') why[length++] = details.ptr[i];
    why[length] = 0;
    const char *message = "The engine stopped before the answer was complete; send the request again.";
    int size = self->anthropic
                   ? snprintf(event, sizeof event,
                              "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"api_error\","
                              "\"message\":\"%s (%s)\"}}\n\n",
                              message, why)
                   : snprintf(event, sizeof event,
                              "data: {\"error\":{\"message\":\"%s (%s)\",\"type\":\"upstream_error\",\"param\":null,"
                              "\"code\":\"stream_interrupted\"}}\n\n",
                              message, why);
    self->open = false; /* never twice; and the end is Envoy's to send */
    envoy_dynamic_module_callback_http_send_response_data(envoy, (buffer){event, (size_t)size}, false);
  }
  return CONTINUE;
}
