/* population: what its files share.
 *
 *   population.c          options, commands, the event loop
 *   population_clients.c  connections: handshake, frames, pings
 *   population_lines.c    texts that differ from client to client
 *   population_loop.c     the publisher: closed loop and open loop
 *   population_posts.c    clients that publish through their own sockets
 *   population_ticks.c    what each client holds of the symbols that it watches
 *   population_changes.c  clients that ask for another rate or list, by the clock
 *   population_thin.c     clients behind slow links
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
    WATCH_CHANGES = UINT32_MAX - 3,
    WATCH_THIN = UINT32_MAX - 4,
};

struct client {
    int fd;
    uint8_t state;
    bool ready;
    uint32_t received;   /* messages since the last reset */
    uint32_t rest_bytes; /* the begun frame (or response head) that the last read ended in */
    uint32_t turn;       /* changes that it has sent */
    uint64_t asked_ns;   /* when the change that is not answered yet was due; 0: there is none */
    char *rest;
};

struct options {
    const char *server, *path, *ready_text, *publish, *publish_hello, *ping, *pong, *each, *post, *lines, *answers, *watches, *refused;
    const char *sends[MAX_SENDS];
    int send_count;
    uint32_t connections, opening, sources, symbols, thin;
};

struct counts {
    uint64_t messages, payload_bytes, wire_bytes, reads, pings, excess;
};

enum {
    SUB_BUCKETS = 32, /* of a histogram, for each power of two: 3 % resolution */
    BUCKETS = 64 * SUB_BUCKETS,
};
struct histogram {
    uint64_t buckets[BUCKETS], count, total_ns, worst_ns;
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
void read_some(struct client *client, size_t most); /* at most so many bytes, of what has come */
void stall(uint32_t count);

/* population_lines.c */
void read_lines(void); /* of --lines, --answers and --watches, where they are given */
size_t fill_in(char *to, size_t room, const char *text, uint32_t index); /* `text` with client INDEX's own line in it */
const char *answer_to(uint32_t index); /* what client INDEX must be told to be ready; NULL: anything */

const char *watches_of(uint32_t index); /* its list of --watches */

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

/* population_ticks.c */
void prepare_ticks(void);
void reset_ticks(void);
void report_ticks(void);
void compare_held(size_t length);
uint32_t swap_spare(uint32_t index, uint32_t *removed);
/* Ticks in a text; returns how many. NOW_NS 0: what was newest before this client came, which has no latency. */
uint32_t take_ticks(struct client *client, const char *text, size_t length, uint64_t now_ns);
void take_lines(struct client *client, const char *payload, size_t length, uint64_t now_ns); /* of a message */

/* population_changes.c */
void start_changes(double per_second, double seconds, uint32_t count, size_t length);
void on_changes_due(void);
bool take_answer(struct client *client, const char *line, size_t length, uint64_t now_ns); /* false: it is none */

/* population_thin.c */
bool is_thin(uint32_t index);
void make_thin(int fd); /* before it connects */
void start_thin(double bytes_per_second);
void on_thin_due(void);

/* population_figures.c */
uint64_t clock_ns(clockid_t clock);
void reset(void);
void report(const char *event);
void note(struct histogram *histogram, uint64_t ns);
void print_times(const char *count_name, const struct histogram *times); /* members of a JSON object */
void write_stamp(char *digits, uint64_t ns); /* STAMP_DIGITS of them, without an end */
void measure_latency(const char *payload, size_t length, uint64_t now_ns);

#endif
