/* The events that Envoy calls, given to the filter that the configuration names.
 *
 * Envoy loads it as libmatrixinfer.so from ENVOY_DYNAMIC_MODULES_SEARCH_PATH. Of an answer `model` sees the last event
 * only, and `rename` nothing; it stands behind the router and sees every try as a request of its own.
 */
#include "module.h"

typedef enum { RESPONSE, MODEL, RENAME } kind;

typedef struct {
  kind kind;
  bool undecided;  /* of a `model` filter: the picker was silent, and the body is wanted */
  rename_plan *plan; /* of a `rename` filter: NULL if there is nothing to do */
  along along;      /* of a `response` filter, as is what follows */
  response *answer;
} filter;

static const kind KINDS[] = {RESPONSE, MODEL, RENAME}; /* a configuration is no more than its kind */

const char *envoy_dynamic_module_on_program_init(void) {
  along_begin();
  return "v0.2.0";
}

/* NULL means a bad configuration. */
const void *envoy_dynamic_module_on_http_filter_config_new(void *envoy, text name, text config) {
  (void)envoy, (void)config;
  if (same(name, TEXT("response"))) return &KINDS[RESPONSE];
  if (same(name, TEXT("model"))) return &KINDS[MODEL];
  if (same(name, TEXT("rename"))) return &KINDS[RENAME];
  return NULL;
}

void envoy_dynamic_module_on_http_filter_config_destroy(const void *config) { (void)config; }

void envoy_dynamic_module_on_http_filter_destroy(filter *self) {
  if (self == NULL) return;
  if (self->answer != NULL) response_destroy(self->answer);
  free(self->plan);
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
    self->along.wanted = !end && along_wanted(envoy);
    return self->along.wanted ? WAIT : CONTINUE;
  }
  if (self->kind == RENAME) {
    self->plan = rename_planned(envoy);
    return self->plan != NULL && !end ? WAIT : CONTINUE;
  }
  along_answered(envoy);
  self->undecided = !end && model_wanted(envoy);
  return self->undecided ? WAIT : CONTINUE;
}

int envoy_dynamic_module_on_http_filter_request_body(void *envoy, filter *self, bool end) {
  if (!self->along.wanted && !self->undecided && self->plan == NULL) return CONTINUE;
  if (!end) return WAIT;
  if (self->along.wanted) along_tell(envoy, &self->along);
  else if (self->plan != NULL) rename_body(envoy, self->plan);
  else model_read(envoy);
  return CONTINUE;
}

int envoy_dynamic_module_on_http_filter_request_trailers(void *envoy, filter *self) {
  if (self->along.wanted) along_tell(envoy, &self->along);
  else if (self->plan != NULL) rename_body(envoy, self->plan);
  else if (self->undecided) model_read(envoy);
  return CONTINUE;
}

/* ---- the answer */

int envoy_dynamic_module_on_http_filter_response_headers(void *envoy, filter *self, bool end) {
  if (self->answer == NULL) return CONTINUE;
  response_headers(envoy, self->answer, end);
  along_over(envoy, &self->along);
  return CONTINUE;
}

int envoy_dynamic_module_on_http_filter_response_body(void *envoy, filter *self, bool end) {
  if (self->answer != NULL) response_body(envoy, self->answer, end);
  else if (self->kind == MODEL) response_last(envoy, RECEIVED_RESPONSE_BODY);
  return CONTINUE;
}

int envoy_dynamic_module_on_http_filter_response_trailers(void *envoy, filter *self) {
  if (self->kind == MODEL) return response_last(envoy, BUFFERED_RESPONSE_BODY) ? WAIT : CONTINUE; /* and no further */
  if (self->answer != NULL) response_over(envoy, self->answer);
  return CONTINUE;
}

int envoy_dynamic_module_on_http_filter_local_reply(void *envoy, filter *self, uint32_t code, text details,
                                                    bool reset_imminent) {
  (void)code, (void)reset_imminent;
  if (self->answer != NULL) response_broken(envoy, self->answer, details);
  return CONTINUE;
}

void envoy_dynamic_module_on_http_filter_stream_complete(void *envoy, filter *self) {
  if (self->answer == NULL) return;
  response_complete(envoy, self->answer);
  along_over(envoy, &self->along);
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
