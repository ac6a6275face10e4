/*
 * The peer: libzmq itself, loaded from a shared library, without headers and without a language's bindings in between.
 *
 *   libzmq_peer LIBRARY router ENDPOINT
 *   libzmq_peer LIBRARY dealer ENDPOINT CLIENTS IN_FLIGHT
 *   libzmq_peer LIBRARY pub    ENDPOINT SUBSCRIBERS PER_SECOND
 *   libzmq_peer LIBRARY sub    ENDPOINT
 *   libzmq_peer LIBRARY stall  ENDPOINT
 *
 * It is a worker of the bench's fleet: the first line of stdin is "WARM_UP_MS TIME_MS", it says "ready ENDPOINT", begins at the line "go",
 * says what it measured as JSON, and ends with stdin. PER_SECOND 0 is as fast as it goes: then nothing is dropped, the publisher waits.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

enum { PUB = 1, SUB = 2, DEALER = 5, ROUTER = 6, XPUB = 9 };
enum { OPT_SUBSCRIBE = 6, OPT_LINGER = 17, OPT_SNDHWM = 23, OPT_RCVHWM = 24, OPT_RCVTIMEO = 27, OPT_SNDTIMEO = 28, OPT_LAST_ENDPOINT = 32 };
enum { OPT_RCVMORE = 13, OPT_XPUB_VERBOSE = 40, OPT_XPUB_NODROP = 69 };
enum { DONTWAIT = 1, SNDMORE = 2, POLLIN_ = 1 };
enum { REQUEST_BYTES = 200, EVENT_BYTES = 300, MOST_CLIENTS = 256, MOST_IN_FLIGHT = 256 };

typedef struct { void *socket; int fd; short events; short revents; } poll_item;

static void *(*zmq_ctx_new)(void);
static void *(*zmq_socket)(void *, int);
static int (*zmq_bind)(void *, const char *);
static int (*zmq_connect)(void *, const char *);
static int (*zmq_send)(void *, const void *, size_t, int);
static int (*zmq_recv)(void *, void *, size_t, int);
static int (*zmq_setsockopt)(void *, int, const void *, size_t);
static int (*zmq_getsockopt)(void *, int, void *, size_t *);
static int (*zmq_poll)(poll_item *, int, long);
static void (*zmq_version)(int *, int *, int *);
static int (*zmq_errno)(void);
static const char *(*zmq_strerror)(int);

static uint64_t warm_up_ns, time_ns;

static void fail(const char *what) {
    fprintf(stderr, "libzmq_peer: %s: %s\n", what, zmq_strerror ? zmq_strerror(zmq_errno()) : "not loaded");
    exit(1);
}

static void load(const char *path) {
    void *library = dlopen(path, RTLD_NOW);
    if (!library) { fprintf(stderr, "libzmq_peer: %s\n", dlerror()); exit(1); }
#define SYMBOL(name) do { *(void **)&name = dlsym(library, #name); if (!name) { fprintf(stderr, "no %s\n", #name); exit(1); } } while (0)
    SYMBOL(zmq_ctx_new); SYMBOL(zmq_socket); SYMBOL(zmq_bind); SYMBOL(zmq_connect); SYMBOL(zmq_send); SYMBOL(zmq_recv);
    SYMBOL(zmq_setsockopt); SYMBOL(zmq_getsockopt); SYMBOL(zmq_poll); SYMBOL(zmq_version); SYMBOL(zmq_errno); SYMBOL(zmq_strerror);
}

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static double cpu_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* The system's usual slack of 50 us is taken off, as on the other side. */
static void sleep_until(uint64_t due) {
    prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0);
    struct timespec t = { (time_t)(due / 1000000000u), (long)(due % 1000000000u) };
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL)) {}
}

/* Latencies to three digits: 512 steps for each power of two. */
static uint64_t counts[56 * 512];

static void record(uint64_t ns) {
    unsigned shift = ns < 1024 ? 0 : 54u - (unsigned)__builtin_clzll(ns);
    counts[shift * 512 + (ns >> shift)]++;
}

static void say(int is_idle, double cpu, uint64_t failed) {
    double seconds = (double)time_ns / 1e9, share = (double)time_ns / (double)(time_ns + warm_up_ns);
    printf("{\"is_idle\":%s,\"cpu_seconds\":%.6f,\"failed\":%llu,\"seconds\":%.6f,\"latencies\":[", is_idle ? "true" : "false",
           (cpu_seconds() - cpu) * share, (unsigned long long)failed, seconds);
    const char *comma = "";
    for (unsigned at = 0; at < sizeof counts / sizeof *counts; at++) {
        if (!counts[at]) continue;
        unsigned shift = at < 1024 ? 0 : at / 512 - 1;
        uint64_t value = at < 1024 ? at : (uint64_t)(at - shift * 512) << shift;
        printf("%s[%llu,%llu]", comma, (unsigned long long)value, (unsigned long long)counts[at]);
        comma = ",";
    }
    printf("]}\n");
    fflush(stdout);
}

static void wait_for_go(const char *endpoint) {
    char line[64];
    printf("ready %s\n", endpoint);
    fflush(stdout);
    if (!fgets(line, sizeof line, stdin)) exit(1);
}

static void wait_for_end(void) {
    char line[64];
    while (fgets(line, sizeof line, stdin)) {}
    /* Threads of libzmq still run: nothing is flushed on purpose. */
    _exit(0);
}

static void set(void *socket, int option, int value) {
    if (zmq_setsockopt(socket, option, &value, sizeof value)) fail("zmq_setsockopt");
}

static const char *bound(void *socket, const char *endpoint) {
    static char last[256];
    size_t length = sizeof last;
    if (zmq_bind(socket, endpoint)) fail("zmq_bind");
    if (zmq_getsockopt(socket, OPT_LAST_ENDPOINT, last, &length)) fail("zmq_getsockopt");
    return last;
}

static void *echo(void *socket) {
    static char part[65536];
    for (;;) {
        int length = zmq_recv(socket, part, sizeof part, 0), more = 0;
        size_t size = sizeof more;
        if (length < 0) fail("zmq_recv");
        if (zmq_getsockopt(socket, OPT_RCVMORE, &more, &size)) fail("zmq_getsockopt");
        zmq_send(socket, part, (size_t)length, more ? SNDMORE : 0);
    }
    return NULL;
}

static void idle(void) {
    double cpu = cpu_seconds();
    sleep_until(now() + warm_up_ns + time_ns);
    say(1, cpu, 0);
}

static void router(void *context, const char *endpoint) {
    void *socket = zmq_socket(context, ROUTER);
    set(socket, OPT_SNDHWM, 0);
    set(socket, OPT_RCVHWM, 0);
    const char *at = bound(socket, endpoint);
    pthread_t thread;
    if (pthread_create(&thread, NULL, echo, socket)) fail("pthread_create");
    wait_for_go(at);
    idle();
}

/* One client: a socket, and when each call in flight began, oldest first. Answers come in order. */
typedef struct { void *socket; uint64_t began[MOST_IN_FLIGHT]; unsigned first, length; } client;

static void call(client *it, unsigned number) {
    char body[REQUEST_BYTES + 1];
    int head = snprintf(body, sizeof body, "{\"jsonrpc\":\"2.0\",\"id\":\"%010u\",\"method\":\"echo\",\"params\":{\"text\":\"", number);
    memset(body + head, 'x', (size_t)(REQUEST_BYTES - head));
    memcpy(body + REQUEST_BYTES - 3, "\"}}", 3);
    it->began[(it->first + it->length++) % MOST_IN_FLIGHT] = now();
    if (zmq_send(it->socket, "", 0, SNDMORE) < 0 || zmq_send(it->socket, body, REQUEST_BYTES, 0) < 0) fail("zmq_send");
}

static void dealer(void *context, const char *endpoint, unsigned clients, unsigned in_flight) {
    static client all[MOST_CLIENTS];
    static poll_item items[MOST_CLIENTS];
    static char part[65536];
    unsigned number = 0;
    if (clients > MOST_CLIENTS || in_flight > MOST_IN_FLIGHT) exit(2);
    for (unsigned at = 0; at < clients; at++) {
        all[at].socket = zmq_socket(context, DEALER);
        set(all[at].socket, OPT_LINGER, 0);
        if (zmq_connect(all[at].socket, endpoint)) fail("zmq_connect");
        items[at] = (poll_item){ all[at].socket, 0, POLLIN_, 0 };
        /* Connected when it has been answered. */
        call(&all[at], number++);
        if (zmq_recv(all[at].socket, part, sizeof part, 0) < 0 || zmq_recv(all[at].socket, part, sizeof part, 0) < REQUEST_BYTES / 2) fail("zmq_recv");
        all[at].length = 0;
    }
    wait_for_go(endpoint);
    double cpu = cpu_seconds();
    uint64_t from = now() + warm_up_ns, end = from + time_ns;
    for (unsigned at = 0; at < clients * in_flight; at++) call(&all[at % clients], number++);
    for (uint64_t at = 0; at < end;) {
        if (clients > 1 && zmq_poll(items, (int)clients, 1000) < 0) fail("zmq_poll");
        for (unsigned which = 0; which < clients; which++) {
            client *it = &all[which];
            if (clients > 1 && !items[which].revents) continue;
            int flags = clients > 1 ? DONTWAIT : 0;
            while (zmq_recv(it->socket, part, sizeof part, flags) == 0) {
                int length = zmq_recv(it->socket, part, sizeof part, 0);
                if (length < REQUEST_BYTES / 2) fail("a short answer");
                at = now();
                if (at >= from && at < end) record(at - it->began[it->first]);
                it->first = (it->first + 1) % MOST_IN_FLIGHT;
                it->length--;
                if (at >= end) break;
                call(it, number++);
            }
        }
    }
    say(0, cpu, 0);
}

static const char TOPIC[] = "llm.token";

/* Added to the numbers in Pando's events, so that all are as long. */
static const uint64_t EIGHTEEN_DIGITS = 100000000000000000u;

/* Makes the frame of one event; `at` is when it was due. */
static void event(char *frame, uint64_t at, uint64_t n) {
    char text[EVENT_BYTES + 1];
    int head = snprintf(text, sizeof text,
        "%s%c{\"instanceId\":\"inst-A\",\"projectId\":\"\",\"topic\":\"%s\",\"timestamp\":\"2026-11-21T02:53:37.135828507Z\","
        "\"payload\":{\"at\":%018llu,\"text\":\"", TOPIC, '\x01', TOPIC, (unsigned long long)at);
    char tail[40];
    int foot = snprintf(tail, sizeof tail, "\"},\"n\":%012llu}", (unsigned long long)n);
    memset(text + head, 'x', (size_t)(EVENT_BYTES - head));
    memcpy(text + EVENT_BYTES - foot, tail, (size_t)foot);
    text[sizeof TOPIC - 1] = 0;
    memcpy(frame, text, EVENT_BYTES);
}

static void publish(void *context, const char *endpoint, unsigned subscribers, double per_second) {
    char frame[EVENT_BYTES];
    void *socket = zmq_socket(context, XPUB);
    set(socket, OPT_XPUB_VERBOSE, 1);
    set(socket, OPT_LINGER, 0);
    if (per_second == 0) { set(socket, OPT_XPUB_NODROP, 1); set(socket, OPT_SNDTIMEO, 20); }
    wait_for_go(bound(socket, endpoint));
    for (unsigned at = 0; at < subscribers; at++)
        if (zmq_recv(socket, frame, sizeof frame, 0) < 0) fail("zmq_recv");
    double cpu = cpu_seconds();
    uint64_t began = now(), end = began + warm_up_ns + time_ns, n = 0;
    while (now() < end) {
        uint64_t due = now();
        if (per_second > 0) {
            due = began + (uint64_t)((double)(n + 1) * 1e9 / per_second);
            sleep_until(due);
        }
        event(frame, due, ++n);
        while (zmq_send(socket, frame, EVENT_BYTES, 0) < 0 && now() < end) {}
    }
    say(1, cpu, 0);
}

static uint64_t field(const char *frame, int length, const char *key) {
    const char *found = memmem(frame, (size_t)length, key, strlen(key));
    uint64_t value = found ? strtoull(found + strlen(key), NULL, 10) : 0;
    return value > EIGHTEEN_DIGITS ? value - EIGHTEEN_DIGITS : value;
}

static void *subscriber(void *context, const char *endpoint) {
    void *socket = zmq_socket(context, SUB);
    set(socket, OPT_RCVTIMEO, 20);
    set(socket, OPT_LINGER, 0);
    if (zmq_setsockopt(socket, OPT_SUBSCRIBE, TOPIC, sizeof TOPIC)) fail("zmq_setsockopt");
    if (zmq_connect(socket, endpoint)) fail("zmq_connect");
    return socket;
}

static void subscribe(void *context, const char *endpoint) {
    static char frame[65536];
    void *socket = subscriber(context, endpoint);
    wait_for_go(endpoint);
    double cpu = cpu_seconds();
    uint64_t from = now() + warm_up_ns, end = from + time_ns, last = 0, lost = 0, at = now();
    while (at < end) {
        int length = zmq_recv(socket, frame, sizeof frame - 1, 0);
        at = now();
        if (length < 0) continue;
        frame[length] = 0;
        uint64_t due = field(frame, length, "\"at\":"), n = field(frame, length, "\"n\":");
        if (!due) continue;
        if (last && n > last + 1) lost += n - last - 1;
        last = n;
        if (at >= from && at < end) record(at > due ? at - due : 0);
    }
    say(0, cpu, lost);
}

int main(int argc, char **argv) {
    unsigned long long warm_up_ms, time_ms;
    if (argc < 3) return 2;
    load(argv[1]);
    if (!strcmp(argv[2], "version")) {
        int major, minor, patch;
        zmq_version(&major, &minor, &patch);
        printf("%d.%d.%d\n", major, minor, patch);
        return 0;
    }
    char job[64];
    if (argc < 4 || !fgets(job, sizeof job, stdin) || sscanf(job, "%llu %llu", &warm_up_ms, &time_ms) != 2) return 2;
    warm_up_ns = warm_up_ms * 1000000;
    time_ns = time_ms * 1000000;
    void *context = zmq_ctx_new();
    const char *role = argv[2], *endpoint = argv[3];
    if (!strcmp(role, "router")) router(context, endpoint);
    else if (!strcmp(role, "dealer") && argc == 6) dealer(context, endpoint, (unsigned)atoi(argv[4]), (unsigned)atoi(argv[5]));
    else if (!strcmp(role, "pub") && argc == 6) publish(context, endpoint, (unsigned)atoi(argv[4]), atof(argv[5]));
    else if (!strcmp(role, "sub")) subscribe(context, endpoint);
    else if (!strcmp(role, "stall")) { subscriber(context, endpoint); wait_for_go(endpoint); idle(); }
    else return 2;
    wait_for_end();
}
