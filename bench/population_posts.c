/* Posts: clients that publish through their own sockets, each in a closed loop of its own.
 *
 * A client posts again when it has everything that its last post and those of its room brought: EACH messages. Nobody
 * waits for other rooms, so the server always has something to do.
 */
#include "population.h"

enum { MAX_POST = 4096 };

static struct {
    bool active;
    uint32_t total, each, done; /* done: clients that have everything */
} posts;

static void post(struct client *client)
{
    static char text[MAX_POST];
    size_t length = fill_in(text, sizeof text, options.post, (uint32_t)(client - clients));
    char *marker = memmem(text, length, MARKER, sizeof MARKER - 1);
    if (!marker || marker + sizeof MARKER - 1 + STAMP_DIGITS > text + length)
        die("--post has no room for a time");
    write_stamp(marker + sizeof MARKER - 1, clock_ns(CLOCK_MONOTONIC));
    send_text(client, text, length);
}

void advance_posts(struct client *client)
{
    if (!posts.active || client->received % posts.each)
        return;
    uint32_t sent = client->received / posts.each;
    if (sent < posts.total)
        post(client);
    else if (sent > posts.total)
        counts.excess++;
    else if (++posts.done == options.connections) {
        posts.active = false;
        report("run");
    }
}

void start_posts(uint32_t total, uint32_t each)
{
    if (!options.post || !total || !each)
        die("post needs --post, a number of messages, and how many of them a client receives for each of its own");
    reset();
    posts.active = true;
    posts.total = total;
    posts.each = each;
    posts.done = 0;
    stamped = true;
    for (uint32_t i = 0; i < options.connections; i++)
        post(&clients[i]);
}
