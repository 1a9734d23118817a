/* What the filters of the module stand on: the part of Envoy's dynamic module ABI (v0.2.0) that they use, and text.
 *
 * module.c has the events that Envoy calls, and gives them to the filter that the configuration names: `response` hands the
 * picker the body along with the headers (along.c) and watches the answer (response.c), `model` stands behind the picker and
 * reads the model of requests that it did not decide (model.c), `rename` (rename.c) puts the name into the body of a try by
 * which its endpoint knows the model.
 */
#ifndef MATRIXINFER_MODULE_H
#define MATRIXINFER_MODULE_H

#define _GNU_SOURCE
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct {
  const char *ptr;
  size_t length;
} text;

#define TEXT(literal) ((text){literal, sizeof(literal) - 1})

/* ---- Envoy's side of the ABI */
enum { REQUEST_HEADER = 0, RESPONSE_HEADER = 2 };
enum { RECEIVED_REQUEST_BODY = 0, BUFFERED_REQUEST_BODY = 1, RECEIVED_RESPONSE_BODY = 2, BUFFERED_RESPONSE_BODY = 3 };
enum { DYNAMIC = 0 };
enum { CONTINUE = 0, WAIT = 1 }; /* WAIT: for the body, or for the rest of it, which Envoy keeps */

bool envoy_dynamic_module_callback_http_get_header(void *envoy, int type, text key, text *value, size_t index,
                                                   size_t *count);
bool envoy_dynamic_module_callback_http_set_header(void *envoy, int type, text key, text value);
void envoy_dynamic_module_callback_http_clear_route_cache(void *envoy);
bool envoy_dynamic_module_callback_http_get_metadata_string(void *envoy, int source, text space, text key, text *value);
void envoy_dynamic_module_callback_http_set_dynamic_metadata_number(void *envoy, text space, text key, double value);
void envoy_dynamic_module_callback_http_set_dynamic_metadata_string(void *envoy, text space, text key, text value);
bool envoy_dynamic_module_callback_http_set_dynamic_typed_metadata(void *envoy, text space, text any);
size_t envoy_dynamic_module_callback_http_get_body_chunks_size(void *envoy, int body);
bool envoy_dynamic_module_callback_http_get_body_chunks(void *envoy, int body, text *chunks);
bool envoy_dynamic_module_callback_http_drain_body(void *envoy, int body, size_t bytes);
bool envoy_dynamic_module_callback_http_append_body(void *envoy, int body, text data);
void envoy_dynamic_module_callback_http_send_response_data(void *envoy, text data, bool end);
void envoy_dynamic_module_callback_http_send_response_trailers(void *envoy, const void *headers, size_t count);

static inline bool header(void *envoy, int type, text name, text *value) {
  return envoy_dynamic_module_callback_http_get_header(envoy, type, name, value, 0, NULL) && value->ptr != NULL;
}

/* ---- text */
static inline const char *spaces(const char *from, const char *end) {
  while (from < end && (*from == ' ' || *from == '\t' || *from == '\n' || *from == '\r')) from++;
  return from;
}

static inline bool starts(text value, text prefix) {
  return value.length >= prefix.length && memcmp(value.ptr, prefix.ptr, prefix.length) == 0;
}

static inline bool same(text one, text other) { return one.length == other.length && starts(one, other); }

/* What follows the JSON value that begins at `from`; NULL if it is not complete. */
static inline const char *value_end(const char *from, const char *end) {
  int depth = 0;
  bool quoted = false;
  for (; from < end; from++) {
    if (quoted) {
      if (*from == '\\') from++;
      else if (*from == '"') quoted = false;
      if (!quoted && depth == 0) return from + 1;
    } else if (*from == '"') {
      quoted = true;
    } else if (*from == '{' || *from == '[') {
      depth++;
    } else if (*from == '}' || *from == ']') {
      if (depth == 0) return from;
      if (--depth == 0) return from + 1;
    } else if (depth == 0 && (*from == ',' || *from == ' ' || *from == '\n' || *from == '\r' || *from == '\t')) {
      return from;
    }
  }
  return NULL;
}

/* ---- between our files; Envoy has no business with these names */
#pragma GCC visibility push(hidden)

/* ---- response.c */
typedef struct response response;
response *response_new(void);
void response_destroy(response *self);
void response_request(void *envoy, response *self);
void response_headers(void *envoy, response *self, bool end);
void response_body(void *envoy, response *self, bool end);
void response_over(void *envoy, response *self); /* trailers have come */
bool response_last(void *envoy, int where); /* for `model`: whether the trailers are ours; puts the last event before them */
void response_broken(void *envoy, response *self, text details);
void response_complete(void *envoy, response *self);

/* ---- along.c */
typedef struct {
  bool wanted, told;
} along;
void along_begin(void);
bool along_wanted(void *envoy); /* whether to wait for the body */
void along_tell(void *envoy, along *self);
void along_over(void *envoy, along *self);
void along_answered(void *envoy);

/* ---- model.c */
bool model_wanted(void *envoy);
void model_read(void *envoy);
typedef struct {
  text *chunks;
  size_t count, length;
} body;
/* The chunks of a request's body, to be freed, and their bytes; what another filter has kept may come as both. */
body body_of(void *envoy, int which);
char *body_copied(char *to, body from);
/* Puts the string that the object `from`..`end` has at its key "model" into `model`; returns its length, 0 for none. */
size_t model_of(const char *from, const char *end, char *model, size_t room);

/* ---- rename.c */
typedef struct rename_plan rename_plan;
rename_plan *rename_planned(void *envoy); /* NULL: the body goes on as it is */
void rename_body(void *envoy, const rename_plan *self);

#pragma GCC visibility pop

#endif
