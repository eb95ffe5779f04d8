/* population: N WebSocket clients in one process, and the publisher that feeds them through the server.
 *
 * Does: open the connections, send each the same text frames, say when all are ready; count what each receives; publish
 * a template in a closed loop; keep a histogram of latencies; answer pings.
 * Does not: judge. It prints figures, and its own CPU time with them, so that the runner can tell when the population
 * was the bottleneck.
 * Called by: bench/rig/population.py, which speaks the commands below.
 * Never break: a run is over when EVERY connection has received every message, and its line carries the least and the
 * most that one connection got, so "everybody got everything" is counted, not assumed.
 *
 *   population --server 127.0.0.1:PORT [--path /] [--connections N] [--send TEXT]... [--ready-text TEXT]
 *              [--publish HOST:PORT|unix:/PATH] [--publish-hello TEXT] [--ping TEXT --pong TEXT] [--opening N]
 *              [--sources N] [--each TEXT] [--post TEXT] [--lines FILE] [--answers FILE]
 *              [--symbols N --watches FILE] [--thin N] [--refused TEXT]
 *
 * --each: a frame holds as many messages as it holds TEXT, none perhaps; without it every frame is one message.
 * --refused: a message with it before a client is ready is an answer of no: it ends the measurement, with the message.
 * --lines: texts that end with NUL, one for each client; it stands for %LINE% in its --send and --post texts.
 * --answers: likewise; the message that makes a client ready must contain its own, or the measurement ends.
 * --symbols, --watches: messages are ticks, and each client's are compared with its list, see population_ticks.c.
 * --thin: the first N clients have slow links, see population_thin.c; given behind --connections.
 *
 * Commands on standard input, one JSON line on standard output for each event:
 *   template LENGTH\n + LENGTH bytes   what is written to --publish for one batch; the digits behind the first
 *                                      "t":" in it are replaced by the time, CLOCK_MONOTONIC in ns
 *   run BATCHES IN_FLIGHT EACH         publish BATCHES, of which every client receives EACH messages, the next one as
 *                                      soon as fewer than IN_FLIGHT have not yet reached everybody; answers
 *                                      {"event":"run",...}
 *   pace MESSAGES PER_SECOND           publish them by the clock, whatever has arrived; the time in a message is the
 *                                      one at which it was due, so that a late publisher counts; answers as `run`
 *   post MESSAGES EACH                 every client sends --post, again as soon as it has received EACH messages for
 *                                      each of its own; answers as `run`
 *   stall N                            the first N clients read no more and are left out of what is waited for and of
 *                                      "least" and "most"
 *   thin BYTES_PER_SECOND              so fast are the thin links from now on
 *   change PER_S SECONDS COUNT LENGTH\n + LENGTH bytes
 *                                      every client sends the COUNT texts, each ended by NUL, in turn; answers
 *                                      {"event":"changes",...} once all of it is answered
 *   held LENGTH\n + LENGTH bytes       the newest `seq` of each symbol, in order; answers {"event":"held",...} with how
 *                                      many watched symbols are "held" so, are "behind", at how many "clients"
 *   ticks                              answers {"event":"ticks",...}, what the ticks since the last reset were like
 *   reset | stats                      start counting anew | {"event":"stats",...}
 *   quit                               so does the end of standard input
 * {"event":"ready",...} comes by itself, once every connection is; {"event":"error","reason":"..."} ends the process.
 *
 * Further files: see population.h.
 */
#include "population.h"

#include <arpa/inet.h>
#include <stdarg.h>

enum { EVENTS = 512 };

struct options options = {.path = "/", .ping = "{}", .pong = "{}", .connections = 1, .opening = 128, .sources = 8};
char buffer[READ_BYTES];
static int epoll_fd;

void die(const char *format, ...)
{
    char reason[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(reason, sizeof reason, format, arguments);
    va_end(arguments);
    printf("{\"event\":\"error\",\"reason\":\"");
    for (const char *at = reason; *at; at++) /* it may quote what a server sent */
        printf(*at < ' ' ? "\\u%04x" : strchr("\"\\", *at) ? "\\%c" : "%c", *at < 0 ? '?' : *at);
    printf("\"}\n");
    fflush(stdout);
    _exit(1);
}

void watch(int fd, uint32_t events, uint32_t who, int operation)
{
    struct epoll_event event = {.events = events, .data.u32 = who};
    if (epoll_ctl(epoll_fd, operation, fd, &event))
        die("epoll_ctl: %s", strerror(errno));
}

struct sockaddr_in address_of(const char *text)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    char host[64];
    unsigned port = 0;
    if (sscanf(text, "%63[0-9.]:%u", host, &port) != 2 || !inet_aton(host, &address.sin_addr) || port > 65535)
        die("not an address: %s; allowed: IP:PORT", text);
    address.sin_port = htons((uint16_t)port);
    return address;
}

/* Commands */

/* Standard input is unbuffered, so that stdio never holds a command that epoll does not know of. */
static void on_command(void)
{
    char line[128];
    unsigned total, in_flight, each;
    double per_second, seconds;
    size_t length;
    if (!fgets(line, sizeof line, stdin) || !strcmp(line, "quit\n"))
        exit(0);
    if (sscanf(line, "run %u %u %u", &total, &in_flight, &each) == 3)
        start_run(total, in_flight, each);
    else if (sscanf(line, "pace %u %lf", &total, &per_second) == 2)
        start_pace(total, per_second);
    else if (sscanf(line, "post %u %u", &total, &each) == 2)
        start_posts(total, each);
    else if (sscanf(line, "change %lf %lf %u %zu", &per_second, &seconds, &total, &length) == 4)
        start_changes(per_second, seconds, total, length);
    else if (sscanf(line, "thin %lf", &per_second) == 1)
        start_thin(per_second);
    else if (sscanf(line, "held %zu", &length) == 1)
        compare_held(length);
    else if (!strcmp(line, "ticks\n"))
        report_ticks();
    else if (sscanf(line, "stall %u", &total) == 1)
        stall(total);
    else if (sscanf(line, "template %zu", &length) == 1)
        read_template(length);
    else if (!strcmp(line, "reset\n"))
        reset();
    else if (!strcmp(line, "stats\n"))
        report("stats");
    else
        die("unknown command");
}

static uint32_t number(const char *text, uint32_t most)
{
    unsigned long value = strtoul(text, NULL, 10);
    if (!value || value > most)
        die("found %s; allowed: 1 to %u", text, most);
    return (uint32_t)value;
}

static const struct {
    const char *name, **value;
} texts[] = {
    {"--server", &options.server}, {"--path", &options.path},   {"--ready-text", &options.ready_text},
    {"--publish", &options.publish}, {"--publish-hello", &options.publish_hello}, {"--ping", &options.ping},
    {"--pong", &options.pong}, {"--each", &options.each}, {"--post", &options.post}, {"--lines", &options.lines},
    {"--answers", &options.answers}, {"--watches", &options.watches}, {"--refused", &options.refused},
};

static bool set_text(const char *name, const char *value)
{
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        if (!strcmp(name, texts[i].name)) {
            *texts[i].value = value;
            return true;
        }
    return false;
}

static void set_option(const char *name, const char *value)
{
    if (set_text(name, value))
        return;
    if (!strcmp(name, "--connections"))
        options.connections = number(value, 1000000);
    else if (!strcmp(name, "--opening"))
        options.opening = number(value, 65536);
    else if (!strcmp(name, "--sources"))
        options.sources = number(value, 200);
    else if (!strcmp(name, "--symbols"))
        options.symbols = number(value, 100000);
    else if (!strcmp(name, "--thin"))
        options.thin = number(value, options.connections);
    else if (!strcmp(name, "--send") && options.send_count < MAX_SENDS)
        options.sends[options.send_count++] = value;
    else
        die("unknown option %s", name);
}

static void read_options(int count, char **words)
{
    for (int i = 1; i < count; i += 2) {
        if (i + 1 == count)
            die("%s needs a value", words[i]);
        set_option(words[i], words[i + 1]);
    }
    if (!options.server)
        die("--server is needed");
}

int main(int count, char **words)
{
    struct epoll_event events[EVENTS];
    read_options(count, words);
    setvbuf(stdin, NULL, _IONBF, 0);
    read_lines();
    prepare_clients();
    prepare_ticks();
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    reset();
    if (options.publish)
        connect_publisher();
    watch(STDIN_FILENO, EPOLLIN, WATCH_INPUT, EPOLL_CTL_ADD);
    for (;;) {
        start_clients();
        int found = epoll_wait(epoll_fd, events, EVENTS, -1);
        for (int i = 0; i < found; i++) {
            uint32_t who = events[i].data.u32;
            if (who == WATCH_INPUT)
                on_command();
            else if (who == WATCH_PUBLISHER)
                drain_publisher();
            else if (who == WATCH_CLOCK)
                on_clock();
            else if (who == WATCH_CHANGES)
                on_changes_due();
            else if (who == WATCH_THIN)
                on_thin_due();
            else
                on_client(&clients[who]);
        }
    }
}
