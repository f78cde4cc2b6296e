/*
 * memory_kcm.c - resident memory in this process for each of N idle things.
 *
 *   -m conns -c N     connections attached to one KCM socket: before any message, and after one message on each
 *   -m sockets -k N   KCM sockets without connections, each a multiplexor of its own
 */
#include "kcm_user.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WARM_UP 16 /* made before the first look, so that one-time costs are not shared out */

static size_t resident_bytes(void)
{
	size_t kilobytes = 0;
	char line[256];
	FILE *rollup = fopen("/proc/self/smaps_rollup", "r");

	if (!rollup)
		die("/proc/self/smaps_rollup");
	while (fgets(line, sizeof line, rollup))
		if (sscanf(line, "Rss: %zu kB", &kilobytes) == 1)
			break;
	fclose(rollup);
	return kilobytes * 1024;
}

static double bytes_each(size_t before, int count)
{
	return ((double)resident_bytes() - (double)before) / count;
}

static int measure_sockets(const struct options *opt)
{
	int opened = 0;
	size_t before = 0;

	while (opened < opt->sockets && (opened < WARM_UP || socket(AF_KCM, SOCK_DGRAM, 0) >= 0)) {
		if (opened < WARM_UP)
			kcm_open();
		if (++opened == WARM_UP)
			before = resident_bytes();
	}
	printf("{\"count\": %d, \"bytes_each\": %.0f}\n", opened, bytes_each(before, opened - WARM_UP));
	return 0;
}

static int measure_conns(const struct options *opt, const char *argv0)
{
	int *fds = calloc((size_t)opt->conns, sizeof *fds), parser = load_parser(), kcm;
	char message[WIRE_MSG_MIN_BYTES];
	struct tally tally = { 0 };
	double attached, used;
	size_t before = 0;

	if (!fds)
		die("calloc");
	/* The table's own pages are resident before the first look. */
	memset(fds, 0xff, (size_t)opt->conns * sizeof *fds);
	struct peer peer = connect_peer(argv0, "peer", "quiet", opt, fds);

	kcm = kcm_open();
	for (int i = 0; i < opt->conns; i++) {
		if (i == WARM_UP)
			before = resident_bytes();
		kcm_attach(kcm, fds[i], parser);
	}
	attached = bytes_each(before, opt->conns - WARM_UP);
	write_all(fds[0], "", 1);
	for (int i = 0; i < opt->conns; i++)
		if (recv(kcm, message, sizeof message, 0) != sizeof message)
			die("recv");
		else
			tally.faults += wire_size(message) != sizeof message;
	used = bytes_each(before, opt->conns - WARM_UP);
	close(kcm);
	for (int i = 0; i < opt->conns; i++)
		close(fds[i]);
	reap_peer(&peer);
	printf("{\"count\": %d, \"bytes_each\": %.0f, \"bytes_each_used\": %.0f, \"complete\": %s}\n", opt->conns, attached,
	       used, tally.faults ? "false" : "true");
	return tally.faults != 0;
}

int main(int argc, char **argv)
{
	struct options opt = parse_options(argc, argv, "conns");

	raise_fd_limit();
	if (opt.conns <= WARM_UP && !strcmp(opt.mode, "conns"))
		return 2;
	return !strcmp(opt.mode, "conns") ? measure_conns(&opt, argv[0]) : measure_sockets(&opt);
}
