/*
 * tx_raw.c - rival for sending: a plain TCP connection.
 *
 *   -m write    one write a message, the only way to send at once what is complete
 *   -m gather   64 messages collected in a buffer by hand, then one write
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "harness.h"

#define MESSAGES_PER_GATHER 64

int main(int argc, char **argv)
{
	struct options opt = parse_options(argc, argv, "write");
	size_t per_write = !strcmp(opt.mode, "gather") ? MESSAGES_PER_GATHER : 1;
	char *buffer = calloc(per_write, opt.size);
	uint64_t seq = 0;
	int fd;

	if (!buffer)
		die("calloc");
	opt.conns = 1;
	struct peer peer = connect_peer(argv[0], "peer", "sink", &opt, &fd);
	double start = now_seconds(), stop = start + opt.duration_ms * 1e-3;

	while (now_seconds() < stop) {
		/* As many messages between two looks at the clock as the KCM twin sends. */
		for (size_t sent = 0; sent < MESSAGES_PER_GATHER; sent += per_write) {
			for (size_t i = 0; i < per_write; i++)
				wire_fill(buffer + i * opt.size, opt.size, 0, WIRE_DATA, seq++);
			write_all(fd, buffer, per_write * opt.size);
		}
	}
	wire_fill(buffer, opt.size, 0, WIRE_END, seq);
	write_all(fd, buffer, opt.size);
	struct tally tally = read_report(&peer);
	double seconds = now_seconds() - start;

	close(fd);
	free(buffer);
	reap_peer(&peer);
	return report_rate(&tally, 1, seconds);
}
