/* broadcast_loop: the limit. A server that does nothing for a message but one bare send() for each client.
 *
 * Does: send each line of the control connection to all clients as one text frame, built once.
 * Does not: keep what a socket did not take; it dies instead: a limit that dropped or queued would not be one.
 *
 * It is what the kernel charges for a delivery on this machine: the loopback's receive path runs inside send(), so a
 * server in any language pays it too.
 */
#include "loop_server.h"

#include <string.h>

static char frame[65535 + 4];

static void broadcast(const char *text, size_t length)
{
    if (length > 65535)
        die("a line is too long");
    size_t head = frame_head(frame, length);
    memcpy(frame + head, text, length);
    for (int i = 0; i < client_count; i++)
        send_whole(clients[i], frame, head + length);
}

void on_lines(char *lines, size_t length)
{
    for (char *begin = lines, *end; begin < lines + length; begin = end + 1) {
        end = memchr(begin, '\n', (size_t)(lines + length - begin));
        broadcast(begin, (size_t)(end - begin));
    }
}

void on_text(int fd, char *text, size_t length)
{
    (void)fd, (void)text, (void)length;
}

void on_leave(int fd)
{
    (void)fd;
}
