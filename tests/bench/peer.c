/*
 * peer.c - the other end of every connection: plain sockets, its own process, never preloaded.
 *
 *   source  writes batches of DATA messages on all connections in turn, then one END on each
 *   sink    reads one connection until its END and reports the tally on standard output
 *   echo    answers each message with the same bytes until the connection closes
 *   quiet   one message on each connection once a byte arrives on the first, then nothing until they close
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "framing.h"
#include "harness.h"

static void source(const struct options *opt, const int *fds)
{
	size_t per_batch = opt->batch_bytes / opt->size;
	char *batch = calloc(per_batch, opt->size), *end = calloc(1, opt->size);
	uint64_t seq[WIRE_CONNS_MAX] = { 0 };
	double stop = now_seconds() + opt->duration_ms * 1e-3;

	if (!batch || !end)
		die("calloc");
	while (now_seconds() < stop) {
		for (int conn = 0; conn < opt->conns; conn++) {
			for (size_t i = 0; i < per_batch; i++)
				wire_fill(batch + i * opt->size, opt->size, (uint16_t)conn, WIRE_DATA, seq[conn]++);
			write_all(fds[conn], batch, per_batch * opt->size);
		}
	}
	for (int conn = 0; conn < opt->conns; conn++) {
		wire_fill(end, opt->size, (uint16_t)conn, WIRE_END, seq[conn]);
		write_all(fds[conn], end, opt->size);
	}
	/* The receiver closes first: a FIN now would reach an attached socket as an error while messages are under way. */
	for (int conn = 0; conn < opt->conns; conn++)
		while (read(fds[conn], end, opt->size) > 0)
			;
	free(batch);
	free(end);
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
