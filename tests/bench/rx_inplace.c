/* rx_inplace.c - rival: epoll, 64 KiB recv, messages framed and checked where they lie. */
#include <errno.h>
#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "framing.h"

int main(int argc, char **argv)
{
	struct options opt = parse_options(argc, argv, "inplace");
	struct tally tally = { 0 };
	struct framer framers[WIRE_CONNS_MAX];
	int fds[WIRE_CONNS_MAX], epfd = epoll_create1(0);
	struct peer peer;
	double start = 0;

	if (epfd < 0 || opt.conns > WIRE_CONNS_MAX)
		die("epoll_create1");
	peer = connect_peer(argv[0], "peer", "source", &opt, fds);
	for (int i = 0; i < opt.conns; i++) {
		struct epoll_event event = { .events = EPOLLIN, .data.u32 = (uint32_t)i };

		framer_init(&framers[i]);
		fcntl(fds[i], F_SETFL, O_NONBLOCK);
		if (epoll_ctl(epfd, EPOLL_CTL_ADD, fds[i], &event) < 0)
			die("epoll_ctl");
	}
	while (tally.ends < (unsigned)opt.conns) {
		struct epoll_event events[WIRE_CONNS_MAX];
		int ready = epoll_wait(epfd, events, WIRE_CONNS_MAX, -1);

		if (start == 0)
			start = now_seconds();
		for (int i = 0; i < ready; i++) {
			struct framer *framer = &framers[events[i].data.u32];
			ssize_t n = recv(fds[events[i].data.u32], framer_space(framer), FRAMER_RECV_BYTES, 0);

			if (n == 0 || (n < 0 && errno != EAGAIN))
				die("recv");
			if (n > 0)
				framer_take(framer, (size_t)n, &tally);
		}
	}
	double seconds = now_seconds() - start;

	for (int i = 0; i < opt.conns; i++) {
		close(fds[i]);
		framer_free(&framers[i]);
	}
	reap_peer(&peer);
	return report_rate(&tally, (unsigned)opt.conns, seconds);
}
