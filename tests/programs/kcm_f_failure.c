/* Section F: connections that fail while KCM sends on them. */
#include "guest.h"
#include "guest_proc.h"

enum { FILLING = 200000 };

static char big[FILLING], got[2 * FILLING];

/* The peer has sent its FIN and KCM has seen it. */
static struct pair half_closed(int k, int prog)
{
	struct pair t = attached(k, prog);
	shutdown(t.p, SHUT_WR);
	nap(10);
	return t;
}

static void fin_posts_epipe(int type)
{
	int k = kcm(type);
	struct pair t = half_closed(k, prog_p4());
	SO_ERR(t.a);
	SO_ERR(t.a);
}

static void fin_error_read(int type)
{
	int k = kcm(type);
	struct pair t = half_closed(k, prog_p4());
	SO_ERR(t.a);
	R(send(k, "abcdefghijkl", 12, MSG_EOR));
	drain(t.p, 12);
	say("SIGPIPE %d", sigpipe_count);
}

static void fin_error_unread(int type)
{
	int k = kcm(type);
	struct pair t = half_closed(k, prog_p4());
	R(send(k, "abcdefghijkl", 12, MSG_EOR));
	R(send(k, "mnopqrstuvwx", 12, MSG_EOR));
	drain(t.p, 0);
	show_kcm();
}

static void fin_sigpipe(int type)
{
	int k = kcm(type);
	half_closed(k, prog_p4());
	R(send(k, "abcdefghijkl", 12, MSG_EOR | MSG_NOSIGNAL));
	R(send(k, "mnopqrstuvwx", 12, MSG_EOR | MSG_NOSIGNAL));
	nap(10);
	say("SIGPIPE %d", sigpipe_count);
}

static void fin_then_good_pair(int type)
{
	int k = kcm(type), b = prog_p4();
	half_closed(k, b);
	R(send(k, "abcdefghijkl", 12, MSG_EOR));
	R(send(k, "mnopqrstuvwx", 12, MSG_EOR));
	struct pair u = attached(k, b);
	drain(u.p, 24);
}

static void peer_reset(int type)
{
	int k = kcm(type);
	struct pair t = attached(k, prog_p4());
	reset(t.p);
	nap(10);
	POLLS(t.a);
	SO_ERR(t.a);
	R(send(k, "abcdefghijkl", 12, MSG_EOR));
	nap(10);
	SO_ERR(t.a);
}

static void local_shutdown_wr(int type)
{
	int k = kcm(type);
	struct pair t = attached(k, prog_p4());
	R(shutdown(t.a, SHUT_WR));
	nap(10);
	SO_ERR(t.a);
	msg(t.p, 8, 'a');
	rx(k, 100, 0);
	R(send(k, "abcdefghijkl", 12, MSG_EOR));
	drain(t.p, 0);
}

static void local_shutdown_rd(int type)
{
	int k = kcm(type);
	struct pair t = attached(k, prog_p4());
	R(shutdown(t.a, SHUT_RD));
	SO_ERR(t.a);
	R(send(k, "abcdefghijkl", 12, MSG_EOR));
	drain(t.p, 12);
}

static void dead_then_next(int type)
{
	int k = kcm(type), b = prog_p4();
	struct pair t = attached(k, b), u = attached(k, b);
	shutdown(t.p, SHUT_WR);
	nap(10);
	R(send(k, "abcdefghijkl", 12, MSG_EOR));
	drain(u.p, 12);
	SO_ERR(t.a);
	show_kcm();
}

static void all_dead(int type)
{
	int k = kcm(type), sent = 0;
	struct pair t = attached(k, prog_p4());
	reset(t.p);
	nap(10);
	while (sent < 1000 && send(k, big, 10000, MSG_EOR | DW) == 10000)
		sent++;
	say("then %s", errno_name(errno));
	say("about SO_SNDBUF queued: %d", in_range(sent * 10000L, 200000, 240000));
	SO_ERR(k);
	POLLS(k);
}

/* The first bytes of a large message are on t, the rest waits for its peer. */
static struct pair half_sent(int k, int prog)
{
	struct pair t = attached_small(k, prog);
	fill(big, FILLING, 0);
	R(send(k, big, FILLING, MSG_EOR | DW));
	nap(10);
	return t;
}

static void say_whole(const char *where, size_t total)
{
	if (total)
		say("%s got %zu exact %d", where, total, filled(got, total, 0));
	else
		say("%s got nothing", where);
}

static void blocked_then_reset(int type)
{
	int k = kcm(type), b = prog_p4();
	struct pair t = half_sent(k, b), u = attached(k, b);
	nap(100); /* Until nothing moves: write space would be a second cause to try again. */
	reset(t.p);
	nap(100);
	size_t early = collect(u.p, got, sizeof got, 0);
	say_whole("second connection before unattach", early);
	R(unattach(k, t.a));
	say_whole("second connection after unattach", collect(u.p, got, sizeof got, early ? 0 : FILLING));
}

static void failover_from_start(int type)
{
	int k = kcm(type), b = prog_p4();
	struct pair t = half_sent(k, b), u = attached(k, b);
	reset(t.p);
	nap(20);
	R(unattach(k, t.a));
	say_whole("second connection", collect(u.p, got, sizeof got, FILLING));
}

static void unattach_half_sent(int type)
{
	int k = kcm(type);
	struct pair t = half_sent(k, prog_p4());
	long before = kcm_stat("MUX", "Unattach") + kcm_stat("MUX", "UnattchRsvd");
	R(unattach(k, t.a));
	SO_ERR(t.a);
	long after = kcm_stat("MUX", "Unattach") + kcm_stat("MUX", "UnattchRsvd");
	say("Unattach and UnattchRsvd together grew by %ld", after - before);
}

static void reattach_half_sent(int type)
{
	int k = kcm(type), b = prog_p4();
	struct pair t = half_sent(k, b);
	R(unattach(k, t.a));
	SO_ERR(t.a);
	R(attach(k, t.a, b));
	size_t total = collect(t.p, got, sizeof got, FILLING + 1);
	say("whole message after a fragment: %d", total > FILLING && filled(got + total - FILLING, FILLING, 0));
	say("exactly one message: %d", total == FILLING && filled(got, FILLING, 0));
}

static void parser_abort_then_send(int type)
{
	int k = kcm(type);
	struct pair t = attached(k, prog_const(-EBADMSG));
	PUT(t.p, "garbage");
	R(send(k, "abcdefghijkl", 12, MSG_EOR));
	drain(t.p, 0);
	SO_ERR(t.a);
	say("SIGPIPE %d", sigpipe_count);
}

static void stopped_still_receives(int type)
{
	int k = kcm(type);
	struct pair t = attached(k, prog_p4());
	shutdown(t.a, SHUT_WR);
	R(send(k, "abcdefghijkl", 12, MSG_EOR));
	nap(10);
	msg(t.p, 8, 'a');
	rx(k, 100, 0);
}

static void raw_write(int type)
{
	int k = kcm(type);
	struct pair t = attached(k, prog_p4());
	R(write(t.a, "raw bytes", 9));
	drain(t.p, 9);
}

static void send_in_syn_sent(int type)
{
	int k = kcm(type), b = prog_p4(), queued[8], count = 0, fd;
	struct sockaddr_in addr;
	socklen_t len = own_address(AF_INET, &addr);
	int listener = socket(AF_INET, SOCK_STREAM, 0);
	bind(listener, (void *)&addr, len);
	listen(listener, 0);
	getsockname(listener, (void *)&addr, &len);
	do {
		fd = queued[count++] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
		connect(fd, (void *)&addr, len);
	} while (ready(fd, POLLOUT, 20) && count < 8);
	R(attach(k, fd, b));
	R(send(k, "abcdefghijkl", 12, MSG_EOR));
	for (int i = 0; i < count - 1; i++)
		close(accept(listener, NULL, NULL));
	ready(listener, POLLIN, 8000);
	struct pair t = {fd, accept(listener, NULL, NULL)};
	nap(20);
	SO_ERR(t.a);
	drain(t.p, 0);
}

static const struct kcm_case cases[] = {
	{"F01", S, ONCE, fin_posts_epipe},
	{"F02", S, BOTH, fin_error_read},
	{"F03", S, BOTH, fin_error_unread},
	{"F04", Q, ONCE, fin_sigpipe},
	{"F05", S, BOTH, fin_then_good_pair},
	{"F06", S, ONCE, peer_reset},
	{"F07", S, ONCE, local_shutdown_wr},
	{"F08", S, ONCE, local_shutdown_rd},
	{"F09", S, ONCE, dead_then_next},
	{"F10", S, BOTH, all_dead},
	{"F11", Q, ONCE, blocked_then_reset},
	{"F12", S, ONCE, failover_from_start},
	{"F13", S, ONCE, unattach_half_sent},
	{"F14", Q, ONCE, reattach_half_sent},
	{"F15", S, ONCE, parser_abort_then_send},
	{"F16", S, ONCE, stopped_still_receives},
	{"F17", S, ONCE, raw_write},
	{"F18", Q, ONCE, send_in_syn_sent},
};
GUEST_MAIN(cases)
