/* The events that Envoy calls, given to the filter that the configuration names.
 *
 * Envoy loads it as libmatrixinfer.so from ENVOY_DYNAMIC_MODULES_SEARCH_PATH. A stream of the `model` filter has one
 * word of state and no hook on the answer.
 */
#include "module.h"

typedef enum { RESPONSE, MODEL } kind;

typedef struct {
  kind kind;
  bool undecided;  /* of a `model` filter: the picker was silent, and the body is wanted */
  response *answer; /* of a `response` filter */
} filter;

static const kind KINDS[] = {RESPONSE, MODEL}; /* a configuration is no more than its kind */

const char *envoy_dynamic_module_on_program_init(void) { return "v0.2.0"; }

/* NULL means a bad configuration. */
const void *envoy_dynamic_module_on_http_filter_config_new(void *envoy, text name, text config) {
  (void)envoy, (void)config;
  if (same(name, TEXT("response"))) return &KINDS[RESPONSE];
  if (same(name, TEXT("model"))) return &KINDS[MODEL];
  return NULL;
}

void envoy_dynamic_module_on_http_filter_config_destroy(const void *config) { (void)config; }

void envoy_dynamic_module_on_http_filter_destroy(filter *self) {
  if (self == NULL) return;
  if (self->answer != NULL) response_destroy(self->answer);
  free(self);
}

const void *envoy_dynamic_module_on_http_filter_new(const kind *config, void *envoy) {
  (void)envoy;
  filter *self = calloc(1, sizeof(filter));
  if (self == NULL) return NULL;
  self->kind = *config;
  if (self->kind == RESPONSE && (self->answer = response_new()) == NULL) {
    free(self);
    return NULL;
  }
  return self;
}

/* ---- the request */

int envoy_dynamic_module_on_http_filter_request_headers(void *envoy, filter *self, bool end) {
  if (self->kind == RESPONSE) {
    response_request(envoy, self->answer);
    return CONTINUE;
  }
  self->undecided = !end && model_wanted(envoy);
  return self->undecided ? WAIT : CONTINUE;
}

int envoy_dynamic_module_on_http_filter_request_body(void *envoy, filter *self, bool end) {
  if (!self->undecided) return CONTINUE;
  if (!end) return WAIT;
  model_read(envoy);
  return CONTINUE;
}

int envoy_dynamic_module_on_http_filter_request_trailers(void *envoy, filter *self) {
  if (self->undecided) model_read(envoy);
  return CONTINUE;
}

/* ---- the answer */

int envoy_dynamic_module_on_http_filter_response_headers(void *envoy, filter *self, bool end) {
  if (self->answer != NULL) response_headers(envoy, self->answer, end);
  return CONTINUE;
}

int envoy_dynamic_module_on_http_filter_response_body(void *envoy, filter *self, bool end) {
  if (self->answer != NULL) response_body(envoy, self->answer, end);
  return CONTINUE;
}

int envoy_dynamic_module_on_http_filter_response_trailers(void *envoy, filter *self) {
  (void)envoy;
  if (self->answer != NULL) response_over(self->answer);
  return CONTINUE;
}

int envoy_dynamic_module_on_http_filter_local_reply(void *envoy, filter *self, uint32_t code, text details,
                                                    bool reset_imminent) {
  (void)code, (void)reset_imminent;
  if (self->answer != NULL) response_broken(envoy, self->answer, details);
  return CONTINUE;
}

void envoy_dynamic_module_on_http_filter_stream_complete(void *envoy, filter *self) {
  if (self->answer != NULL) response_complete(envoy, self->answer);
}

/* Events that Envoy wants a symbol for and that this module has no use for; their arguments are never looked at. */
#define UNUSED(event) \
  void envoy_dynamic_module_on_http_filter_##event(void) {}
UNUSED(scheduled)
UNUSED(http_callout_done)
UNUSED(http_stream_headers)
UNUSED(http_stream_data)
UNUSED(http_stream_trailers)
UNUSED(http_stream_complete)
UNUSED(http_stream_reset)
UNUSED(downstream_above_write_buffer_high_watermark)
UNUSED(downstream_below_write_buffer_low_watermark)
