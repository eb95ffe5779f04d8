/* Thin links: the first --thin clients read no faster than a line of so many bytes a second would bring it.
 *
 * What makes a link slow is its rate, and not that its far end forgets to read: few bytes are under way on it. So these
 * sockets have the smallest receive buffer that Linux gives, which offers some 2 KB, a fifth of a second at 10 KB/s, and
 * take small segments; with the buffers of the loopback a hundred times as much would lie in the client's own kernel,
 * and grow old there whatever the server does. (TCP_WINDOW_CLAMP does not bound it: measured on Linux 6.18.)
 */
#include "population.h"

#include <sys/timerfd.h>

enum {
    RECEIVE_BYTES = 2304, /* the kernel's least, socket(7) */
    SEGMENT_BYTES = 536, /* the least that every host takes, RFC 9293 section 3.7.1 */
    PERIOD_NS = 20000000,
};

static int timer_fd = -1;
static double per_ns, room;
static uint64_t last_ns;

bool is_thin(uint32_t index)
{
    return index < options.thin;
}

void make_thin(int fd)
{
    int bytes = RECEIVE_BYTES, segment = SEGMENT_BYTES;
    if (setsockopt(fd, IPPROTO_TCP, TCP_MAXSEG, &segment, sizeof segment) ||
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof bytes))
        die("a thin link: %s", strerror(errno));
}

/* From now on; until then they read like all others. */
void start_thin(double bytes_per_second)
{
    if (!options.thin || !(bytes_per_second >= 1 && bytes_per_second <= 1e9))
        die("thin: needs --thin; found %g bytes per second; allowed: 1 to 1e9", bytes_per_second);
    per_ns = bytes_per_second / 1e9;
    last_ns = clock_ns(CLOCK_MONOTONIC);
    if (timer_fd >= 0)
        return;
    struct itimerspec times = {.it_interval = {0, PERIOD_NS}, .it_value = {0, PERIOD_NS}};
    timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    timerfd_settime(timer_fd, 0, &times, NULL);
    watch(timer_fd, EPOLLIN, WATCH_THIN, EPOLL_CTL_ADD);
    for (uint32_t i = 0; i < options.thin; i++)
        watch(clients[i].fd, 0, i, EPOLL_CTL_DEL);
}

void on_thin_due(void)
{
    uint64_t expired, now_ns = clock_ns(CLOCK_MONOTONIC);
    if (read(timer_fd, &expired, sizeof expired) != sizeof expired)
        return;
    /* What a client did not use is gone, as on a line. A population that is late catches up with what it owes. */
    room += per_ns * (double)(now_ns - last_ns);
    last_ns = now_ns;
    size_t most = (size_t)room;
    room -= (double)most;
    for (uint32_t i = 0; most && i < options.thin; i++)
        read_some(&clients[i], most);
}
