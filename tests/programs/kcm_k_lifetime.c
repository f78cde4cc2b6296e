/* Section K: lifetime of muxes and connections, and what /proc/net shows. */
#include "guest.h"
#include "guest_proc.h"
#include <sched.h>

static int k;
static struct pair t;

static void open_pair(int type)
{
	k = kcm(type);
	t = attached(k, prog_p4());
}

static void tcp_fd_closed(int type)
{
	open_pair(type);
	int number = t.a;
	close(t.a);
	msg(t.p, 8, 'a');
	rx(k, 100, 0);
	R(send(k, "hello", 5, MSG_EOR));
	drain(t.p, 5);
	R(unattach(k, number));
}

static void all_closed(int type)
{
	char buf[16];
	open_pair(type);
	close(t.a);
	R(close(k));
	say("peer readable: %s", poll_bits(ready(t.p, POLLIN, 4000)));
	R(recv(t.p, buf, sizeof buf, DW));
}

static void tcp_survives(int type)
{
	open_pair(type);
	R(close(k));
	R(write(t.a, "raw", 3));
	drain(t.p, 3);
	PUT(t.p, "back");
	drain(t.a, 4);
	SO_ERR(t.a);
}

static void fin_pending(int type)
{
	open_pair(type);
	shutdown(t.p, SHUT_WR);
	nap(10);
	R(close(k));
	SO_ERR(t.a);
}

static void proc_fresh(int type)
{
	(void)type;
	show_kcm_header();
	show_stats_header();
	say("fopen shows the same: %d", proc_same_by_stdio("/proc/net/kcm") && proc_same_by_stdio("/proc/net/kcm_stats"));
}

static void proc_idle(int type)
{
	open_pair(type);
	show_kcm_header();
	show_kcm();
}

static void proc_two_muxes(int type)
{
	open_pair(type);
	int second = kcm(type);
	clone_kcm(second);
	show_kcm();
}

static void proc_counters(int type)
{
	open_pair(type);
	send(k, "hello", 5, MSG_EOR);
	send(k, "world!!", 7, MSG_EOR);
	drain(t.p, 12);
	for (int i = 0; i < 3; i++) {
		msg(t.p, 8, 'a' + i);
		rx(k, 100, 0);
	}
	show_kcm();
}

static void proc_batch(int type)
{
	open_pair(type);
	send(k, "a", 1, MSG_BATCH | MSG_EOR);
	send(k, "b", 1, MSG_BATCH | MSG_EOR);
	show_kcm();
}

static void proc_tx_wait(int type)
{
	k = kcm(type);
	send(k, "hello", 5, MSG_EOR);
	show_kcm();
}

static void proc_parked(int type)
{
	open_pair(type);
	recv_disable(k, 1);
	msg(t.p, 8, 'a');
	show_kcm();
}

static void proc_stopped(int type)
{
	k = kcm(type);
	struct pair rx_stop = attached(k, prog_const(-1)), tx_stop = attached(k, prog_p4());
	PUT(rx_stop.p, "garbage");
	so_error("rx", rx_stop.a);
	shutdown(tx_stop.a, SHUT_WR);
	nap(10);
	for (int i = 0; i < 2; i++) {
		send(k, "hello", 5, MSG_EOR);
		nap(4);
	}
	show_kcm();
}

static void proc_need_bytes(int type)
{
	char data[128];
	open_pair(type);
	nap(30); /* Attaching schedules a look for queued bytes, which would take all of them. */
	p4(data, 100, 'a');
	put(t.p, data, 20);
	put(t.p, data + 20, 20);
	show_kcm();
}

static void stats_attach(int type)
{
	long attach_before = kcm_stat("MUX", "Attach");
	long plain = kcm_stat("MUX", "Unattach"), reserved = kcm_stat("MUX", "UnattchRsvd");
	open_pair(type);
	unattach(k, t.a);
	nap(20);
	say("Attach %ld", kcm_stat("MUX", "Attach") - attach_before);
	say("column Unattach %ld", kcm_stat("MUX", "Unattach") - plain);
	say("column UnattchRsvd %ld", kcm_stat("MUX", "UnattchRsvd") - reserved);
}

static const char *const abort_columns[] = {"RX-Intr", "RX-Unrecov", "RX-BadLen", "RX-TooBig", "RX-Timeout"};
enum { ABORT_COLUMNS = sizeof abort_columns / sizeof *abort_columns };

static int prog_late(int result)
{
	const struct bpf_insn insns[] = {
		LD_CTX(1, 1, offsetof(struct __sk_buff, len)), JGE_I(1, 4, 2), MOV_I(0, 0), EXIT, MOV_I(0, result), EXIT};
	return LOAD(insns);
}

static void stats_aborts(int type)
{
	long before[ABORT_COLUMNS];
	for (int i = 0; i < ABORT_COLUMNS; i++)
		before[i] = kcm_stat("Psock", abort_columns[i]);
	k = kcm(type);
	struct pair interrupted = attached(k, prog_const(-1)), late = attached(k, prog_late(-ESTRPIPE));
	struct pair bad_len = attached(k, prog_late(1)), big = attached(k, prog_const(0x7fffffff));
	struct pair slow = attached(k, prog_p4());
	set_timeout(slow.a, SO_RCVTIMEO, 50);
	PUT(interrupted.p, "x");
	PUT(late.p, "ab");
	PUT(late.p, "cd");
	PUT(bad_len.p, "ab");
	PUT(bad_len.p, "cd");
	PUT(big.p, "x");
	PUT(slow.p, "\0\0");
	usleep(200000);
	nap(20);
	for (int i = 0; i < ABORT_COLUMNS; i++)
		say("%s %ld", abort_columns[i], kcm_stat("Psock", abort_columns[i]) - before[i]);
}

static void stats_rx_aborts(int type)
{
	long before = kcm_stat("Psock", "RX-Aborts");
	k = kcm(type);
	t = attached(k, prog_const(-1));
	PUT(t.p, "x");
	say("RX-Aborts %ld", kcm_stat("Psock", "RX-Aborts") - before);
}

static void stats_failover(int type)
{
	int b = prog_p4();
	long aborts = kcm_stat("Psock", "TX-Aborts");
	k = kcm(type);
	t = attached(k, b);
	struct pair u = attached(k, b);
	shutdown(t.p, SHUT_WR);
	nap(10);
	send(k, "hello", 5, MSG_EOR);
	drain(u.p, 5);
	say("TX-Aborts %ld", kcm_stat("Psock", "TX-Aborts") - aborts);
}

static void stats_retries(int type)
{
	long retries = kcm_stat("MUX", "TX-Retries");
	stats_failover(type);
	say("TX-Retries %ld", kcm_stat("MUX", "TX-Retries") - retries);
}

static void stats_keep_totals(int type)
{
	long attached_before = kcm_stat("MUX", "Attach"), msgs = kcm_stat("Psock", "RX-Msgs");
	open_pair(type);
	msg(t.p, 8, 'a');
	rx(k, 100, 0);
	close(k);
	nap(20);
	say("Attach %ld, RX-Msgs %ld", kcm_stat("MUX", "Attach") - attached_before, kcm_stat("Psock", "RX-Msgs") - msgs);
	show_kcm_header();
}

static void uncounted_receives(int type)
{
	open_pair(type);
	msg(t.p, 8, 'a');
	rx(k, 100, MSG_PEEK);
	if (type == SOCK_SEQPACKET)
		rx(k, 5, 0);
	else
		R(recv(k, BAD_PTR, 100, 0));
	msg(t.p, 8, 'b');
	ready(k, POLLIN, 4000);
	R(recv(k, BAD_PTR, 100, 0));
	show_kcm();
}

static void psock_index_reused(int type)
{
	int b = prog_p4();
	struct pair p[3];
	k = kcm(type);
	for (int i = 0; i < 3; i++)
		p[i] = attached(k, b);
	R(unattach(k, p[1].a));
	nap(10);
	show_kcm();
	R(attach(k, p[1].a, b));
	show_kcm();
}

static void other_namespace(int type)
{
	open_pair(type);
	pid_t pid = fork();
	if (!pid) {
		if (unshare(CLONE_NEWNET))
			lane_lacks("privilege for a network namespace");
		/* /proc/self is the namespace of the reader's main thread: /proc/net follows it. */
		show_kcm_header();
		_exit(0);
	}
	waitpid(pid, NULL, 0);
}

static void many_psocks(int type)
{
	enum { MANY = 100 };
	static struct pair p[MANY];
	struct rlimit limit = {1024, 1024};
	int b = prog_p4(), attached_count = 0, usable = 0, received = 0;
	char buf[16];
	setrlimit(RLIMIT_NOFILE, &limit);
	k = kcm(type);
	for (int i = 0; i < MANY; i++) {
		p[i] = pair();
		attached_count += !attach(k, p[i].a, b);
	}
	for (int i = 0; i < MANY; i++) {
		char data[16];
		size_t len = p4(data, 8, 'a');
		if (write(p[i].p, data, len) == (ssize_t)len && ready(k, POLLIN, 4000))
			received += recv(k, data, sizeof data, DW) == 12;
	}
	close(k);
	for (int i = 0; i < MANY; i++) {
		if (write(p[i].p, "to", 2) != 2 || write(p[i].a, "fro", 3) != 3)
			continue;
		ready(p[i].a, POLLIN, 4000);
		ready(p[i].p, POLLIN, 4000);
		usable += recv(p[i].a, buf, sizeof buf, DW) == 2 && recv(p[i].p, buf, sizeof buf, DW) == 3;
	}
	say("attached %d, received %d, usable afterwards %d", attached_count, received, usable);
}

enum { CYCLES = 100 };

static void *cycle(void *failures)
{
	int b = prog_p4();
	for (int i = 0; i < CYCLES; i++) {
		int socket = kcm(SOCK_DGRAM), clone = clone_kcm(socket);
		struct pair p = pair();
		*(int *)failures += attach(socket, p.a, b) != 0;
		if (i % 3 == 0)
			unattach(clone, p.a);
		close(i % 2 ? p.a : socket);
		close(clone);
		close(i % 2 ? socket : p.a);
		close(p.p);
	}
	close(b);
	return NULL;
}

static void churn(int type)
{
	enum { THREADS = 4 };
	pthread_t threads[THREADS];
	int failures[THREADS] = {0};
	(void)type;
	/* What the first use of KCM opens for good is not a leak. */
	cycle(failures);
	int before = open_fd_count();
	for (int i = 0; i < THREADS; i++)
		threads[i] = spawn(cycle, &failures[i]);
	for (int i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	/* The last are taken down a moment after their close. */
	for (int tries = 100; tries > 0 && open_fd_count() != before; tries--)
		nap(50);
	say("failed attaches %d", failures[0] + failures[1] + failures[2] + failures[3]);
	say("open descriptors changed by %d", open_fd_count() - before);
	show_kcm_header();
}

struct race {
	int k, a, bad, error;
};

static void *race_unattach(void *arg)
{
	struct race *r = arg;
	if (unattach(r->k, r->a) && errno != ENOENT && errno != EALREADY && errno != EBADF)
		r->bad++, r->error = errno;
	return NULL;
}

static void unattach_races_close(int type)
{
	enum { ROUNDS = 200 };
	struct race r = {0};
	int b = prog_p4();
	for (int i = 0; i < ROUNDS; i++) {
		struct pair p = pair();
		r.k = socket(AF_KCM, type, 0);
		r.a = p.a;
		attach(r.k, p.a, b);
		pthread_t thread = spawn(race_unattach, &r);
		close(r.k);
		pthread_join(thread, NULL);
		close(p.a);
		close(p.p);
	}
	say("unexpected results %d", r.bad);
	if (r.bad)
		say("last one %s", errno_name(r.error));
}

/* Splits what a peer received into numbered P4 messages; returns how many were whole. */
static int tally(const char *data, size_t len, unsigned char *seen, int seen_max, int *damaged)
{
	int whole = 0;
	size_t at = 0;
	while (len - at >= 8) {
		uint32_t words[2];
		memcpy(words, data + at, 8);
		uint32_t payload = ntohl(words[0]), number = ntohl(words[1]);
		if (payload != 20 || number >= (uint32_t)seen_max || len - at < payload + 4) {
			++*damaged;
			return whole;
		}
		seen[number]++;
		whole++;
		at += payload + 4;
	}
	*damaged += at != len;
	return whole;
}

/* EALREADY: the previous release of this psock is still under way. */
#define PERSIST(call)                                                                              \
	while ((call) != 0)                                                                            \
		if (errno != EALREADY)                                                                     \
			return prog;                                                                           \
		else                                                                                       \
			usleep(100)

static void *reattach_often(void *prog)
{
	enum { ATTACHES = 500 };
	for (int i = 0; i < ATTACHES; i++) {
		PERSIST(unattach(k, t.a));
		PERSIST(attach(k, t.a, *(int *)prog));
	}
	return NULL;
}

static void failover_while_sending(int type)
{
	enum { MESSAGES = 2000 };
	void *failed;
	static unsigned char seen[MESSAGES];
	static char got[MESSAGES * 24 + 64];
	int b = prog_p4(), damaged = 0, once = 0;
	k = kcm(type);
	t = attached(k, b);
	struct pair u = attached(k, b);
	pthread_t attacher = spawn(reattach_often, &b);
	for (int i = 0; i < MESSAGES; i++) {
		char data[24];
		uint32_t number = htonl(i);
		p4(data, 20, 'n');
		memcpy(data + 4, &number, 4);
		if (send(k, data, sizeof data, MSG_EOR) != sizeof data)
			break;
	}
	pthread_join(attacher, &failed);
	nap(50);
	size_t first = collect(t.p, got, sizeof got, 1);
	tally(got, first, seen, MESSAGES, &damaged);
	size_t second = collect(u.p, got, sizeof got, MESSAGES * 24 - first);
	tally(got, second, seen, MESSAGES, &damaged);
	for (int i = 0; i < MESSAGES; i++)
		once += seen[i] == 1;
	say("attacher failed: %d", failed != NULL);
	say("exactly once %d of %d, damaged streams %d", once, MESSAGES, damaged);
}

static const struct kcm_case cases[] = {
	{"K01", S, BOTH, tcp_fd_closed},
	{"K02", S, ONCE, all_closed},
	{"K03", S, ONCE, tcp_survives},
	{"K04", S, ONCE, fin_pending},
	{"K05", S, ONCE, proc_fresh},
	{"K06", S, BOTH, proc_idle},
	{"K07", S, ONCE, proc_two_muxes},
	{"K08", S, BOTH, proc_counters},
	{"K09", S, ONCE, proc_batch},
	{"K10", S, ONCE, proc_tx_wait},
	{"K11", S, ONCE, proc_parked},
	{"K12", S, ONCE, proc_stopped},
	{"K13", Q, ONCE, proc_need_bytes},
	{"K14", Q, ONCE, stats_attach},
	{"K15", S, ONCE, stats_aborts},
	{"K15q", Q, ONCE, stats_rx_aborts},
	{"K16", S, ONCE, stats_failover},
	{"K16q", Q, ONCE, stats_retries},
	{"K17", S, ONCE, stats_keep_totals},
	{"K18", S, BOTH, uncounted_receives},
	{"K19", S, ONCE, psock_index_reused},
	{"K20", Q, ONCE, other_namespace},
	{"K21", S, ONCE, many_psocks},
	{"K22", T, ONCE, churn},
	{"K23", T, ONCE, unattach_races_close},
	{"K24", T, ONCE, failover_while_sending},
};
GUEST_MAIN(cases)
