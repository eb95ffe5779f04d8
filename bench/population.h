/* population: what its four files share.
 *
 *   population.c          options, commands, the event loop
 *   population_clients.c  connections: handshake, frames, pings
 *   population_lines.c    texts that differ from client to client
 *   population_loop.c     the publisher: closed loop and open loop
 *   population_posts.c    clients that publish through their own sockets
 *   population_figures.c  counts, latencies, the JSON lines
 */
#ifndef POPULATION_H
#define POPULATION_H
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MARKER "\"t\":\""
enum {
    STAMP_DIGITS = 19,      /* ns since boot, with leading zeros */
    READ_BYTES = 1 << 18,   /* one read, and the largest frame */
    MAX_SENDS = 16,         /* --send options */
};
enum { /* else epoll's data is a client's index */
    WATCH_INPUT = UINT32_MAX,
    WATCH_PUBLISHER = UINT32_MAX - 1,
    WATCH_CLOCK = UINT32_MAX - 2,
};

struct client {
    int fd;
    uint8_t state;
    bool ready;
    uint32_t received;   /* messages since the last reset */
    uint32_t rest_bytes; /* the begun frame (or response head) that the last read ended in */
    char *rest;
};

struct options {
    const char *server, *path, *ready_text, *publish, *publish_hello, *ping, *pong, *each, *post, *lines, *answers;
    const char *sends[MAX_SENDS];
    int send_count;
    uint32_t connections, opening, sources;
};

struct counts {
    uint64_t messages, payload_bytes, wire_bytes, reads, pings, excess;
};

extern struct options options;
extern struct counts counts;   /* since the last reset */
extern struct client *clients; /* options.connections of them */
extern char buffer[READ_BYTES];
extern bool stamped;           /* messages carry times */
extern uint32_t stalled;       /* the first so many clients read nothing and are not waited for */

/* population.c */
void die(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn)); /* as an "error" line */
void watch(int fd, uint32_t events, uint32_t who, int operation);
struct sockaddr_in address_of(const char *text); /* of "IP:PORT" */

/* population_clients.c */
extern uint32_t ready_now;
void prepare_clients(void); /* builds what every client sends; needs the options */
void start_clients(void);   /* as many as may be in their handshake at a time; call it once per turn */
void on_client(struct client *client);
void send_text(struct client *client, const char *text, size_t length);
void stall(uint32_t count);

/* population_lines.c */
void read_lines(void); /* of --lines and --answers, where they are given */
size_t fill_in(char *to, size_t room, const char *text, uint32_t index); /* `text` with client INDEX's own line in it */
const char *answer_to(uint32_t index); /* what client INDEX must be told to be ready; NULL: anything */

/* population_loop.c */
void connect_publisher(void);
void drain_publisher(void);
void read_template(size_t length);
void start_run(uint32_t total, uint32_t in_flight, uint32_t each);
void start_pace(uint32_t total, double per_second);
void on_clock(void);
void advance_run(uint32_t received); /* one client has so many messages now */

/* population_posts.c */
void start_posts(uint32_t total, uint32_t each);
void advance_posts(struct client *client);

/* population_figures.c */
uint64_t clock_ns(clockid_t clock);
void reset(void);
void report(const char *event);
void write_stamp(char *digits, uint64_t ns); /* STAMP_DIGITS of them, without an end */
void measure_latency(const char *payload, size_t length, uint64_t now_ns);

#endif
