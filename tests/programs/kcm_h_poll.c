/* Section H: poll and epoll, on KCM sockets and on attached TCP sockets. */
#include "guest.h"

static void always_writable(int type)
{
	int k = kcm(type), full = kcm(type);
	POLLS(k);
	attached(k, prog_p4());
	POLLS(k);
	set_int(full, SOL_SOCKET, SO_SNDBUF, 1);
	while (send(full, "0123456789abcdef", 16, DW | MSG_EOR) == 16)
		;
	POLLS(full);
}

static void readable(int type)
{
	int k = kcm(type);
	struct pair t = attached(k, prog_p4());
	msg(t.p, 8, 'a');
	ready(k, POLLIN, 4000);
	POLLS(k);
	rx(k, 100, 0);
	POLLS(k);
}

static void tcp_trouble_is_invisible(int type)
{
	int k = kcm(type), b = prog_p4();
	struct pair t = attached(k, b), u = attached(k, b), v = attached(k, prog_const(-1));
	shutdown(t.p, SHUT_WR);
	nap(10);
	RL("after FIN: poll", ready(k, POLLIN | POLLPRI | POLLRDHUP, 0));
	reset(u.p);
	nap(10);
	RL("after RST: poll", ready(k, POLLIN | POLLPRI | POLLRDHUP, 0));
	PUT(v.p, "garbage");
	RL("after parser abort: poll", ready(k, POLLIN | POLLPRI | POLLRDHUP, 0));
	POLLS(k);
}

static void rcvlowat(int type)
{
	int k = kcm(type);
	struct pair t = attached(k, prog_p4());
	R(set_int(k, SOL_SOCKET, SO_RCVLOWAT, 100000));
	msg(t.p, 8, 'a');
	ready(k, POLLIN, 4000);
	POLLS(k);
}

static void epoll_add(int set, int fd, int events)
{
	struct epoll_event e = {.events = events, .data.fd = fd};
	if (epoll_ctl(set, EPOLL_CTL_ADD, fd, &e))
		say("EPOLL_CTL_ADD = %s", errno_name(errno));
}

static void wait_once(int set, int ms)
{
	struct epoll_event e = {0};
	int n = epoll_wait(set, &e, 1, ms);
	say("epoll_wait = %s", n < 0 ? errno_name(errno) : n ? poll_bits(e.events) : "none");
}

static void edge_out(int type)
{
	int k = kcm(type), set = epoll_create1(0);
	epoll_add(set, k, EPOLLIN | EPOLLOUT | EPOLLET);
	wait_once(set, 1000);
	wait_once(set, 20);
}

static void edge_in(int type)
{
	int k = kcm(type), set = epoll_create1(0);
	struct pair t = attached(k, prog_p4());
	epoll_add(set, k, EPOLLIN | EPOLLOUT | EPOLLET);
	wait_once(set, 1000);
	msg(t.p, 8, 'a');
	wait_once(set, 4000);
	wait_once(set, 20);
	msg(t.p, 8, 'b');
	wait_once(set, 4000);
	wait_once(set, 20);
	LETTERS(k, 2);
}

static void edge_tcp(int type)
{
	int k = kcm(type), set = epoll_create1(0);
	struct pair t = attached(k, prog_p4());
	epoll_add(set, t.a, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET);
	wait_once(set, 1000);
	msg(t.p, 8, 'a');
	wait_once(set, 20);
	PUT(t.p, "\0\0\0\x08" "ab");
	wait_once(set, 20);
	shutdown(t.p, SHUT_WR);
	wait_once(set, 1000);
	wait_once(set, 20);
}

static void abort_level(int type)
{
	int k = kcm(type);
	struct pair t = attached(k, prog_const(-1));
	PUT(t.p, "garbage");
	say("IN and ERR: %s", poll_bits(ready(t.a, POLLIN, 4000)));
	SO_ERR(t.a);
	say("then: %s", poll_bits(ready(t.a, POLLIN, 1000)));
}

static void disable_clears(int type)
{
	int k = kcm(type);
	struct pair t = attached(k, prog_p4());
	msg(t.p, 8, 'a');
	say("queued: %s", poll_bits(ready(k, POLLIN, 4000)));
	recv_disable(k, 1);
	say("disabled: %s", poll_bits(ready(k, POLLIN, 0)));
}

static void *empty_peer(void *peer)
{
	static char buf[1 << 16];
	usleep(60000);
	while (recv(*(int *)peer, buf, sizeof buf, DW) > 0)
		;
	return NULL;
}

static void pollout_on_full(int type)
{
	int k = kcm(type);
	struct pair t = attached_small(k, prog_p4());
	char buf[1024] = {0};
	while (send(t.a, buf, sizeof buf, DW) > 0)
		;
	pthread_t reader = spawn(empty_peer, &t.p);
	long before = now_ms();
	ready(t.a, POLLOUT, 600);
	say("poll(POLLOUT) woke when the peer drained: %d", now_ms() - before < 500);
	pthread_join(reader, NULL);
}

static const struct kcm_case cases[] = {
	{"H01", S, BOTH, always_writable},
	{"H02", S, BOTH, readable},
	{"H03", S, BOTH, tcp_trouble_is_invisible},
	{"H04", S, BOTH, rcvlowat},
	{"H05", S, BOTH, edge_out},
	{"H06", S, BOTH, edge_in},
	{"H07", Q, ONCE, edge_tcp},
	{"H08", S, ONCE, abort_level},
	{"H09", S, BOTH, disable_clears},
	{"H10", Q, ONCE, pollout_on_full},
};
GUEST_MAIN(cases)
