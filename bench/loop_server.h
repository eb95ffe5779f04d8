/* loop_server: what the two limits share: listen, handshake, text frames in, lines of the control connection.
 *
 * A limit says what a line, the end of a batch and a client's text mean to it; the rest is here.
 */
#ifndef LOOP_SERVER_H
#define LOOP_SERVER_H
#define _GNU_SOURCE
#include <stddef.h>

enum { MAX_FDS = 1 << 16, MAX_BATCH = 1 << 20 };

/* loop_server.c */
extern int clients[MAX_FDS], client_count; /* those whose handshake is done */
void die(const char *what) __attribute__((noreturn));
size_t frame_head(char *to, size_t length);              /* of a text frame; at most 4 bytes */
void send_whole(int fd, const char *bytes, size_t length); /* or die: a limit neither drops nor queues */

/* What a limit defines. */
void on_lines(char *lines, size_t length); /* whole lines, each with its newline, as one read brought them */
void on_text(int fd, char *text, size_t length);
void on_leave(int fd);

#endif
