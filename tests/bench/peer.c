/*
 * peer.c - the other end of every connection: plain sockets, its own process, never preloaded.
 *
 *   source  writes batches of DATA messages on all connections as they take them, then one END on each
 *   sink    reads one connection until its END and reports the tally on standard output
 *   echo    answers each message with the same bytes until the connection closes
 *   quiet   one message on each connection once a byte arrives on the first, then nothing until they close
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "framing.h"
#include "harness.h"

/* One connection of the source: a batch, and how much of it has been handed to the kernel. */
struct outlet {
	char *batch;
	size_t sent;
	uint64_t seq;
};

/*
 * Writes what the connection takes of its batch, and fills the next one when that is out. A single connection blocks;
 * one of several that is full must not keep the others waiting. Returns 0 when the connection is full.
 */
static int feed(struct outlet *outlet, int fd, uint16_t conn, const struct options *opt)
{
	size_t per_batch = opt->batch_bytes / opt->size, len = per_batch * opt->size;
	ssize_t n;

	if (outlet->sent == len) {
		for (size_t i = 0; i < per_batch; i++)
			wire_fill(outlet->batch + i * opt->size, opt->size, conn, WIRE_DATA, outlet->seq++);
		outlet->sent = 0;
	}
	n = send(fd, outlet->batch + outlet->sent, len - outlet->sent, opt->conns > 1 ? MSG_DONTWAIT : 0);
	if (n < 0 && errno == EAGAIN)
		return 0;
	if (n < 0)
		die("send");
	outlet->sent += (size_t)n;
	return 1;
}

static void source(const struct options *opt, const int *fds)
{
	size_t len = opt->batch_bytes / opt->size * opt->size;
	struct outlet outlets[WIRE_CONNS_MAX];
	struct pollfd room[WIRE_CONNS_MAX];
	double stop = now_seconds() + opt->duration_ms * 1e-3;

	for (int conn = 0; conn < opt->conns; conn++) {
		outlets[conn] = (struct outlet){ .batch = calloc(1, len), .sent = len };
		room[conn] = (struct pollfd){ .fd = fds[conn], .events = POLLOUT };
		if (!outlets[conn].batch)
			die("calloc");
	}
	while (now_seconds() < stop) {
		int fed = 0;

		for (int conn = 0; conn < opt->conns; conn++)
			fed += feed(&outlets[conn], fds[conn], (uint16_t)conn, opt);
		if (!fed)
			poll(room, (nfds_t)opt->conns, -1);
	}
	for (int conn = 0; conn < opt->conns; conn++) {
		struct outlet *outlet = &outlets[conn];

		write_all(fds[conn], outlet->batch + outlet->sent, len - outlet->sent);
		wire_fill(outlet->batch, opt->size, (uint16_t)conn, WIRE_END, outlet->seq);
		write_all(fds[conn], outlet->batch, opt->size);
	}
	/* The receiver closes first: a FIN now would reach an attached socket as an error while messages are under way. */
	for (int conn = 0; conn < opt->conns; conn++) {
		while (read(fds[conn], outlets[conn].batch, len) > 0)
			;
		free(outlets[conn].batch);
	}
}

static void sink(const int *fds)
{
	struct tally tally = { 0 };
	struct framer framer;

	framer_init(&framer);
	while (tally.ends == 0) {
		ssize_t n = recv(fds[0], framer_space(&framer), FRAMER_RECV_BYTES, 0);

		if (n <= 0)
			die("recv");
		framer_take(&framer, (size_t)n, &tally);
	}
	framer_free(&framer);
	write_all(STDOUT_FILENO, &tally, sizeof tally);
}

static void echo(const struct options *opt, const int *fds)
{
	char *message = malloc(opt->size);

	if (!message)
		die("malloc");
	while (recv(fds[0], message, opt->size, MSG_WAITALL) == (ssize_t)opt->size)
		write_all(fds[0], message, opt->size);
	free(message);
}

static void quiet(const struct options *opt, const int *fds)
{
	char message[WIRE_MSG_MIN_BYTES] = { 0 };

	if (read(fds[0], message, 1) != 1)
		die("the go byte");
	wire_fill(message, sizeof message, 0, WIRE_DATA, 0);
	for (int conn = 0; conn < opt->conns; conn++)
		write_all(fds[conn], message, sizeof message);
	for (int conn = 0; conn < opt->conns; conn++)
		while (read(fds[conn], message, sizeof message) > 0)
			;
}

int main(int argc, char **argv)
{
	struct options opt = parse_options(argc, argv, "source");
	int *fds = calloc((size_t)opt.conns, sizeof *fds);

	if (!fds)
		die("calloc");
	raise_fd_limit();
	connect_all(&opt, fds);
	if (!strcmp(opt.mode, "source"))
		source(&opt, fds);
	else if (!strcmp(opt.mode, "sink"))
		sink(fds);
	else if (!strcmp(opt.mode, "echo"))
		echo(&opt, fds);
	else if (!strcmp(opt.mode, "quiet"))
		quiet(&opt, fds);
	else
		return 2;
	free(fds);
	return 0;
}
