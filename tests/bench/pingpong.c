/*
 * pingpong.c - round trips of one message against a peer that echoes, all calls blocking.
 *
 *   -m raw   send and recv on the TCP connection
 *   -m kcm   send and recv on a KCM socket it is attached to
 */
#include "kcm_user.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WARM_UP_ROUNDS 200u
#define ROUNDS_MAX 200000u

static int by_value(const void *a, const void *b)
{
	float x = *(const float *)a, y = *(const float *)b;

	return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
	struct options opt = parse_options(argc, argv, "raw");
	char *message = calloc(1, opt.size);
	float *micros = malloc(ROUNDS_MAX * sizeof *micros);
	struct tally tally = { 0 };
	uint32_t rounds = 0;
	int fd, kcm = -1;

	if (!message || !micros)
		die("malloc");
	opt.conns = 1;
	struct peer peer = connect_peer(argv[0], "peer", "echo", &opt, &fd);
	int use = fd;

	if (!strcmp(opt.mode, "kcm")) {
		use = kcm = kcm_open();
		kcm_attach(kcm, fd, load_parser());
	}
	double now = now_seconds(), stop = now + opt.duration_ms * 1e-3;

	for (uint64_t seq = 0; (now < stop || rounds == 0) && rounds < ROUNDS_MAX; seq++) {
		double before = now_seconds();

		wire_fill(message, opt.size, 0, WIRE_DATA, seq);
		if (send(use, message, opt.size, 0) != (ssize_t)opt.size)
			die("send");
		memset(message, 0, WIRE_MSG_MIN_BYTES);
		if (recv(use, message, opt.size, 0) != (ssize_t)opt.size)
			die("recv");
		now = now_seconds();
		tally_message(&tally, message, opt.size);
		if (seq >= WARM_UP_ROUNDS)
			micros[rounds++] = (float)((now - before) * 1e6);
	}
	if (kcm >= 0)
		close(kcm);
	close(fd);
	reap_peer(&peer);
	qsort(micros, rounds, sizeof *micros, by_value);
	printf("{\"p50_us\": %.2f, \"p99_us\": %.2f, \"rounds\": %u, \"complete\": %s}\n", micros[rounds / 2],
	       micros[(size_t)rounds * 99 / 100], rounds, tally.faults ? "false" : "true");
	return tally.faults != 0;
}
