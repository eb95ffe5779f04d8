/* topics_loop: the limit where clients differ in what they are subscribed to.
 *
 * Does: for each batch of the control connection, lines "TOPIC TEXT" up to an empty one, send every client what it is
 * subscribed to in one send(), joined once for clients with the same topics in a row; send what a client posts to all
 * subscribers of its topic.
 * Does not: keep what a socket did not take; it dies instead.
 * Clients say "+1 5 17" to subscribe, which is answered "ok", and ">TOPIC TEXT" to post. A topic is a number.
 */
#include "loop_server.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_TOPICS = 1024, WORDS = MAX_TOPICS / 64 };

struct topics {
    uint64_t bits[WORDS];
};

static struct topics *wanted[MAX_FDS];
static struct {
    int *fds, count;
} subscribers[MAX_TOPICS];
static struct {
    unsigned topic;
    size_t begin, length;
} frames[MAX_BATCH / 8];
static unsigned frame_count;
static char framed[2 * MAX_BATCH], joined[2 * MAX_BATCH]; /* all frames of the batch; those for one set of topics */
static size_t framed_bytes;

static unsigned topic_at(const char *text, char **end)
{
    unsigned long topic = strtoul(text, end, 10);
    if (*end == text || topic >= MAX_TOPICS)
        die("not a topic");
    return (unsigned)topic;
}

static void subscribe(int fd, unsigned topic)
{
    int count = subscribers[topic].count++;
    subscribers[topic].fds = realloc(subscribers[topic].fds, (size_t)(count + 1) * sizeof(int));
    subscribers[topic].fds[count] = fd;
    wanted[fd]->bits[topic / 64] |= 1ull << topic % 64;
}

void on_leave(int fd)
{
    for (unsigned topic = 0; wanted[fd] && topic < MAX_TOPICS; topic++)
        for (int i = 0; wanted[fd]->bits[topic / 64] >> topic % 64 & 1 && i < subscribers[topic].count; i++)
            if (subscribers[topic].fds[i] == fd)
                subscribers[topic].fds[i--] = subscribers[topic].fds[--subscribers[topic].count];
    free(wanted[fd]);
    wanted[fd] = NULL;
}

static void post(const char *text, size_t length)
{
    char frame[65535 + 4], *body;
    unsigned topic = topic_at(text, &body);
    size_t size = length - (size_t)(++body - text), head = frame_head(frame, size);
    memcpy(frame + head, body, size);
    for (int i = 0; i < subscribers[topic].count; i++)
        send_whole(subscribers[topic].fds[i], frame, head + size);
}

void on_text(int fd, char *text, size_t length)
{
    char line[65536], *at = line + 1;
    memcpy(line, text, length);
    line[length] = 0;
    if (*line == '>') {
        post(line + 1, length - 1);
        return;
    }
    if (!wanted[fd])
        wanted[fd] = calloc(1, sizeof **wanted);
    while (*at)
        subscribe(fd, topic_at(at, &at));
    send_whole(fd, "\x81\x02ok", 4);
}

static size_t join(const struct topics *topics)
{
    size_t size = 0;
    for (unsigned i = 0; i < frame_count; i++)
        if (topics->bits[frames[i].topic / 64] >> frames[i].topic % 64 & 1) {
            memcpy(joined + size, framed + frames[i].begin, frames[i].length);
            size += frames[i].length;
        }
    return size;
}

static void flush(void)
{
    const struct topics *last = NULL;
    size_t size = 0;
    for (int i = 0; i < client_count; i++) {
        const struct topics *topics = wanted[clients[i]];
        if (!topics)
            continue;
        if (!last || memcmp(last, topics, sizeof *topics))
            size = join(last = topics);
        if (size)
            send_whole(clients[i], joined, size);
    }
    frame_count = 0;
    framed_bytes = 0;
}

static void add(const char *line, size_t length)
{
    char *text;
    unsigned topic = topic_at(line, &text);
    size_t size = length - (size_t)(++text - line), head = frame_head(framed + framed_bytes, size);
    memcpy(framed + framed_bytes + head, text, size);
    frames[frame_count].topic = topic;
    frames[frame_count].begin = framed_bytes;
    frames[frame_count++].length = head + size;
    framed_bytes += head + size;
}

void on_lines(char *lines, size_t length)
{
    for (char *begin = lines, *end; begin < lines + length; begin = end + 1) {
        end = memchr(begin, '\n', (size_t)(lines + length - begin));
        if (end == begin)
            flush();
        else
            add(begin, (size_t)(end - begin));
    }
}
