/* Section I: which KCM socket of a mux gets a message.  Letters name messages. */
#include "guest.h"
#include "guest_proc.h"

static int k[8], prog;

/* A mux with n KCM sockets and one connection. */
static struct pair mux(int type, int n)
{
	prog = prog_p4();
	k[0] = kcm(type);
	for (int i = 1; i < n; i++)
		k[i] = clone_kcm(k[0]);
	return attached(k[0], prog);
}

/* Sends each letter as a message of its own, parsed alone. */
static void spell(int peer, const char *text)
{
	for (; *text; text++)
		msg(peer, 8, *text);
}

static void round_robin(int type)
{
	struct pair t = mux(type, 3);
	spell(t.p, "abcdefghi");
	LETTERS(k[0], 3);
	LETTERS(k[1], 3);
	LETTERS(k[2], 3);
}

static void round_robin_continues(int type)
{
	struct pair t = mux(type, 3);
	spell(t.p, "abcdefghi");
	LETTERS(k[0], 3);
	LETTERS(k[1], 3);
	LETTERS(k[2], 3);
	spell(t.p, "xyz");
	LETTERS(k[0], 1);
	LETTERS(k[1], 1);
	LETTERS(k[2], 1);
}

static void one_pass_one_socket(int type)
{
	char data[512];
	size_t len = 0;
	struct pair t = mux(type, 3);
	for (const char *c = "abcdefghi"; *c; c++)
		len += p4(data + len, 8, *c);
	put(t.p, data, len);
	len = p4(data, 8, 'x');
	len += p4(data + len, 8, 'y');
	put(t.p, data, len);
	LETTERS(k[0], 9);
	LETTERS(k[1], 2);
	LETTERS(k[2], 0);
}

static void reading_changes_nothing(int type)
{
	struct pair t = mux(type, 3);
	spell(t.p, "ab");
	LETTERS(k[1], 1);
	LETTERS(k[0], 1);
	spell(t.p, "cde");
	LETTERS(k[0], 1);
	LETTERS(k[1], 1);
	LETTERS(k[2], 1);
}

static void rotation_over_psocks(int type)
{
	struct pair t = mux(type, 2), u = attached(k[0], prog);
	spell(t.p, "a");
	spell(u.p, "A");
	spell(t.p, "b");
	spell(u.p, "B");
	spell(t.p, "c");
	LETTERS(k[0], 3);
	LETTERS(k[1], 2);
}

static void clone_joins_tail(int type)
{
	struct pair t = mux(type, 2);
	spell(t.p, "abc");
	k[2] = clone_kcm(k[0]);
	spell(t.p, "ABC");
	LETTERS(k[0], 3);
	LETTERS(k[1], 2);
	LETTERS(k[2], 1);
}

static void disable_moves(int type)
{
	struct pair t = mux(type, 2);
	spell(t.p, "abc");
	R(recv_disable(k[0], 1));
	LETTERS(k[0], 0);
	LETTERS(k[1], 3);
	spell(t.p, "def");
	LETTERS(k[0], 0);
	LETTERS(k[1], 3);
}

static void disabled_gets_nothing(int type)
{
	struct pair t = mux(type, 2);
	R(recv_disable(k[0], 1));
	spell(t.p, "abc");
	LETTERS(k[0], 0);
	LETTERS(k[1], 3);
}

static void enable_rejoins(int type)
{
	struct pair t = mux(type, 2);
	recv_disable(k[0], 1);
	spell(t.p, "abc");
	LETTERS(k[1], 3);
	R(recv_disable(k[0], 0));
	spell(t.p, "MNOP");
	LETTERS(k[0], 2);
	LETTERS(k[1], 2);
}

static void hold_in_order(int type)
{
	struct pair t = mux(type, 1);
	spell(t.p, "ab");
	R(recv_disable(k[0], 1));
	spell(t.p, "cd");
	rx_none(k[0]);
	R(recv_disable(k[0], 0));
	LETTERS(k[0], 4);
}

static void clone_takes_held(int type)
{
	struct pair t = mux(type, 1);
	spell(t.p, "ab");
	recv_disable(k[0], 1);
	spell(t.p, "c");
	k[1] = clone_kcm(k[0]);
	LETTERS(k[1], 3);
	LETTERS(k[0], 0);
}

static void close_moves(int type)
{
	struct pair t = mux(type, 3);
	spell(t.p, "abcdef");
	R(close(k[0]));
	LETTERS(k[1], 4);
	LETTERS(k[2], 2);
}

static void close_then_clone(int type)
{
	struct pair t = mux(type, 3);
	spell(t.p, "abcdef");
	close(k[0]);
	LETTERS(k[1], 4);
	LETTERS(k[2], 2);
	k[3] = clone_kcm(k[1]);
	show_kcm();
	spell(t.p, "xyz");
	LETTERS(k[1], 1);
	LETTERS(k[2], 1);
	LETTERS(k[3], 1);
}

static void last_close_leaves_tcp(int type)
{
	struct pair t = mux(type, 1);
	spell(t.p, "a");
	recv_disable(k[0], 1);
	spell(t.p, "bc");
	R(close(k[0]));
	drain(t.a, 12);
	R(write(t.a, "raw", 3));
	drain(t.p, 3);
}

static void unattach_parked(int type)
{
	struct pair t = mux(type, 1);
	recv_disable(k[0], 1);
	spell(t.p, "bc");
	long before = kcm_stat("MUX", "RX-RdyDrops");
	R(unattach(k[0], t.a));
	R(recv_disable(k[0], 0));
	rx_none(k[0]);
	say("RX-RdyDrops grew by %ld", kcm_stat("MUX", "RX-RdyDrops") - before);
	drain(t.a, 12);
}

static void both_disabled(int type)
{
	struct pair t = mux(type, 2);
	recv_disable(k[0], 1);
	recv_disable(k[1], 1);
	spell(t.p, "b");
	R(close(k[0]));
	R(recv_disable(k[1], 0));
	spell(t.p, "c");
	LETTERS(k[1], 2);
}

static void disable_twice(int type)
{
	struct pair t = mux(type, 2);
	R(recv_disable(k[0], 1));
	R(recv_disable(k[0], 1));
	R(recv_disable(k[0], 0));
	R(recv_disable(k[0], 0));
	spell(t.p, "abcd");
	LETTERS(k[0], 2);
	LETTERS(k[1], 2);
}

static void *receive_one(void *result)
{
	char buf[100];
	*(long *)result = recv(k[0], buf, sizeof buf, 0);
	return NULL;
}

static void enable_under_receiver(int type)
{
	long result = -2;
	struct pair t = mux(type, 1);
	pthread_t thread = spawn(receive_one, &result);
	usleep(30000);
	R(recv_disable(k[0], 1));
	spell(t.p, "a");
	usleep(30000);
	say("while disabled: %ld", result);
	R(recv_disable(k[0], 0));
	pthread_join(thread, NULL);
	say("after enable: %ld", result);
}

/* Reads everything; counts letters and says whether they came in increasing order. */
static int take_all(int fd, int *ordered)
{
	char buf[100], last = 0;
	int count = 0;
	*ordered = 1;
	while (recv(fd, buf, sizeof buf, DW) > 0) {
		*ordered &= buf[4] > last;
		last = buf[4];
		count++;
	}
	return count;
}

static void small_queues(int type)
{
	struct pair t = mux(type, 2);
	int ordered[2], total = 0, all_ordered = 1;
	for (int i = 0; i < 2; i++)
		set_int(k[i], SOL_SOCKET, SO_RCVBUF, 1);
	spell(t.p, "abcdefghij");
	for (int round = 0; round < 12; round++)
		for (int i = 0; i < 2; i++) {
			nap(4);
			total += take_all(k[i], &ordered[i]);
			all_ordered &= ordered[i];
		}
	say("received %d of 10, ordered within each read-out: %d", total, all_ordered);
}

static void resume_when_empty(int type)
{
	struct pair t = mux(type, 1);
	set_int(k[0], SOL_SOCKET, SO_RCVBUF, 1);
	spell(t.p, "abcdefghij");
	char buf[100];
	int held = 0;
	while (recv(k[0], buf, sizeof buf, DW) > 0 && held < 20)
		held++, nap(4);
	say("all ten arrive when the queue is read empty: %d", held == 10);
}

static void *write_equal(void *peer)
{
	static char data[1004];
	p4(data, 1000, 'e');
	for (int i = 0; i < 5000; i++)
		for (size_t done = 0; done < sizeof data;) {
			ssize_t wrote = write(*(int *)peer, data + done, sizeof data - done);
			if (wrote <= 0)
				return NULL;
			done += wrote;
		}
	return NULL;
}

static void slow_reader(int type)
{
	char buf[2000];
	int good = 0, bad = 0;
	struct pair t = mux(type, 1);
	pthread_t writer = spawn(write_equal, &t.p);
	usleep(1000000);
	while (ready(k[0], POLLIN, 500)) {
		ssize_t got = recv(k[0], buf, sizeof buf, DW);
		if (got < 0)
			break;
		if (got == 1004 && buf[4] == 'e' && buf[1003] == 'e')
			good++;
		else
			bad++;
	}
	say("all 5000 exact: %d", good == 5000 && !bad);
	SO_ERR(t.a);
	close(t.a);
	close(k[0]);
	pthread_join(writer, NULL);
}

static void attach_disabled(int type)
{
	int b = prog_p4();
	struct pair t = pair();
	k[0] = kcm(type);
	recv_disable(k[0], 1);
	msg(t.p, 8, 'a');
	R(attach(k[0], t.a, b));
	nap(10);
	R(recv_disable(k[0], 0));
	LETTERS(k[0], 1);
}

static void queued_before_attach(int type)
{
	int b = prog_p4();
	struct pair t = pair();
	k[0] = kcm(type);
	spell(t.p, "abc");
	R(attach(k[0], t.a, b));
	LETTERS(k[0], 3);
}

static void both_ends(int type)
{
	prog = prog_p4();
	k[0] = kcm(type);
	struct pair t = attached(k[0], prog);
	R(attach(k[0], t.p, prog));
	char data[64];
	R(send(k[0], data, p4(data, 8, 'a'), MSG_EOR));
	rx(k[0], 100, 0);
	R(send(k[0], data, p4(data, 8, 'b'), MSG_EOR));
	rx(k[0], 100, 0);
}

static const struct kcm_case cases[] = {
	{"I01", S, BOTH, round_robin},
	{"I02", S, ONCE, round_robin_continues},
	{"I03", S, ONCE, one_pass_one_socket},
	{"I04", S, ONCE, reading_changes_nothing},
	{"I05", S, ONCE, rotation_over_psocks},
	{"I06", S, ONCE, clone_joins_tail},
	{"I07", S, ONCE, disable_moves},
	{"I08", S, ONCE, disabled_gets_nothing},
	{"I09", S, ONCE, enable_rejoins},
	{"I10", S, ONCE, hold_in_order},
	{"I11", S, ONCE, clone_takes_held},
	{"I12", S, ONCE, close_moves},
	{"I13", S, ONCE, close_then_clone},
	{"I14", S, ONCE, last_close_leaves_tcp},
	{"I15", S, ONCE, unattach_parked},
	{"I16", S, ONCE, both_disabled},
	{"I17", S, ONCE, disable_twice},
	{"I18", T, ONCE, enable_under_receiver},
	{"I19", Q, ONCE, small_queues},
	{"I20", Q, ONCE, resume_when_empty},
	{"I21", Q, ONCE, slow_reader},
	{"I22", S, ONCE, attach_disabled},
	{"I23", S, ONCE, queued_before_attach},
	{"I24", S, BOTH, both_ends},
};
GUEST_MAIN(cases)
