/* Puts the name into the body of a try by which its endpoint knows the model.
 *
 * The picker writes the name of the first target. A request that fails over to another target, or of which a copy goes
 * to one, may need another name there. The picker tells where the name stands in the body that it sent, and the names of
 * those who know the model by another one. This filter runs behind the router, once for every try and for every copy.
 *
 * Metadata read:  matrixinfer.served   host: the endpoint of this try
 *                 matrixinfer.names    span: "start:length" of the name's JSON string; by endpoint: the name as JSON
 * Header read and taken out, of copies, which have no metadata: x-matrixinfer-rename, "start:length name".
 */
#include "module.h"

enum { LONGEST_NAME = 2048 }; /* 256 characters are 1538 bytes of JSON at most */

struct rename_plan {
  size_t start, length, size;
  char name[LONGEST_NAME];
};

/* Reads digits; NULL if there are none, or too many for a body. */
static const char *digits(const char *from, const char *end, size_t *value) {
  const char *at = from;
  for (*value = 0; at < end && at - from < 10 && *at >= '0' && *at <= '9'; at++) *value = *value * 10 + (size_t)(*at - '0');
  return at > from ? at : NULL;
}

/* What follows "start:length"; NULL if it is something else. */
static const char *span(text from, rename_plan *plan) {
  const char *end = from.ptr + from.length, *at = digits(from.ptr, end, &plan->start);
  if (at == NULL || at == end || *at != ':') return NULL;
  return digits(at + 1, end, &plan->length);
}

static rename_plan *planned(text where, text name) {
  rename_plan *plan = malloc(sizeof *plan);
  if (plan == NULL) return NULL;
  plan->size = name.length;
  if (name.length < 2 || name.length > LONGEST_NAME || name.ptr[0] != '"' || span(where, plan) == NULL) {
    free(plan);
    return NULL;
  }
  memcpy(plan->name, name.ptr, name.length);
  return plan;
}

rename_plan *rename_planned(void *envoy) {
  text value, where, name;
  if (header(envoy, REQUEST_HEADER, TEXT("x-matrixinfer-rename"), &value)) {
    const char *space = memchr(value.ptr, ' ', value.length);
    rename_plan *plan = NULL;
    if (space != NULL)
      plan = planned((text){value.ptr, (size_t)(space - value.ptr)},
                     (text){space + 1, (size_t)(value.ptr + value.length - space - 1)});
    envoy_dynamic_module_callback_http_set_header(envoy, REQUEST_HEADER, TEXT("x-matrixinfer-rename"), (text){NULL, 0});
    return plan;
  }
  if (!envoy_dynamic_module_callback_http_get_metadata_string(envoy, DYNAMIC, TEXT("matrixinfer.names"), TEXT("span"), &where) ||
      !envoy_dynamic_module_callback_http_get_metadata_string(envoy, DYNAMIC, TEXT("matrixinfer.served"), TEXT("host"), &value) ||
      !envoy_dynamic_module_callback_http_get_metadata_string(envoy, DYNAMIC, TEXT("matrixinfer.names"), value, &name))
    return NULL;
  return planned(where, name);
}

void rename_body(void *envoy, const rename_plan *self) {
  body kept = body_of(envoy, BUFFERED_REQUEST_BODY), last = body_of(envoy, RECEIVED_REQUEST_BODY);
  if (kept.count && last.count && kept.chunks[0].ptr == last.chunks[0].ptr) kept.count = kept.length = 0;
  size_t before = kept.length + last.length, size = before - self->length + self->size;
  char *all = malloc(before + 1);
  if (all != NULL && self->length <= before && self->start <= before - self->length) {
    char number[24];
    char *after = all + self->start + self->length, *end = body_copied(body_copied(all, kept), last);
    int digits = snprintf(number, sizeof number, "%zu", size);
    int where = last.count ? RECEIVED_REQUEST_BODY : BUFFERED_REQUEST_BODY; /* nothing is received when trailers end it */
    if (kept.length) envoy_dynamic_module_callback_http_drain_body(envoy, BUFFERED_REQUEST_BODY, kept.length);
    if (last.length) envoy_dynamic_module_callback_http_drain_body(envoy, RECEIVED_REQUEST_BODY, last.length);
    envoy_dynamic_module_callback_http_append_body(envoy, where, (text){all, self->start});
    envoy_dynamic_module_callback_http_append_body(envoy, where, (text){self->name, self->size});
    envoy_dynamic_module_callback_http_append_body(envoy, where, (text){after, (size_t)(end - after)});
    envoy_dynamic_module_callback_http_set_header(envoy, REQUEST_HEADER, TEXT("content-length"), (text){number, (size_t)digits});
  }
  free(all);
  free(kept.chunks);
  free(last.chunks);
}
