/* loop_server: the part of a limit that no delivery passes.
 *
 * Does: accept WebSocket clients, answer their handshake, hand on their text frames and the lines of the control
 * connection.
 * Does not: answer pings, join frames in pieces, or serve anybody but population.c, whose constant handshake key and
 * short frames it expects.
 * Called by: bench/rig/servers.py, as broadcast_loop or topics_loop. Prints one line when it listens:
 * {"port":P,"control":C}; ends with standard input.
 */
#include "loop_server.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define KEY "dGhlIHNhbXBsZSBub25jZQ=="
#define ANSWER "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" \
               "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"

enum { BACKLOG = 4096, EVENTS = 512 };

int clients[MAX_FDS], client_count;
static int epoll_fd, client_listener, control_listener, control_fd = -1;
static int place_of[MAX_FDS]; /* fd to its place in `clients`, plus one */
static char batch[MAX_BATCH], scratch[65536];
static size_t batch_bytes;

void die(const char *what)
{
    fprintf(stderr, "limit: %s: %s\n", what, strerror(errno));
    exit(1);
}

void send_whole(int fd, const char *bytes, size_t length)
{
    if (send(fd, bytes, length, MSG_NOSIGNAL) != (ssize_t)length)
        die("send");
}

size_t frame_head(char *to, size_t length)
{
    size_t head = length < 126 ? 2 : 4;
    to[0] = (char)0x81;
    to[1] = (char)(length < 126 ? length : 126);
    if (head == 4) {
        to[2] = (char)(length >> 8);
        to[3] = (char)length;
    }
    return head;
}

static void watch(int fd)
{
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    if (fd >= MAX_FDS || epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event))
        die("epoll_ctl");
}

static int listen_on_loopback(int *port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int yes = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes); /* accepted sockets inherit it */
    if (bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, BACKLOG))
        die("listen");
    getsockname(fd, (struct sockaddr *)&address, &size);
    *port = ntohs(address.sin_port);
    watch(fd);
    return fd;
}

static int accept_one(int listener)
{
    int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd >= 0)
        watch(fd);
    else if (errno != EAGAIN)
        die("accept");
    return fd;
}

static void drop(int fd)
{
    if (place_of[fd]) {
        int last = clients[--client_count];
        clients[place_of[fd] - 1] = last;
        place_of[last] = place_of[fd];
        place_of[fd] = 0;
        on_leave(fd);
    }
    close(fd);
}

/* The population's request is one small segment: a head in pieces is not for this server. */
static void shake_hands(int fd, size_t got)
{
    if (!memmem(scratch, got, KEY, sizeof KEY - 1) ||
        send(fd, ANSWER, sizeof ANSWER - 1, MSG_NOSIGNAL) != sizeof ANSWER - 1) {
        drop(fd);
        return;
    }
    clients[client_count++] = fd;
    place_of[fd] = client_count;
}

/* One masked frame; the length behind it, or 0 for one that is not whole. */
static size_t take_frame(int fd, unsigned char *at, size_t left)
{
    if (left < 6)
        return 0;
    size_t head = (at[1] & 127) < 126 ? 2 : 4;
    size_t payload = head == 2 ? at[1] & 127 : (size_t)at[2] << 8 | at[3];
    unsigned char *mask = at + head, *text = mask + 4;
    if (left < head + 4 + payload)
        return 0;
    for (size_t i = 0; i < payload; i++)
        text[i] ^= mask[i % 4];
    if ((at[0] & 15) == 1)
        on_text(fd, (char *)text, payload);
    return head + 4 + payload;
}

static void on_client(int fd)
{
    ssize_t got = recv(fd, scratch, sizeof scratch, 0);
    if (got <= 0) {
        drop(fd);
    } else if (!place_of[fd]) {
        shake_hands(fd, (size_t)got);
    } else {
        size_t taken = 0, frame;
        while (taken < (size_t)got && (frame = take_frame(fd, (unsigned char *)scratch + taken, (size_t)got - taken)))
            taken += frame;
        if (taken != (size_t)got)
            die("a frame in pieces");
    }
}

static void on_control(void)
{
    ssize_t got = recv(control_fd, batch + batch_bytes, MAX_BATCH - batch_bytes, 0);
    if (got <= 0) {
        close(control_fd);
        control_fd = -1;
        batch_bytes = 0;
        return;
    }
    batch_bytes += (size_t)got;
    char *end = memrchr(batch, '\n', batch_bytes);
    size_t whole = end ? (size_t)(end - batch) + 1 : 0;
    if (whole)
        on_lines(batch, whole);
    batch_bytes -= whole;
    memmove(batch, batch + whole, batch_bytes);
    if (batch_bytes == MAX_BATCH)
        die("a line is too long");
}

static void on_event(int fd)
{
    if (fd == client_listener)
        accept_one(fd);
    else if (fd == control_listener)
        control_fd = accept_one(fd);
    else if (fd == control_fd)
        on_control();
    else if (fd == STDIN_FILENO)
        exit(0); /* nothing is ever said there: it was closed */
    else
        on_client(fd);
}

int main(void)
{
    struct epoll_event events[EVENTS];
    int port, control;
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    client_listener = listen_on_loopback(&port);
    control_listener = listen_on_loopback(&control);
    watch(STDIN_FILENO);
    printf("{\"port\":%d,\"control\":%d}\n", port, control);
    fflush(stdout);
    for (;;) {
        int found = epoll_wait(epoll_fd, events, EVENTS, -1);
        for (int i = 0; i < found; i++)
            on_event(events[i].data.fd);
    }
}
