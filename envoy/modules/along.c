/* Hands the picker the request's body along with the headers, in one message instead of two with an answer between.
 *
 * Envoy's ext_proc filter sends headers, waits to be told to go on, and sends the body then: two rounds, each of which
 * wakes up two processes. What it sends with the headers is metadata, too. So this filter, which stands before it, waits for
 * the body and puts it there, with a name for the request by which its record is known whatever happens meanwhile. A picker
 * that does not look at it asks for the body as ever. Bodies over LARGEST go that way, too: metadata is
 * copied several times on its way, and at 40 kB that costs what the round does.
 *
 * Metadata written: matrixinfer.body (typed)  the body, as a google.protobuf.BytesValue; emptied when an answer begins,
 *                                             and before the log is written
 *                   matrixinfer               offered: the name
 * Header read and taken out: x-matrixinfer-length, of the body that the picker has put in place of the client's.
 */
#include "module.h"

#include <sys/random.h>

enum { LARGEST = 16384, LONGEST_NAME = 40, ROOM = 64 };

static const text BODY = {"matrixinfer.body", 16};
static const text BYTES = {"type.googleapis.com/google.protobuf.BytesValue", 46};
static const text LENGTH = {"x-matrixinfer-length", 20};

/* Names are this process' own, and a number. */
static uint64_t process, requests;

void along_begin(void) {
  if (getrandom(&process, sizeof process, 0) != sizeof process) process = (uint64_t)time(NULL);
}

bool along_wanted(void *envoy) {
  text length;
  if (!header(envoy, REQUEST_HEADER, TEXT("content-length"), &length)) return true;
  size_t bytes = 0;
  for (size_t n = 0; n < length.length && bytes <= LARGEST; n++) bytes = bytes * 10 + (size_t)(length.ptr[n] - '0');
  return bytes <= LARGEST;
}

/* Puts the head of the protobuf field `number` before its value of `length` bytes; returns where it begins. */
static char *headed(char *value, int number, size_t length) {
  size_t more = length;
  int size = 1;
  while (more >>= 7) size++;
  char *from = value - size - 1, *at = from;
  *at++ = (char)(number << 3 | 2);
  for (more = length; more >= 0x80; more >>= 7) *at++ = (char)(more | 0x80);
  *at = (char)more;
  return from;
}

void along_tell(void *envoy, along *self) {
  body kept = body_of(envoy, BUFFERED_REQUEST_BODY), last = body_of(envoy, RECEIVED_REQUEST_BODY);
  /* What another filter has kept comes as one piece, which Envoy then calls both. */
  if (kept.count && last.count && kept.chunks[0].ptr == last.chunks[0].ptr) last.count = last.length = 0;
  size_t length = kept.length + last.length;
  char *room = length <= LARGEST ? malloc(ROOM + length) : NULL;
  if (room != NULL) {
    char *value = room + ROOM, *end = body_copied(body_copied(value, kept), last), *from = headed(value, 1, length);
    from = headed(from, 2, (size_t)(end - from));
    from -= BYTES.length;
    memcpy(from, BYTES.ptr, BYTES.length);
    from = headed(from, 1, BYTES.length);
    self->told = envoy_dynamic_module_callback_http_set_dynamic_typed_metadata(envoy, BODY, (text){from, (size_t)(end - from)});
  }
  if (self->told) {
    char name[LONGEST_NAME];
    int size = snprintf(name, sizeof name, "%016llx-%llx", (unsigned long long)process,
                        (unsigned long long)__atomic_add_fetch(&requests, 1, __ATOMIC_RELAXED));
    envoy_dynamic_module_callback_http_set_dynamic_metadata_string(envoy, TEXT("matrixinfer"), TEXT("offered"),
                                                                   (text){name, (size_t)size});
  }
  free(room);
  free(kept.chunks);
  free(last.chunks);
}

/* Leaves two bytes, a body without any: nothing at all would leave what is there. */
static void forget(void *envoy) {
  char any[ROOM] = {"\x0a"}, *end = any + 2;
  any[1] = (char)BYTES.length;
  memcpy(end, BYTES.ptr, BYTES.length);
  end += BYTES.length;
  memcpy(end, "\x12\x02\x0a\x00", 4);
  envoy_dynamic_module_callback_http_set_dynamic_typed_metadata(envoy, BODY, (text){any, (size_t)(end + 4 - any)});
}

void along_over(void *envoy, along *self) {
  if (self->told) forget(envoy);
  self->told = false;
}

void along_answered(void *envoy) {
  text length;
  if (!header(envoy, REQUEST_HEADER, LENGTH, &length)) return;
  envoy_dynamic_module_callback_http_set_header(envoy, REQUEST_HEADER, TEXT("content-length"), length);
  envoy_dynamic_module_callback_http_set_header(envoy, REQUEST_HEADER, LENGTH, (text){NULL, 0});
}
