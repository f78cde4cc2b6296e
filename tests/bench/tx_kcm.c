/*
 * tx_kcm.c - sends on a KCM socket.
 *
 *   -m sendmsg    one message a call
 *   -m batch      63 calls with MSG_BATCH, the 64th without
 *   -m sendmmsg   64 messages a call
 */
#define _GNU_SOURCE
#include "kcm_user.h"

#include <stdlib.h>
#include <string.h>

#define MESSAGES_PER_BATCH 64u

int main(int argc, char **argv)
{
	static struct mmsghdr headers[MESSAGES_PER_BATCH];
	static struct iovec iovecs[MESSAGES_PER_BATCH];
	struct options opt = parse_options(argc, argv, "sendmsg");
	int use_batch_flag = !strcmp(opt.mode, "batch"), use_sendmmsg = !strcmp(opt.mode, "sendmmsg");
	int fd, parser = load_parser(), kcm;
	uint64_t seq = 0;

	opt.conns = 1;
	for (unsigned i = 0; i < MESSAGES_PER_BATCH; i++) {
		iovecs[i].iov_base = calloc(1, opt.size);
		iovecs[i].iov_len = opt.size;
		headers[i].msg_hdr.msg_iov = &iovecs[i];
		headers[i].msg_hdr.msg_iovlen = 1;
		if (!iovecs[i].iov_base)
			die("calloc");
	}
	struct peer peer = connect_peer(argv[0], "peer", "sink", &opt, &fd);

	kcm = kcm_open();
	kcm_attach(kcm, fd, parser);
	double start = now_seconds(), stop = start + opt.duration_ms * 1e-3;

	while (now_seconds() < stop) {
		if (use_sendmmsg) {
			unsigned sent = 0;

			for (unsigned i = 0; i < MESSAGES_PER_BATCH; i++)
				wire_fill(iovecs[i].iov_base, opt.size, 0, WIRE_DATA, seq++);
			while (sent < MESSAGES_PER_BATCH) {
				int n = sendmmsg(kcm, headers + sent, MESSAGES_PER_BATCH - sent, 0);

				if (n < 0)
					die("sendmmsg");
				sent += (unsigned)n;
			}
			continue;
		}
		for (unsigned i = 0; i < MESSAGES_PER_BATCH; i++) {
			int flags = use_batch_flag && i + 1 < MESSAGES_PER_BATCH ? MSG_BATCH : 0;

			wire_fill(iovecs[0].iov_base, opt.size, 0, WIRE_DATA, seq++);
			if (sendmsg(kcm, &headers[0].msg_hdr, flags) != (ssize_t)opt.size)
				die("sendmsg");
		}
	}
	wire_fill(iovecs[0].iov_base, opt.size, 0, WIRE_END, seq);
	if (sendmsg(kcm, &headers[0].msg_hdr, 0) < 0)
		die("sendmsg");
	struct tally tally = read_report(&peer);
	double seconds = now_seconds() - start;

	close(kcm);
	close(fd);
	reap_peer(&peer);
	return report_rate(&tally, 1, seconds);
}
