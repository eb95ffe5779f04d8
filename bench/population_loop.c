/* Loop: the publisher, in a closed loop or by the clock.
 *
 * A batch is complete when every client has its part of it. To know that without a look at all of them, reached[] counts
 * for each batch in flight the clients that have it: with EACH messages a batch, who receives message k * EACH has
 * batch k.
 */
#include "population.h"

#include <sys/timerfd.h>
#include <sys/un.h>

enum {
    MAX_TEMPLATE = 1 << 20,
    RING = 1024, /* bounds what is in flight */
};

static struct {
    bool active;
    uint32_t total, in_flight, each, published, complete;
    uint32_t reached[RING]; /* [k % RING], zero again for the complete ones */
} run;

static struct {
    int fd;
    uint64_t first_ns, period_ns;
} pacer = {.fd = -1};

static int publisher_fd = -1;
static char *template_text;
static size_t template_bytes, template_stamp;

void connect_publisher(void)
{
    struct sockaddr_un local = {.sun_family = AF_UNIX};
    bool is_local = !strncmp(options.publish, "unix:", 5);
    int yes = 1, failed;
    publisher_fd = socket(is_local ? AF_UNIX : AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (is_local) {
        snprintf(local.sun_path, sizeof local.sun_path, "%s", options.publish + 5);
        failed = connect(publisher_fd, (struct sockaddr *)&local, sizeof local);
    } else {
        struct sockaddr_in remote = address_of(options.publish);
        setsockopt(publisher_fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
        failed = connect(publisher_fd, (struct sockaddr *)&remote, sizeof remote);
    }
    if (failed)
        die("connect to %s: %s", options.publish, strerror(errno));
    if (options.publish_hello && write(publisher_fd, options.publish_hello, strlen(options.publish_hello)) < 0)
        die("the publisher's hello: %s", strerror(errno));
    watch(publisher_fd, EPOLLIN, WATCH_PUBLISHER, EPOLL_CTL_ADD);
}

void read_template(size_t length)
{
    if (!length || length > MAX_TEMPLATE)
        die("a template of %zu bytes; allowed: 1 to %d", length, MAX_TEMPLATE);
    template_text = realloc(template_text, length);
    template_bytes = length;
    if (fread(template_text, 1, length, stdin) != length)
        die("the template ended early");
    char *marker = memmem(template_text, length, MARKER, sizeof MARKER - 1);
    stamped = marker;
    template_stamp = marker ? (size_t)(marker - template_text) + sizeof MARKER - 1 : 0;
    if (marker && template_stamp + STAMP_DIGITS > length)
        die("the template has no room for a time behind its marker");
}

static void publish_one(uint64_t due_ns)
{
    if (template_stamp)
        write_stamp(template_text + template_stamp, due_ns);
    if (write(publisher_fd, template_text, template_bytes) != (ssize_t)template_bytes)
        die("the publisher's connection did not take a message");
    run.published++;
}

static void publish_more(void)
{
    while (run.published < run.total && run.published - run.complete < run.in_flight)
        publish_one(clock_ns(CLOCK_MONOTONIC));
}

void advance_run(uint32_t received)
{
    if (!run.active || received % run.each)
        return;
    uint32_t batch = received / run.each;
    if (batch > run.published) {
        counts.excess++;
        return;
    }
    run.reached[batch % RING]++;
    while (run.complete < run.published && run.reached[(run.complete + 1) % RING] == options.connections - stalled)
        run.reached[++run.complete % RING] = 0;
    if (run.complete == run.total) {
        run.active = false;
        report("run");
    } else if (run.in_flight) {
        publish_more();
    }
}

static void begin(uint32_t total, uint32_t in_flight, uint32_t each)
{
    if (publisher_fd < 0 || !template_text || !total || !each || in_flight >= RING)
        die("a run needs --publish, a template, and at most %d in flight", RING - 1);
    reset();
    memset(&run, 0, sizeof run);
    run.active = true;
    run.total = total;
    run.in_flight = in_flight;
    run.each = each;
}

void start_run(uint32_t total, uint32_t in_flight, uint32_t each)
{
    if (!in_flight)
        die("a closed loop needs 1 in flight or more");
    begin(total, in_flight, each);
    publish_more();
}

/* Nothing in flight is waited for: 0 stands for that. */
void start_pace(uint32_t total, double per_second)
{
    if (!(per_second >= 0.001 && per_second <= 1e6))
        die("found %g messages per second; allowed: 0.001 to 1e6", per_second);
    begin(total, 0, 1);
    if (pacer.fd < 0) {
        pacer.fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
        watch(pacer.fd, EPOLLIN, WATCH_CLOCK, EPOLL_CTL_ADD);
    }
    pacer.period_ns = (uint64_t)(1e9 / per_second);
    pacer.first_ns = clock_ns(CLOCK_MONOTONIC) + pacer.period_ns;
    struct itimerspec times = {
        .it_interval = {(time_t)(pacer.period_ns / 1000000000), (long)(pacer.period_ns % 1000000000)},
        .it_value = {(time_t)(pacer.first_ns / 1000000000), (long)(pacer.first_ns % 1000000000)},
    };
    timerfd_settime(pacer.fd, TFD_TIMER_ABSTIME, &times, NULL);
}

void on_clock(void)
{
    uint64_t due;
    static const struct itimerspec never;
    if (read(pacer.fd, &due, sizeof due) != sizeof due)
        return;
    for (; due && run.published < run.total; due--) {
        if (run.published - run.complete == RING - 1)
            die("the server is %d messages behind", RING - 1);
        publish_one(pacer.first_ns + run.published * pacer.period_ns);
    }
    if (run.published == run.total)
        timerfd_settime(pacer.fd, 0, &never, NULL);
}

void drain_publisher(void)
{
    ssize_t got = recv(publisher_fd, buffer, sizeof buffer, MSG_DONTWAIT);
    if (got == 0)
        die("the server closed the publisher's connection");
    if (got > 0 && buffer[0] == '-') /* an error reply of Redis */
        die("the publisher was refused: %.*s", (int)strcspn(buffer, "\r\n\""), buffer);
}
