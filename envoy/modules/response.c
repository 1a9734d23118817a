/* Watches answers on their way to the client: stamps the first token, reads `usage`, hides usage that only the picker
 * asked for, and ends a broken event stream with an error event.
 *
 * Envoy's Lua does the first three as well (envoy/response.lua, used where no module can be loaded) at many times the
 * cost per chunk. The last one nothing that ships with Envoy can do: when an engine dies after its response has begun,
 * the client's stream is reset, and only a module's local_reply hook is asked before. It sends a last event that OpenAI
 * and Anthropic clients raise as an API error; Envoy then ends the stream as it would have. What a module sends passes all
 * filters. Where an external provider's answer is translated, one of them is ext_proc, which would hand the event to the
 * picker and have it back when the stream is gone. But trailers it lets pass, unless a chunk is with the picker: they are
 * sent, and the filter `model`, which they come to next, puts the event before them and keeps them. (Not this filter: Envoy
 * calls no hook of one that is in a hook.) While they are on their way, some more of the body may come before them, of no bytes.
 *
 * No state outside the stream, so no locks.
 *
 * Metadata read:    matrixinfer          usage_chunks: hide-all | hide-running; provider: the answer is one's
 * Metadata written: matrixinfer.usage    prompt_tokens, completion_tokens, cached_tokens, model
 *                   matrixinfer.timing   first_token_ms: ms since the epoch
 * They are written once, when the stream is over and before it is logged: also if an engine died or a client left.
 *
 * Bytes are searched, not parsed. That is safe because within a JSON string every quote is escaped: the bytes "usage"
 * with both quotes, a colon and a brace behind them, can only be a key.
 */
#include "module.h"

/* ---- bounds */
enum {
  LONGEST_USAGE = 16384,  /* a usage object is some 100 bytes; what is longer is something else */
  LONGEST_EVENT = 1 << 20, /* hiding stops at an event longer than this, rather than hold back more */
  LONGEST_MODEL = 256,
  UNKNOWN = -1,
};

typedef struct {
  char *data;
  size_t length, room;
} bytes;

struct response {
  bool anthropic;                    /* the client speaks /v1/messages */
  bool watched;                      /* JSON or an event stream, successful, not compressed */
  bool open;                         /* an event stream has begun and not ended */
  bool written;                      /* the metadata is */
  enum { ALL, HIDE_RUNNING, HIDE_ALL } mode;
  double first_token_ms;             /* 0: no byte of the body yet */
  int64_t prompt, completion, cached;
  size_t model_length;
  char model[LONGEST_MODEL];
  bytes carry;                       /* the end of the last chunk: an unfinished event, or what may be a key cut in two */
  bytes out;                         /* what replaces a chunk */
};

/* ---- bytes */
static bool add(bytes *to, const char *from, size_t length) {
  if (to->length + length > to->room) {
    size_t room = to->room ? to->room : 512;
    while (room < to->length + length) room *= 2;
    char *data = realloc(to->data, room);
    if (data == NULL) return false;
    to->data = data, to->room = room;
  }
  if (length) memcpy(to->data + to->length, from, length);
  to->length += length;
  return true;
}

static const char *find(const char *from, const char *end, text word) {
  return from < end ? memmem(from, (size_t)(end - from), word.ptr, word.length) : NULL;
}

/* ---- JSON, as far as it takes */

static void keep(int64_t *value, int64_t seen) {
  if (seen != UNKNOWN) *value = seen;
}

static int64_t counted(int64_t value) { return value == UNKNOWN ? 0 : value; }

/* What a usage object may say; the first occurrence counts. */
enum { PROMPT, COMPLETION, CACHED, INPUT, OUTPUT, CACHE_READ, CACHE_WRITTEN, NUMBERS };
static const text NUMBER[NUMBERS] = {
    TEXT("prompt_tokens"), TEXT("completion_tokens"),       TEXT("cached_tokens"),              TEXT("input_tokens"),
    TEXT("output_tokens"), TEXT("cache_read_input_tokens"), TEXT("cache_creation_input_tokens"),
};

/* Takes the number at `at` for the key that ends before it, if it is one of ours and has none yet. */
static const char *number(const char *at, const char *end, text key, int64_t *found) {
  if (at == end || *at < '0' || *at > '9') return at;
  int64_t value = 0;
  for (; at < end && *at >= '0' && *at <= '9' && value < (int64_t)1 << 53; at++) value = value * 10 + (*at - '0');
  for (int n = 0; n < NUMBERS; n++)
    if (same(key, NUMBER[n]) && found[n] == UNKNOWN) found[n] = value;
  return at;
}

/* The quote that ends the string which begins at `from`; NULL if it is cut. */
static const char *string_end(const char *from, const char *end) {
  for (const char *at = from; (at = memchr(at, '"', (size_t)(end - at))) != NULL; at++) {
    const char *slash = at;
    while (slash > from && slash[-1] == '\\') slash--;
    if ((at - slash) % 2 == 0) return at;
  }
  return NULL;
}

/* Reads the object that begins at `from`, its own objects included; returns what follows, NULL if it is cut. */
static const char *numbers(const char *from, const char *end, int64_t *found) {
  int depth = 0;
  for (int n = 0; n < NUMBERS; n++) found[n] = UNKNOWN;
  for (const char *at = from; at < end;) {
    if (*at == '"') {
      text key = {at + 1, 0};
      if ((at = string_end(key.ptr, end)) == NULL) return NULL;
      key.length = (size_t)(at - key.ptr);
      at = spaces(at + 1, end);
      if (at < end && *at == ':') at = number(spaces(at + 1, end), end, key, found);
      continue;
    }
    if (*at == '{' || *at == '[') depth++;
    else if ((*at == '}' || *at == ']') && --depth == 0) return at + 1;
    at++;
  }
  return NULL;
}

/* Normalises one usage object. Chat and completions count cached tokens into the prompt; so does Responses; Anthropic
 * counts what was read from and written to the cache apart from the input. */
static void record(response *self, const int64_t *found) {
  keep(&self->completion, found[COMPLETION]);
  if (found[PROMPT] != UNKNOWN) {
    keep(&self->prompt, found[PROMPT]);
  } else {
    if (found[INPUT] != UNKNOWN)
      keep(&self->prompt, found[INPUT] + counted(found[CACHE_READ]) + counted(found[CACHE_WRITTEN]));
    keep(&self->completion, found[OUTPUT]);
    keep(&self->cached, found[CACHE_READ]);
  }
  keep(&self->cached, found[CACHED]);
}

static void read_model(response *self, const char *from, const char *end) {
  static const text key = {"\"model\"", 7};
  for (const char *at = from; self->model_length == 0 && (at = find(at, end, key)) != NULL;) {
    at = spaces(at + key.length, end);
    if (at == end || *at != ':') continue;
    at = spaces(at + 1, end);
    if (at == end || *at != '"') continue;
    at++;
    const char *stop = memchr(at, '"', (size_t)(end - at));
    if (stop != NULL && stop - at < LONGEST_MODEL && memchr(at, '\\', (size_t)(stop - at)) == NULL) {
      self->model_length = (size_t)(stop - at);
      memcpy(self->model, at, self->model_length);
    }
  }
}

typedef struct {
  const char *key, *end; /* the key, NULL if there is none, and what follows its object, NULL if that is cut */
  int64_t found[NUMBERS];
} usage;

static const text USAGE = {"\"usage\"", 7};

/* The key, quotes included. Looked for by its rarest letter: most chunks are looked at for nothing else. */
static const char *usage_key(const char *from, const char *end) {
  enum { G = 4 };
  for (const char *at = from; (at = memchr(at, 'g', (size_t)(end - at))) != NULL; at++)
    if (at - from >= G && end - at >= (ptrdiff_t)USAGE.length - G && memcmp(at - G, USAGE.ptr, USAGE.length) == 0) return at - G;
  return NULL;
}

static void next_usage(const char *from, const char *end, usage *next) {
  for (const char *at = from; (next->key = usage_key(at, end)) != NULL;) {
    at = spaces(next->key + USAGE.length, end);
    next->end = NULL;
    if (at == end) return;
    if (*at != ':') continue;
    at = spaces(at + 1, end);
    if (at == end) return;
    if (*at != '{') continue;
    next->end = numbers(at, end, next->found);
    return;
  }
}

/* ---- an answer that is passed on as it is */

/* Records what is in `from`..`end`; returns from where on it must be seen again together with what follows. */
static const char *observe(response *self, const char *from, const char *end) {
  const char *start = from;
  if (self->model_length == 0) read_model(self, from, end);
  usage at;
  for (next_usage(from, end, &at); at.key != NULL; next_usage(from, end, &at)) {
    if (at.end == NULL) return end - at.key < LONGEST_USAGE ? at.key : end;
    record(self, at.found);
    from = at.end;
  }
  if (start < end && end[-1] == '\n') return end; /* an event ended: no word is cut */
  size_t word = self->model_length == 0 ? LONGEST_MODEL + 16 : USAGE.length - 1;
  const char *tail = (size_t)(end - from) < word ? from : end - word;
  return tail;
}

/* ---- an answer whose usage is hidden */

/* The end of the last complete event; `from` if there is none. An event ends with an empty line. */
static const char *last_event(const char *from, const char *end) {
  for (const char *at = end; at - from >= 2; at--)
    if (at[-1] == '\n' && (at[-2] == '\n' || (at - from >= 3 && at[-2] == '\r' && at[-3] == '\n'))) return at;
  return from;
}

static const char *event_end(const char *from, const char *end) {
  for (const char *at = from; (at = memchr(at, '\n', (size_t)(end - at))) != NULL;) {
    at++;
    if (at < end && *at == '\n') return at + 1;
    if (at + 1 < end && *at == '\r' && at[1] == '\n') return at + 2;
  }
  return end;
}

/* Whether the list at the key "choices" is empty. */
static bool no_choices(const char *from, const char *end) {
  static const text key = {"\"choices\"", 9};
  for (const char *at = from; (at = memchr(at, '[', (size_t)(end - at))) != NULL; at++) {
    const char *before = at;
    while (before > from && strchr(": \t\r\n", before[-1]) != NULL && before[-1]) before--;
    if (before == at || before - from < (ptrdiff_t)key.length || memcmp(before - key.length, key.ptr, key.length) != 0) continue;
    at = spaces(at + 1, end);
    return at < end && *at == ']';
  }
  return false;
}

typedef struct {
  const char *from, *end; /* what is to be left out of an event; all of it if nothing remains that was asked for */
} gap;

/* Where the blanks begin that end at `at`; data on several lines has line ends and "data:" among them. */
static const char *blanks(const char *from, const char *at) {
  static const text line = {"\ndata:", 6};
  for (;;) {
    if (at > from && (at[-1] == ' ' || at[-1] == '\t' || at[-1] == '\r' || at[-1] == '\n')) at--;
    else if (at - from >= (ptrdiff_t)line.length && memcmp(at - line.length, line.ptr, line.length) == 0) at -= line.length;
    else return at;
  }
}

/* Records the usage of one event, whose key is at `key` at the earliest, and says what of it to leave out; nothing
 * (from == end) if it stays as it is. */
static gap hidden(response *self, const char *from, const char *key, const char *end) {
  usage at;
  next_usage(key, end, &at);
  if (at.key == NULL || at.end == NULL) return (gap){end, end};
  record(self, at.found);
  if (no_choices(from, end)) return self->mode == HIDE_ALL ? (gap){from, end} : (gap){end, end};
  const char *before = blanks(from, at.key), *comma = spaces(at.end, end);
  if (before > from && before[-1] == ',') return (gap){before - 1, at.end};
  return (gap){at.key, comma < end && *comma == ',' ? comma + 1 : at.end};
}

/* Adds one event to the output, without its usage. */
static bool hide(response *self, const char *from, const char *end) {
  gap out = hidden(self, from, from, end);
  return add(&self->out, from, (size_t)(out.from - from)) && add(&self->out, out.end, (size_t)(end - out.end));
}

/* Replaces the chunk of `length` bytes by the output. */
static void replace(void *envoy, response *self, size_t length) {
  envoy_dynamic_module_callback_http_drain_body(envoy, RECEIVED_RESPONSE_BODY, length);
  if (self->out.length)
    envoy_dynamic_module_callback_http_append_body(envoy, RECEIVED_RESPONSE_BODY, (text){self->out.data, self->out.length});
}

static void rewrite(void *envoy, response *self, const char *from, const char *end, size_t length, bool last) {
  bool carried = self->carry.length != 0;
  const char *stop = last ? end : last_event(from, end);
  if (self->model_length == 0) read_model(self, from, stop);
  if (!carried && stop == end) {
    const char *key = usage_key(from, end);
    if (key == NULL) return; /* the chunk goes on as it is */
    if (event_end(from, end) == end) { /* the usual case, one event: what stands before the gap is moved over it */
      gap out = hidden(self, from, key, end);
      if (out.from != out.end) {
        memmove((char *)from + (out.end - out.from), from, (size_t)(out.from - from)); /* the ABI's slices are writable */
        envoy_dynamic_module_callback_http_drain_body(envoy, RECEIVED_RESPONSE_BODY, (size_t)(out.end - out.from));
      }
      return;
    }
  }
  bool good = true;
  self->out.length = 0;
  for (const char *at = from; at < stop && good;) {
    const char *next = event_end(at, stop);
    good = hide(self, at, next);
    at = next;
  }
  bytes rest = {NULL, 0, 0};
  if (end - stop > LONGEST_EVENT) {
    good = good && add(&self->out, stop, (size_t)(end - stop));
    self->mode = ALL;
  } else {
    good = good && add(&rest, stop, (size_t)(end - stop));
  }
  if (good) {
    replace(envoy, self, length);
    free(self->carry.data);
    self->carry = rest;
  } else {
    free(rest.data); /* no memory: what came goes on as it is */
  }
}

/* ---- what Envoy tells */
response *response_new(void) {
  response *self = calloc(1, sizeof(response));
  if (self != NULL) self->prompt = self->completion = self->cached = UNKNOWN;
  return self;
}

void response_destroy(response *self) {
  free(self->carry.data);
  free(self->out.data);
  free(self);
}

void response_request(void *envoy, response *self) {
  text path;
  self->anthropic = header(envoy, REQUEST_HEADER, TEXT(":path"), &path) && starts(path, TEXT("/v1/messages"));
}

void response_headers(void *envoy, response *self, bool end) {
  text type, status, other, mode;
  /* Envoy asks for other credentials also where it only cannot get the keys to check these. */
  bool told = header(envoy, RESPONSE_HEADER, TEXT(":status"), &status);
  if (told && same(status, TEXT("503")) && header(envoy, RESPONSE_HEADER, TEXT("www-authenticate"), &other))
    envoy_dynamic_module_callback_http_set_header(envoy, RESPONSE_HEADER, TEXT("www-authenticate"), (text){NULL, 0});
  if (end || !header(envoy, RESPONSE_HEADER, TEXT("content-type"), &type)) return;
  bool events = starts(type, TEXT("text/event-stream"));
  self->open = events;
  self->watched = (events || starts(type, TEXT("application/json"))) && told && starts(status, TEXT("2")) &&
                  !header(envoy, RESPONSE_HEADER, TEXT("content-encoding"), &other);
  if (self->watched && events &&
      envoy_dynamic_module_callback_http_get_metadata_string(envoy, DYNAMIC, TEXT("matrixinfer"), TEXT("usage_chunks"),
                                                             &mode)) {
    if (starts(mode, TEXT("hide-all"))) self->mode = HIDE_ALL;
    if (starts(mode, TEXT("hide-running"))) self->mode = HIDE_RUNNING;
  }
}

void response_body(void *envoy, response *self, bool end) {
  text few[16], *chunks = few;
  if (end) self->open = false;
  if (!self->watched) return;
  size_t count = envoy_dynamic_module_callback_http_get_body_chunks_size(envoy, RECEIVED_RESPONSE_BODY);
  if (count > sizeof few / sizeof *few && (chunks = malloc(count * sizeof *chunks)) == NULL) return;
  if (count && !envoy_dynamic_module_callback_http_get_body_chunks(envoy, RECEIVED_RESPONSE_BODY, chunks)) count = 0;
  size_t length = 0;
  for (size_t n = 0; n < count; n++) length += chunks[n].length;
  if (length && self->first_token_ms == 0) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    self->first_token_ms = (double)now.tv_sec * 1e3 + (double)now.tv_nsec / 1e6;
  }
  if (length || (end && self->carry.length)) {
    const char *from, *stop;
    size_t held = self->carry.length;
    bool good = true;
    if (held == 0 && count == 1) { /* the usual case: one slice, searched where it lies */
      from = chunks[0].ptr;
    } else {
      for (size_t n = 0; n < count && good; n++) good = add(&self->carry, chunks[n].ptr, chunks[n].length);
      from = self->carry.data;
    }
    stop = from + held + length;
    if (!good) {
      self->watched = false; /* no memory to look at it: it goes on unseen */
    } else if (self->mode == ALL) {
      const char *again = observe(self, from, stop);
      bytes rest = {NULL, 0, 0};
      if (add(&rest, again, (size_t)(stop - again))) {
        free(self->carry.data);
        self->carry = rest;
      } else {
        self->carry.length = 0;
      }
    } else {
      rewrite(envoy, self, from, stop, length, end);
    }
  }
  if (chunks != few) free(chunks);
}

void response_over(void *envoy, response *self) {
  self->open = false;
  if (!self->watched || self->mode == ALL || self->carry.length == 0) return;
  self->out.length = 0; /* what was held back is an event that nothing will end */
  bytes *rest = hide(self, self->carry.data, self->carry.data + self->carry.length) ? &self->out : &self->carry;
  if (rest->length)
    envoy_dynamic_module_callback_http_append_body(envoy, BUFFERED_RESPONSE_BODY, (text){rest->data, rest->length});
  self->carry.length = 0;
}

/* What is sent with trailers of ours, while the worker's thread is in the call that sends them. */
static _Thread_local struct {
  bool sending;
  text event; /* empty as soon as it has gone out */
} last;

bool response_last(void *envoy, int where) {
  if (last.event.length && envoy_dynamic_module_callback_http_append_body(envoy, where, last.event)) last.event.length = 0;
  return last.sending;
}

/* Whether an external provider answers, and not an engine. */
static bool provided(void *envoy) {
  text note;
  return envoy_dynamic_module_callback_http_get_metadata_string(envoy, DYNAMIC, TEXT("matrixinfer"), TEXT("provider"), &note);
}

/* `details` is Envoy's response code detail, e.g. upstream_reset_after_response_started{connection_termination}. */
void response_broken(void *envoy, response *self, text details) {
  if (!self->open) return;
  char event[512], why[128];
  size_t length = 0;
  for (size_t i = 0; i < details.length && length < sizeof why - 1; i++) /* only what JSON needs no escape for */
    if (details.ptr[i] >= ' ' && details.ptr[i] != '"' && details.ptr[i] != '\\') why[length++] = details.ptr[i];
  why[length] = 0;
  bool silent = starts(details, TEXT("upstream_per_try_idle_timeout")) || starts(details, TEXT("stream_idle_timeout"));
  bool outside = provided(envoy);
  const char *who = outside ? "provider" : "engine";
  const char *what = silent ? "was silent for longer than the route allows" : "stopped before the answer was complete";
  int size = self->anthropic ? snprintf(event, sizeof event,
                                        "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"api_error\","
                                        "\"message\":\"The %s %s; send the request again. (%s)\"}}\n\n",
                                        who, what, why)
                             : snprintf(event, sizeof event,
                                        "data: {\"error\":{\"message\":\"The %s %s; send the request again. (%s)\","
                                        "\"type\":\"upstream_error\",\"param\":null,\"code\":\"%s\"}}\n\n",
                                        who, what, why, silent ? "stream_idle" : "stream_interrupted");
  self->open = self->watched = false; /* never twice, and past this filter as it is; the end is Envoy's to send */
  if (outside) {
    last.sending = true;
    last.event = (text){event, (size_t)size};
    envoy_dynamic_module_callback_http_send_response_trailers(envoy, NULL, 0);
    last.sending = false;
    last.event.length = 0;
  } else {
    envoy_dynamic_module_callback_http_send_response_data(envoy, (text){event, (size_t)size}, false);
  }
}

static void write_number(void *envoy, text key, int64_t value) {
  if (value != UNKNOWN)
    envoy_dynamic_module_callback_http_set_dynamic_metadata_number(envoy, TEXT("matrixinfer.usage"), key, (double)value);
}

void response_complete(void *envoy, response *self) {
  if (self->written) return;
  self->written = true;
  write_number(envoy, TEXT("prompt_tokens"), self->prompt);
  write_number(envoy, TEXT("completion_tokens"), self->completion);
  write_number(envoy, TEXT("cached_tokens"), self->cached);
  if (self->model_length)
    envoy_dynamic_module_callback_http_set_dynamic_metadata_string(envoy, TEXT("matrixinfer.usage"), TEXT("model"),
                                                                   (text){self->model, self->model_length});
  if (self->first_token_ms > 0)
    envoy_dynamic_module_callback_http_set_dynamic_metadata_number(envoy, TEXT("matrixinfer.timing"),
                                                                   TEXT("first_token_ms"), self->first_token_ms);
}
