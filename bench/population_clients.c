/* Clients: their connections, the handshake, frames in and out.
 *
 * Wire: RFC 6455, client side, without extensions. The handshake key is the RFC's own example (section 1.3), so the
 * right answer is known and needs no SHA-1 here. The mask is a constant too: the server has to unmask all the same.
 */
#include "population.h"

#define KEY "dGhlIHNhbXBsZSBub25jZQ=="
#define ACCEPT "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

enum { MAX_TEXT = 65535, STALLED_BUFFER = 4096 };
enum state { UNUSED, CONNECTING, HANDSHAKING, OPEN };

struct client *clients;
uint32_t ready_now, stalled;
static uint32_t started, opening_now;
static char request[2048];
static size_t request_bytes;

static size_t put_frame(char *to, size_t room, unsigned opcode, const char *payload, size_t length)
{
    static const unsigned char mask[4] = {0x37, 0xfa, 0x21, 0x3d};
    size_t head = length < 126 ? 2 : 4;
    if (length > 65535 || head + 4 + length > room)
        die("the texts to send are too long");
    to[0] = (char)(0x80 | opcode);
    if (head == 2) {
        to[1] = (char)(0x80 | length);
    } else {
        to[1] = (char)(0x80 | 126);
        to[2] = (char)(length >> 8);
        to[3] = (char)length;
    }
    memcpy(to + head, mask, 4);
    for (size_t i = 0; i < length; i++)
        to[head + 4 + i] = (char)((unsigned char)payload[i] ^ mask[i % 4]);
    return head + 4 + length;
}

/* What we send is small and the socket's buffer empty, so it is taken whole or something is wrong. */
static void send_all(struct client *client, const char *bytes, size_t length)
{
    if (length && send(client->fd, bytes, length, MSG_NOSIGNAL) != (ssize_t)length)
        die("connection %td: the socket did not take %zu bytes", client - clients, length);
}

void send_text(struct client *client, const char *text, size_t length)
{
    static char frame[MAX_TEXT + 8];
    send_all(client, frame, put_frame(frame, sizeof frame, 1, text, length));
}

static void greet(struct client *client)
{
    static char text[MAX_TEXT];
    for (int i = 0; i < options.send_count; i++)
        send_text(client, text, fill_in(text, sizeof text, options.sends[i], (uint32_t)(client - clients)));
}

static void answer(struct client *client, unsigned opcode, const char *payload, size_t length)
{
    char frame[256];
    counts.pings++;
    send_all(client, frame, put_frame(frame, sizeof frame, opcode, payload, length));
}

static void become_ready(struct client *client)
{
    client->ready = true;
    opening_now--;
    if (++ready_now == options.connections)
        report("ready");
}

static uint32_t messages_in(const char *payload, size_t length)
{
    if (!options.each)
        return 1;
    uint32_t found = 0;
    const char *at = payload, *end = payload + length;
    for (size_t size = strlen(options.each); (at = memmem(at, (size_t)(end - at), options.each, size)); at += size)
        found++;
    return found;
}

static void on_message(struct client *client, const char *payload, size_t length, uint64_t now_ns)
{
    if (length == strlen(options.ping) && !memcmp(payload, options.ping, length)) {
        answer(client, 1, options.pong, strlen(options.pong));
        return;
    }
    if (!client->ready) {
        /* The answer to a client's last command is one too when it says no, so this is looked at first. */
        if (options.refused && memmem(payload, length, options.refused, strlen(options.refused)))
            die("connection %td: refused: %.*s", client - clients, (int)length, payload);
        if (!memmem(payload, length, options.ready_text, strlen(options.ready_text)))
            return;
        const char *answer = answer_to((uint32_t)(client - clients));
        if (answer && !memmem(payload, length, answer, strlen(answer)))
            die("connection %td: another answer than its own", client - clients);
        if (options.symbols)
            take_ticks(client, payload, length, 0);
        become_ready(client);
        return;
    }
    if (options.symbols) {
        counts.messages++;
        counts.payload_bytes += length;
        take_lines(client, payload, length, now_ns);
        return;
    }
    uint32_t found = messages_in(payload, length);
    if (!found)
        return;
    counts.messages += found;
    counts.payload_bytes += length;
    measure_latency(payload, length, now_ns);
    for (; found; found--) {
        client->received++;
        advance_run(client->received);
        advance_posts(client);
    }
}

static void on_frame(struct client *client, unsigned first, const char *payload, size_t length, uint64_t now_ns)
{
    unsigned opcode = first & 15;
    if (opcode == 8)
        die("connection %td: closed by the server with code %d", client - clients,
            length < 2 ? 1005 : (unsigned char)payload[0] << 8 | (unsigned char)payload[1]);
    if (opcode == 9)
        answer(client, 10, payload, length);
    else if (opcode < 3 && first & 0x80) /* a message in fragments counts at its last one */
        on_message(client, payload, length, now_ns);
}

/* All whole frames of bytes[0..length); returns how many bytes they were. */
static size_t take_frames(struct client *client, const char *bytes, size_t length)
{
    const unsigned char *at = (const unsigned char *)bytes, *end = at + length;
    uint64_t now_ns = clock_ns(CLOCK_MONOTONIC);
    while (end - at >= 2) {
        size_t head = 2, payload = at[1] & 127;
        if (at[1] & 128)
            die("connection %td: a masked frame from the server", client - clients);
        if (payload >= 126) {
            size_t extra = payload == 126 ? 2 : 8;
            head += extra;
            if ((size_t)(end - at) < head)
                break;
            payload = 0;
            for (size_t i = 2; i < head; i++)
                payload = payload << 8 | at[i];
        }
        if (payload > READ_BYTES - 16)
            die("connection %td: a frame of %zu bytes", client - clients, payload);
        if ((size_t)(end - at) < head + payload)
            break;
        on_frame(client, at[0], (const char *)at + head, payload, now_ns);
        at += head + payload;
    }
    return (size_t)((const char *)at - bytes);
}

/* The response head, if it is complete; returns its length or 0. */
static size_t take_head(struct client *client, const char *bytes, size_t length)
{
    const char *end = memmem(bytes, length, "\r\n\r\n", 4);
    if (!end)
        return 0;
    size_t head = (size_t)(end - bytes) + 4;
    if (strncmp(bytes, "HTTP/1.1 101 ", 13))
        die("connection %td: the handshake was answered %.*s", client - clients, (int)strcspn(bytes, "\r\n\""), bytes);
    if (!memmem(bytes, head, ACCEPT, sizeof ACCEPT - 1))
        die("connection %td: a wrong Sec-WebSocket-Accept", client - clients);
    client->state = OPEN;
    greet(client);
    if (!options.ready_text)
        become_ready(client);
    return head;
}

static void keep_rest(struct client *client, const char *bytes, size_t length)
{
    if (!length && !client->rest)
        return;
    client->rest = realloc(client->rest, length ? length : 1);
    memmove(client->rest, bytes, length);
    client->rest_bytes = (uint32_t)length;
}

void read_some(struct client *client, size_t most)
{
    size_t have = client->rest_bytes, taken = 0;
    memcpy(buffer, client->rest ? client->rest : "", have);
    size_t room = sizeof buffer - have;
    ssize_t got = recv(client->fd, buffer + have, most < room ? most : room, 0);
    if (got < 0 && errno == EAGAIN)
        return;
    if (got <= 0)
        die("connection %td: lost: %s", client - clients, got ? strerror(errno) : "closed by the server");
    have += (size_t)got;
    counts.reads++;
    counts.wire_bytes += (uint64_t)got;
    if (client->state == HANDSHAKING)
        taken = take_head(client, buffer, have);
    if (client->state == OPEN)
        taken += take_frames(client, buffer + taken, have - taken);
    keep_rest(client, buffer + taken, have - taken);
}

/* Connecting */

/* Several source addresses, because one has only some 28,000 ports towards one server. */
static void bind_source(int fd, uint32_t index)
{
    struct sockaddr_in source = {.sin_family = AF_INET};
    int yes = 1;
    source.sin_addr.s_addr = htonl(INADDR_LOOPBACK + 1 + index % options.sources);
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &yes, sizeof yes);
    if (bind(fd, (struct sockaddr *)&source, sizeof source))
        die("bind: %s", strerror(errno));
}

static void start_client(uint32_t index)
{
    struct sockaddr_in server = address_of(options.server);
    struct client *client = &clients[index];
    struct linger reset_at_end = {.l_onoff = 1}; /* leaves no port in TIME_WAIT for the next round */
    int yes = 1;
    client->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (client->fd < 0)
        die("socket: %s", strerror(errno));
    setsockopt(client->fd, SOL_SOCKET, SO_LINGER, &reset_at_end, sizeof reset_at_end);
    setsockopt(client->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    bind_source(client->fd, index);
    if (is_thin(index))
        make_thin(client->fd);
    if (connect(client->fd, (struct sockaddr *)&server, sizeof server) && errno != EINPROGRESS)
        die("connect: %s", strerror(errno));
    client->state = CONNECTING;
    watch(client->fd, EPOLLOUT, index, EPOLL_CTL_ADD);
}

void start_clients(void)
{
    for (; started < options.connections && opening_now < options.opening; opening_now++)
        start_client(started++);
}

static void on_connected(struct client *client)
{
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(client->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error)
        die("connection %td: %s", client - clients, strerror(error));
    client->state = HANDSHAKING;
    watch(client->fd, EPOLLIN, (uint32_t)(client - clients), EPOLL_CTL_MOD);
    send_all(client, request, request_bytes);
}

void on_client(struct client *client)
{
    if (client->state == CONNECTING)
        on_connected(client);
    else
        read_some(client, READ_BYTES);
}

void prepare_clients(void)
{
    clients = calloc(options.connections, sizeof *clients);
    request_bytes = (size_t)snprintf(request, sizeof request,
        "GET %s HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: " KEY "\r\nSec-WebSocket-Version: 13\r\n\r\n", options.path, options.server);
    if (request_bytes >= sizeof request)
        die("--path is too long");
}

/* A small receive buffer, so that the server soon notices. */
void stall(uint32_t count)
{
    int bytes = STALLED_BUFFER;
    if (count < stalled || count >= options.connections)
        die("stall: found %u; allowed: %u to %u", count, stalled, options.connections - 1);
    for (; stalled < count; stalled++) {
        setsockopt(clients[stalled].fd, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof bytes);
        watch(clients[stalled].fd, 0, stalled, EPOLL_CTL_DEL);
    }
}
