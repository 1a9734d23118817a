/* Reads the model out of the body of a request that the picker did not decide, so that Envoy can balance by itself.
 *
 * The picker's decision is a header; where there is none (it is down or slow, and the gateway fails open), the body is
 * waited for, and its top-level "model" becomes the header by which the routes are an exact map. Envoy's own filters can
 * do this as well (json_to_metadata and envoy/model.lua, used where no module can be loaded), but cost every request
 * some 15 us for being there.
 *
 * Header read: x-matrixinfer-target. Header written: x-matrixinfer-model.
 */
#include "module.h"

enum { LONGEST_NAME = 1024 };

static int hex(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* The code unit of the four digits at `at`; -1 if they are none. */
static int32_t unit(const char *at, const char *end) {
  int32_t value = 0;
  if (end - at < 4) return -1;
  for (int n = 0; n < 4; n++) {
    int digit = hex(at[n]);
    if (digit < 0) return -1;
    value = value << 4 | digit;
  }
  return value;
}

static size_t utf8(uint32_t code, char *to) {
  if (code < 0x80) return to[0] = (char)code, 1;
  if (code < 0x800) return to[0] = (char)(0xc0 | code >> 6), to[1] = (char)(0x80 | (code & 0x3f)), 2;
  if (code < 0x10000)
    return to[0] = (char)(0xe0 | code >> 12), to[1] = (char)(0x80 | (code >> 6 & 0x3f)), to[2] = (char)(0x80 | (code & 0x3f)), 3;
  to[0] = (char)(0xf0 | code >> 18), to[1] = (char)(0x80 | (code >> 12 & 0x3f));
  return to[2] = (char)(0x80 | (code >> 6 & 0x3f)), to[3] = (char)(0x80 | (code & 0x3f)), 4;
}

/* Decodes the JSON string whose opening quote stands before `from`; returns what follows its closing quote, NULL if it is
 * none. `length` becomes 0 if the string is longer than `room` or holds what has no place in a header. */
static const char *string(const char *from, const char *end, char *to, size_t room, size_t *length) {
  size_t used = 0;
  bool good = true;
  for (; from < end && *from != '"'; from++) {
    char piece[4] = {*from};
    size_t size = 1;
    if (*from == '\\') {
      if (++from == end) return NULL;
      if (*from == 'u') {
        int32_t code = unit(from + 1, end);
        if (code < 0) return NULL;
        from += 4;
        if (code >= 0xd800 && code < 0xdc00 && end - from > 6 && from[1] == '\\' && from[2] == 'u') {
          int32_t low = unit(from + 3, end);
          if (low >= 0xdc00 && low < 0xe000) {
            code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
            from += 6;
          }
        }
        if (code >= 0xd800 && code < 0xe000) good = false; /* half a character */
        else size = utf8((uint32_t)code, piece);
      } else if (strchr("bfnrt", *from) != NULL && *from) {
        good = false;
      } else {
        piece[0] = *from;
      }
    }
    if ((unsigned char)piece[0] < ' ' || piece[0] == 0x7f) good = false;
    if (used + size > room) good = false;
    if (!good) continue;
    memcpy(to + used, piece, size);
    used += size;
  }
  if (from >= end) return NULL;
  *length = good ? used : 0;
  return from + 1;
}

/* A key that occurs twice counts with its last value, as in the engines. */
size_t model_of(const char *from, const char *end, char *model, size_t room) {
  char key[8];
  size_t length, found = 0;
  const char *at = spaces(from, end);
  if (at == end || *at != '{') return 0;
  do {
    at = spaces(at + 1, end);
    if (at == end || *at != '"') return 0;
    at = string(at + 1, end, key, sizeof key, &length);
    if (at == NULL) return 0;
    at = spaces(at, end);
    if (at == end || *at != ':') return 0;
    at = spaces(at + 1, end);
    bool wanted = same((text){key, length}, TEXT("model"));
    if (wanted) found = 0;
    if (wanted && at < end && *at == '"' && string(at + 1, end, model, room, &found) == NULL) return 0;
    at = value_end(at, end);
    if (at == NULL || (at = spaces(at, end)) == end) return 0;
  } while (*at == ',');
  return *at == '}' ? found : 0;
}

bool model_wanted(void *envoy) {
  text target;
  return !header(envoy, REQUEST_HEADER, TEXT("x-matrixinfer-target"), &target);
}

body body_of(void *envoy, int which) {
  body found = {NULL, envoy_dynamic_module_callback_http_get_body_chunks_size(envoy, which), 0};
  if (found.count == 0 || (found.chunks = malloc(found.count * sizeof(text))) == NULL ||
      !envoy_dynamic_module_callback_http_get_body_chunks(envoy, which, found.chunks))
    found.count = 0;
  for (size_t n = 0; n < found.count; n++) found.length += found.chunks[n].length;
  return found;
}

char *body_copied(char *to, body from) {
  for (size_t n = 0; n < from.count; to += from.chunks[n].length, n++)
    if (from.chunks[n].length) memcpy(to, from.chunks[n].ptr, from.chunks[n].length);
  return to;
}

void model_read(void *envoy) {
  body kept = body_of(envoy, BUFFERED_REQUEST_BODY), last = body_of(envoy, RECEIVED_REQUEST_BODY);
  /* What another filter has kept comes as one piece, which Envoy then calls both. */
  if (kept.count && last.count && kept.chunks[0].ptr == last.chunks[0].ptr) last.count = last.length = 0;
  char *all = malloc(kept.length + last.length + 1), model[LONGEST_NAME];
  if (all != NULL) {
    char *end = body_copied(body_copied(all, kept), last);
    size_t length = model_of(all, end, model, sizeof model);
    if (length && envoy_dynamic_module_callback_http_set_header(envoy, REQUEST_HEADER, TEXT("x-matrixinfer-model"),
                                                                (text){model, length}))
      envoy_dynamic_module_callback_http_clear_route_cache(envoy);
  }
  free(all);
  free(kept.chunks);
  free(last.chunks);
}
