/* Envoy as the module sees it, without Envoy: the callbacks, and one stream at a time whose events come from stdin.
 *
 * It is linked with the module's sources and sanitizers. A script builds a stream and lets things happen to it; the answer
 * is what came out at either end of the filter chain and what the filters wrote. As in Envoy 1.40:
 *
 * - A filter that waits stops the filters behind it; the body it waits for is kept, in one buffer for the whole chain. When
 *   it goes on, the others get that buffer as the body that arrives, so that "kept" and "received" are one.
 * - With the last piece of a body the filter finds all of it in what is kept, and nothing received.
 * - No hook of a filter is called while one of it runs. What a filter sends goes through all others.
 * - In a trailers hook there is no received body, and adding to a kept one that is not there sends it on at once,
 *   unless the filter has stopped the others.
 *
 * It is stricter where a fault would hide: slices and values have their exact size and no NUL, and move whenever Envoy may
 * move them. Allocations of the module are counted, and one of them may fail.
 *
 * A script: u32 length, commands. A command: its letter, u8 number of arguments, arguments (u32 length, bytes). What comes
 * back: u32 length, events (u8 number of words, words as above). All numbers are little-endian.
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
} text;

enum { CONTINUE = 0, WAIT = 1, REQUEST = 0, RESPONSE = 2, MOST_FILTERS = 8, MOST_ARGUMENTS = 255 };

/* ---- allocations: the linker gives ours to the module (--wrap); what is written here uses the real ones */
void *__real_malloc(size_t);
void *__real_calloc(size_t, size_t);
void *__real_realloc(void *, size_t);
void __real_free(void *);

static long held, to_failure = -1;

static bool fails(void) { return to_failure >= 0 && to_failure-- == 0; }

void *__wrap_malloc(size_t size) {
  if (fails()) return NULL;
  held++;
  return __real_malloc(size);
}

void *__wrap_calloc(size_t count, size_t size) {
  if (fails()) return NULL;
  held++;
  return __real_calloc(count, size);
}

void *__wrap_realloc(void *old, size_t size) {
  if (fails()) return NULL;
  if (old == NULL) held++;
  return __real_realloc(old, size);
}

void __wrap_free(void *old) {
  if (old != NULL) held--;
  __real_free(old);
}

static void *room(size_t size) {
  void *found = __real_malloc(size ? size : 1);
  if (found == NULL) exit(9);
  return found;
}

static text copied(text from) {
  char *to = room(from.length);
  if (from.length) memcpy(to, from.ptr, from.length);
  return (text){to, from.length};
}

static void dropped(text old) { __real_free((char *)old.ptr); }

static bool same(text one, text other) {
  return one.length == other.length && (one.length == 0 || memcmp(one.ptr, other.ptr, one.length) == 0);
}

static text named(const char *name) { return (text){name, strlen(name)}; }

/* ---- what comes back */
static char *told;
static size_t told_length, told_room;

static void put(const void *from, size_t length) {
  if (told_length + length > told_room) {
    told_room = 2 * (told_length + length);
    if ((told = __real_realloc(told, told_room)) == NULL) exit(9);
  }
  if (length) memcpy(told + told_length, from, length);
  told_length += length;
}

static void put_text(text value) {
  uint32_t length = (uint32_t)value.length;
  put(&length, 4);
  put(value.ptr, value.length);
}

static void tell(const char *name, int count, const text *words) {
  uint8_t all = (uint8_t)(count + 1);
  put(&all, 1);
  put_text(named(name));
  for (int n = 0; n < count; n++) put_text(words[n]);
}

#define TELL(name, ...) tell(name, sizeof((text[]){__VA_ARGS__}) / sizeof(text), (text[]){__VA_ARGS__})

/* ---- buffers */
typedef struct {
  text *slices;
  size_t count, room;
} buffer;

static void buffer_add(buffer *to, text piece) {
  if (piece.length == 0) return;
  if (to->count == to->room) {
    to->room = 2 * to->room + 4;
    if ((to->slices = __real_realloc(to->slices, to->room * sizeof(text))) == NULL) exit(9);
  }
  to->slices[to->count++] = copied(piece);
}

static void buffer_drain(buffer *from, size_t bytes) {
  size_t gone = 0;
  while (gone < from->count && bytes >= from->slices[gone].length) {
    bytes -= from->slices[gone].length;
    dropped(from->slices[gone++]);
  }
  if (gone) memmove(from->slices, from->slices + gone, (from->count -= gone) * sizeof(text));
  if (bytes && from->count) {
    text whole = from->slices[0];
    from->slices[0] = copied((text){whole.ptr + bytes, whole.length - bytes});
    dropped(whole);
  }
}

static void buffer_move(buffer *to, buffer *from) {
  if (to == from) return;
  for (size_t n = 0; n < from->count; n++) buffer_add(to, from->slices[n]);
  buffer_drain(from, SIZE_MAX);
}

static void buffer_free(buffer *old) {
  buffer_drain(old, SIZE_MAX);
  __real_free(old->slices);
  *old = (buffer){0};
}

static text buffer_whole(const buffer *from) { /* to be dropped */
  size_t length = 0;
  for (size_t n = 0; n < from->count; n++) length += from->slices[n].length;
  char *all = room(length), *to = all;
  for (size_t n = 0; n < from->count; to += from->slices[n].length, n++) memcpy(to, from->slices[n].ptr, from->slices[n].length);
  return (text){all, length};
}

/* ---- the stream */
typedef struct entry {
  text space, key, value; /* of a header, its side stands in `side` */
  bool number;
  int side;
  struct entry *next;
} entry;

typedef struct {
  /* One of the module's, or one of Envoy's: it waits for the whole body of a request, or takes the body of an answer and gives
   * nothing of it back, or the trailers neither. */
  bool keeps, holds, stops;
  const void *config;
  void *module;
  bool busy, stopped, owes_headers;
} filter;

static struct {
  filter chain[MOST_FILTERS];
  int count;
  bool answered;
  entry *headers, *metadata;
  buffer kept_request;
  bool keeps_request; /* it exists, if only empty; of an answer no filter keeps anything */
  buffer *received_request, *received_response;
} stream;

/* ---- the module's side of the ABI */
const char *envoy_dynamic_module_on_program_init(void);
const void *envoy_dynamic_module_on_http_filter_config_new(void *envoy, text name, text config);
void envoy_dynamic_module_on_http_filter_config_destroy(const void *config);
void *envoy_dynamic_module_on_http_filter_new(const void *config, void *envoy);
void envoy_dynamic_module_on_http_filter_destroy(void *module);
int envoy_dynamic_module_on_http_filter_request_headers(void *envoy, void *module, bool end);
int envoy_dynamic_module_on_http_filter_request_body(void *envoy, void *module, bool end);
int envoy_dynamic_module_on_http_filter_request_trailers(void *envoy, void *module);
int envoy_dynamic_module_on_http_filter_response_headers(void *envoy, void *module, bool end);
int envoy_dynamic_module_on_http_filter_response_body(void *envoy, void *module, bool end);
int envoy_dynamic_module_on_http_filter_response_trailers(void *envoy, void *module);
int envoy_dynamic_module_on_http_filter_local_reply(void *envoy, void *module, uint32_t code, text details, bool reset);
void envoy_dynamic_module_on_http_filter_stream_complete(void *envoy, void *module);
void envoy_dynamic_module_on_http_filter_downstream_above_write_buffer_high_watermark(void *envoy, void *module);
void envoy_dynamic_module_on_http_filter_downstream_below_write_buffer_low_watermark(void *envoy, void *module);

/* ---- headers and metadata */
static entry **header_at(int side, text key) {
  entry **at = &stream.headers;
  while (*at != NULL && !((*at)->side == side && same((*at)->key, key))) at = &(*at)->next;
  return at;
}

static entry **metadata_at(text space, text key) {
  entry **at = &stream.metadata;
  while (*at != NULL && !(same((*at)->space, space) && same((*at)->key, key))) at = &(*at)->next;
  return at;
}

static void entry_write(entry **at, entry made) {
  if (*at == NULL) {
    *at = room(sizeof(entry));
    **at = (entry){copied(made.space), copied(made.key), copied(made.value), made.number, made.side, NULL};
    return;
  }
  text old = (*at)->value;
  (*at)->value = copied(made.value);
  (*at)->number = made.number;
  dropped(old);
}

static void entry_remove(entry **at) {
  entry *old = *at;
  *at = old->next;
  dropped(old->space), dropped(old->key), dropped(old->value);
  __real_free(old);
}

static bool has_headers(int side) { return side == REQUEST || (side == RESPONSE && stream.answered); }

bool envoy_dynamic_module_callback_http_get_header(void *envoy, int side, text key, text *value, size_t index, size_t *count) {
  (void)envoy;
  entry *found = has_headers(side) ? *header_at(side, key) : NULL;
  if (count != NULL) *count = found != NULL;
  *value = found != NULL && index == 0 ? found->value : (text){NULL, 0};
  return value->ptr != NULL;
}

bool envoy_dynamic_module_callback_http_set_header(void *envoy, int side, text key, text value) {
  (void)envoy;
  if (!has_headers(side)) return false;
  entry **at = header_at(side, key);
  if (value.ptr != NULL && value.length != 0) entry_write(at, (entry){.key = key, .value = value, .side = side});
  else if (*at != NULL) entry_remove(at);
  return true;
}

void envoy_dynamic_module_callback_http_clear_route_cache(void *envoy) {
  (void)envoy;
  tell("route cleared", 0, NULL);
}

bool envoy_dynamic_module_callback_http_get_metadata_string(void *envoy, int source, text space, text key, text *value) {
  (void)envoy;
  entry *found = source == 0 ? *metadata_at(space, key) : NULL;
  if (found == NULL || found->number) return false;
  *value = found->value;
  return true;
}

void envoy_dynamic_module_callback_http_set_dynamic_metadata_string(void *envoy, text space, text key, text value) {
  (void)envoy;
  entry_write(metadata_at(space, key), (entry){.space = space, .key = key, .value = value});
  TELL("string", space, key, value);
}

void envoy_dynamic_module_callback_http_set_dynamic_metadata_number(void *envoy, text space, text key, double number) {
  (void)envoy;
  char digits[40];
  text value = {digits, (size_t)snprintf(digits, sizeof digits, "%.17g", number)};
  entry_write(metadata_at(space, key), (entry){.space = space, .key = key, .value = value, .number = true});
  TELL("number", space, key, value);
}

bool envoy_dynamic_module_callback_http_set_dynamic_typed_metadata(void *envoy, text space, text any) {
  (void)envoy;
  TELL("typed", space, any);
  return true;
}

/* ---- bodies */
static buffer *body_at(int body) {
  switch (body) {
    case 0: return stream.received_request;
    case 1: return stream.keeps_request ? &stream.kept_request : NULL;
    case 2: return stream.received_response;
    default: return NULL;
  }
}

size_t envoy_dynamic_module_callback_http_get_body_chunks_size(void *envoy, int body) {
  (void)envoy;
  buffer *found = body_at(body);
  return found != NULL ? found->count : 0;
}

bool envoy_dynamic_module_callback_http_get_body_chunks(void *envoy, int body, text *chunks) {
  (void)envoy;
  buffer *found = body_at(body);
  for (size_t n = 0; found != NULL && n < found->count; n++) chunks[n] = found->slices[n];
  return found != NULL;
}

bool envoy_dynamic_module_callback_http_drain_body(void *envoy, int body, size_t bytes) {
  (void)envoy;
  buffer *found = body_at(body);
  if (found != NULL) buffer_drain(found, bytes);
  return found != NULL;
}

static void decode_headers(int from, bool end);
static void decode_data(int from, buffer *piece, bool end);
static void decode_trailers(int from);
static void encode_data(int from, buffer *piece, bool end);
static void encode_trailers(int from);

bool envoy_dynamic_module_callback_http_append_body(void *envoy, int body, text data) {
  buffer *found = body_at(body);
  if (found != NULL) {
    buffer_add(found, data);
    return true;
  }
  if (body == 0 || body == 2) return false;
  filter *one = envoy;
  int at = (int)(one - stream.chain);
  if (body == 1 && (stream.received_request != NULL || one->stopped)) {
    stream.keeps_request = true;
    buffer_add(&stream.kept_request, data);
    return true;
  }
  if (body == 3 && stream.received_response != NULL) exit(7); /* nobody does that */
  buffer piece = {0};
  buffer_add(&piece, data);
  body == 1 ? decode_data(at + 1, &piece, false) : encode_data(at - 1, &piece, false);
  buffer_free(&piece);
  return true;
}

void envoy_dynamic_module_callback_http_send_response_data(void *envoy, text data, bool end) {
  (void)envoy;
  buffer piece = {0};
  buffer_add(&piece, data);
  encode_data(stream.count - 1, &piece, end);
  buffer_free(&piece);
}

void envoy_dynamic_module_callback_http_send_response_trailers(void *envoy, const void *headers, size_t count) {
  (void)envoy, (void)headers;
  if (count != 0) exit(8);
  encode_trailers(stream.count - 1);
}

/* ---- the request's way: from the first filter to the last */
static void go_on(int at, bool end) { /* what has stopped at filter `at` */
  stream.chain[at].stopped = false;
  if (stream.chain[at].owes_headers) {
    stream.chain[at].owes_headers = false;
    decode_headers(at + 1, false);
  }
  if (stream.keeps_request) decode_data(at + 1, &stream.kept_request, end);
}

static void decode_headers(int from, bool end) {
  for (int n = from; n < stream.count; n++) {
    filter *one = &stream.chain[n];
    int status = CONTINUE;
    if (one->keeps) status = end ? CONTINUE : WAIT;
    if (one->module != NULL) {
      one->busy = true;
      status = envoy_dynamic_module_on_http_filter_request_headers(one, one->module, end);
      one->busy = false;
    }
    if (status != CONTINUE) {
      one->stopped = one->owes_headers = true;
      return;
    }
  }
  tell("request", 0, NULL);
}

static void decode_data(int from, buffer *piece, bool end) {
  for (int n = from; n < stream.count; n++) {
    filter *one = &stream.chain[n];
    int status = CONTINUE;
    if (one->keeps) status = end ? CONTINUE : WAIT;
    if (one->module != NULL) {
      if (end && stream.keeps_request) buffer_move(&stream.kept_request, piece);
      stream.received_request = piece;
      one->busy = true;
      status = envoy_dynamic_module_on_http_filter_request_body(one, one->module, end);
      one->busy = false;
      stream.received_request = NULL;
    }
    if (status == CONTINUE && !one->stopped) continue;
    one->stopped = true;
    stream.keeps_request = true;
    buffer_move(&stream.kept_request, piece);
    if (status == CONTINUE) go_on(n, end);
    return;
  }
  text whole = buffer_whole(piece);
  TELL("body", whole, named(end ? "end" : ""));
  dropped(whole);
  buffer_drain(piece, SIZE_MAX);
}

static void decode_trailers(int from) {
  for (int n = from; n < stream.count; n++) {
    filter *one = &stream.chain[n];
    if (one->module != NULL) {
      one->busy = true;
      int status = envoy_dynamic_module_on_http_filter_request_trailers(one, one->module);
      one->busy = false;
      if (status != CONTINUE) return;
    }
    if (one->stopped) go_on(n, false);
  }
  tell("trailers", 0, NULL);
}

/* ---- the answer's way: from the last filter to the first */
static void encode_headers(bool end) {
  stream.answered = true;
  for (int n = stream.count - 1; n >= 0; n--) {
    filter *one = &stream.chain[n];
    if (one->module == NULL || one->busy) continue;
    one->busy = true;
    if (envoy_dynamic_module_on_http_filter_response_headers(one, one->module, end) != CONTINUE) exit(7);
    one->busy = false;
  }
}

static void encode_data(int from, buffer *piece, bool end) {
  for (int n = from; n >= 0; n--) {
    filter *one = &stream.chain[n];
    if (one->holds || one->stops) return;
    if (one->module == NULL || one->busy) continue;
    buffer *outer = stream.received_response;
    stream.received_response = piece;
    one->busy = true;
    if (envoy_dynamic_module_on_http_filter_response_body(one, one->module, end) != CONTINUE) exit(7);
    one->busy = false;
    stream.received_response = outer;
  }
  text whole = buffer_whole(piece);
  TELL("answer", whole, named(end ? "end" : ""));
  dropped(whole);
}

static void encode_trailers(int from) {
  for (int n = from; n >= 0; n--) {
    filter *one = &stream.chain[n];
    if (one->stops) return;
    if (one->holds) {
      buffer nothing = {0};
      encode_data(n - 1, &nothing, false);
      buffer_free(&nothing);
    }
    if (one->module == NULL || one->busy) continue;
    buffer *outer = stream.received_response;
    stream.received_response = NULL;
    one->busy = true;
    int status = envoy_dynamic_module_on_http_filter_response_trailers(one, one->module);
    one->busy = false;
    stream.received_response = outer;
    if (status != CONTINUE) return;
  }
  tell("answer trailers", 0, NULL);
}

/* ---- a stream's life */
static void begin(text names) {
  for (const char *at = names.ptr, *end = names.ptr + names.length; at < end;) {
    const char *comma = memchr(at, ',', (size_t)(end - at));
    text name = {at, (size_t)((comma != NULL ? comma : end) - at)};
    filter *one = &stream.chain[stream.count++];
    if (stream.count > MOST_FILTERS) exit(8);
    if (same(name, named("keeps"))) {
      one->keeps = true;
    } else if (same(name, named("holds"))) {
      one->holds = true;
    } else if (same(name, named("stops"))) {
      one->stops = true;
    } else {
      text exact = copied(name), none = copied((text){NULL, 0});
      one->config = envoy_dynamic_module_on_http_filter_config_new(NULL, exact, none);
      dropped(exact), dropped(none);
      if (one->config == NULL) tell("bad configuration", 0, NULL);
      else if ((one->module = envoy_dynamic_module_on_http_filter_new(one->config, one)) == NULL) tell("no filter", 0, NULL);
    }
    at = comma != NULL ? comma + 1 : end;
  }
}

static void destroy(void) {
  for (int n = 0; n < stream.count; n++) {
    if (stream.chain[n].module != NULL) envoy_dynamic_module_on_http_filter_destroy(stream.chain[n].module);
    if (stream.chain[n].config != NULL) envoy_dynamic_module_on_http_filter_config_destroy(stream.chain[n].config);
    stream.chain[n].module = NULL;
  }
}

static void local_reply(text details) {
  text exact = copied(details);
  for (int n = 0; n < stream.count; n++) {
    filter *one = &stream.chain[n];
    if (one->module == NULL) continue;
    one->busy = true;
    envoy_dynamic_module_on_http_filter_local_reply(one, one->module, 503, exact, false);
    one->busy = false;
  }
  dropped(exact);
}

static void over(void) {
  destroy();
  char digits[24];
  if (held != 0) TELL("leak", ((text){digits, (size_t)snprintf(digits, sizeof digits, "%ld", held)}));
  for (entry *at = stream.headers; at != NULL; at = at->next)
    TELL("header", named(at->side == REQUEST ? "request" : "answer"), at->key, at->value);
  while (stream.headers != NULL) entry_remove(&stream.headers);
  while (stream.metadata != NULL) entry_remove(&stream.metadata);
  buffer_free(&stream.kept_request);
  memset(&stream, 0, sizeof stream);
  held = 0;
  to_failure = -1;
}

static bool yes(text value) { return value.length != 0; }

static long whole_number(text digits) {
  long value = 0;
  for (size_t n = 0; n < digits.length; n++) value = value * 10 + (digits.ptr[n] - '0');
  return value;
}

static void header_is(int side, const text *words) {
  entry_write(header_at(side, words[0]), (entry){.key = words[0], .value = words[1], .side = side});
}

static void metadata_is(const text *words, bool number) {
  entry_write(metadata_at(words[0], words[1]), (entry){words[0], words[1], words[2], number, 0, NULL});
}

static void perform(char command, int count, text *argument) {
  buffer piece = {0};
  if (command == 'b' || command == 'B')
    for (int n = 1; n < count; n++) buffer_add(&piece, argument[n]);
  switch (command) {
    case 'C': begin(argument[0]); break;
    case 'F': to_failure = whole_number(argument[0]); break;
    case 'h': header_is(REQUEST, argument); break;
    case 'H': header_is(RESPONSE, argument); break;
    case 'm': metadata_is(argument, false); break;
    case 'n': metadata_is(argument, true); break;
    case 'q': decode_headers(0, yes(argument[0])); break;
    case 'b': decode_data(0, &piece, yes(argument[0])); break;
    case 't': decode_trailers(0); break;
    case 'Q': encode_headers(yes(argument[0])); break;
    case 'B': encode_data(stream.count - 1, &piece, yes(argument[0])); break;
    case 'T': encode_trailers(stream.count - 1); break;
    case 'X': local_reply(argument[0]); break;
    case 'W':
      for (int n = 0; n < stream.count; n++) {
        envoy_dynamic_module_on_http_filter_downstream_above_write_buffer_high_watermark(&stream.chain[n], stream.chain[n].module);
        envoy_dynamic_module_on_http_filter_downstream_below_write_buffer_low_watermark(&stream.chain[n], stream.chain[n].module);
      }
      break;
    case 'c':
      for (int n = 0; n < stream.count; n++)
        if (stream.chain[n].module != NULL)
          envoy_dynamic_module_on_http_filter_stream_complete(&stream.chain[n], stream.chain[n].module);
      break;
    default: exit(8);
  }
  buffer_free(&piece);
}

int main(void) {
  uint32_t length;
  if (strcmp(envoy_dynamic_module_on_program_init(), "v0.2.0") != 0) return 8;
  while (fread(&length, 4, 1, stdin) == 1) {
    char *script = room(length);
    if (fread(script, 1, length, stdin) != length) return 8;
    for (const char *at = script, *end = script + length; at < end;) {
      static text argument[MOST_ARGUMENTS];
      char command = *at++;
      int count = (uint8_t)*at++;
      for (int n = 0; n < count; n++) {
        uint32_t size;
        memcpy(&size, at, 4);
        argument[n] = (text){at + 4, size};
        at += 4 + size;
      }
      perform(command, count, argument);
    }
    over();
    __real_free(script);
    uint32_t size = (uint32_t)told_length;
    fwrite(&size, 4, 1, stdout);
    fwrite(told, 1, told_length, stdout);
    fflush(stdout);
    told_length = 0;
  }
  __real_free(told);
  return 0;
}
