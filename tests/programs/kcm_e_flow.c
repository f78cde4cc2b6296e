/* Section E: flow control on the sending side and the choice of the psock. */
#include "guest.h"
#include "guest_proc.h"

/* More than a small pair takes in. */
enum { FILLING = 200000 };

static char zeros[500000];

/* SO_SNDBUF at its minimum and 6012 bytes queued, so that the next send must wait. */
static int full_queue(void)
{
	int k = kcm(SOCK_DGRAM);
	set_int(k, SOL_SOCKET, SO_SNDBUF, 1);
	memset(zeros, 'z', sizeof zeros);
	send(k, "abcdefghijkl", 12, DW);
	for (int i = 0; i < 3; i++)
		send(k, zeros, 2000, DW);
	return k;
}

static void sndbuf_gate(int type)
{
	int k = kcm(type);
	set_int(k, SOL_SOCKET, SO_SNDBUF, 1);
	R(send(k, zeros, 12, DW));
	for (int i = 0; i < 4; i++)
		R(send(k, zeros, 2000, DW));
}

static void full_poll(int type)
{
	int k = full_queue();
	(void)type;
	R(send(k, zeros, 1, DW));
	POLLS(k);
}

static void send_timeout(int type)
{
	int k = full_queue();
	(void)type;
	set_timeout(k, SO_SNDTIMEO, 200);
	long before = now_ms();
	R(send(k, zeros, 1, 0));
	say("not before 0.2 s: %d", now_ms() - before >= 190);
}

static void attach_flushes(int type)
{
	int k = full_queue();
	(void)type;
	struct pair t = attached(k, prog_p4());
	drain(t.p, 6012);
	R(send(k, "later", 5, DW));
	drain(t.p, 5);
}

static void one_large_send(int type)
{
	int k = kcm(type);
	set_int(k, SOL_SOCKET, SO_SNDBUF, 1);
	R(send(k, zeros, 500000, DW));
	R(send(k, zeros, 4, DW));
}

static void send_interrupted(int type)
{
	int k = full_queue();
	(void)type;
	signal_after(100, 0);
	R(send(k, zeros, 1, 0));
	signal_over();
}

/* What attach_later attaches. */
struct later {
	int k, a, prog;
};

static void *attach_later(void *arg)
{
	struct later *later = arg;
	usleep(400000);
	return attach(later->k, later->a, later->prog) ? arg : NULL;
}

static void send_restarted(int type)
{
	(void)type;
	struct later later = {.k = full_queue(), .a = pair().a, .prog = prog_p4()};
	pthread_t attacher = spawn(attach_later, &later);
	long before = now_ms();
	signal_after(100, SA_RESTART);
	R(send(later.k, "later", 5, 0));
	signal_over();
	say("not before 0.4 s: %d", now_ms() - before >= 350);
	pthread_join(attacher, NULL);
}

static void rotation(int type)
{
	int k = kcm(type), b = prog_p4();
	struct pair t = attached(k, b), u = attached(k, b);
	for (int i = 0; i < 4; i++) {
		char c = '1' + i;
		send(k, &c, 1, MSG_EOR);
		nap(4);
	}
	drain(t.p, 2);
	drain(u.p, 2);
}

static void batch_stays(int type)
{
	int k = kcm(type), b = prog_p4();
	struct pair t = attached(k, b), u = attached(k, b);
	R(send(k, "1", 1, MSG_BATCH | MSG_EOR));
	R(send(k, "2", 1, MSG_BATCH | MSG_EOR));
	R(send(k, "3", 1, MSG_EOR));
	drain(t.p, 3);
	drain(u.p, 0);
}

static void waiting_order(int type)
{
	int k = kcm(type), b = clone_kcm(k), c = clone_kcm(k);
	send(c, "3333", 4, MSG_EOR);
	send(b, "2222", 4, MSG_EOR);
	send(k, "1111", 4, MSG_EOR);
	send(c, "cccc", 4, MSG_EOR);
	struct pair t = attached(k, prog_p4());
	drain(t.p, 16);
}

/* k has filled the only connection and has one more message queued; clone c has queued one. */
struct jam {
	int k, c, prog;
	struct pair t;
};

static struct jam jam(int second)
{
	struct jam j = {.k = kcm(SOCK_DGRAM), .prog = prog_p4()};
	j.c = clone_kcm(j.k);
	j.t = attached_small(j.k, j.prog);
	fill(zeros, FILLING, 0);
	R(send(j.k, zeros, FILLING, DW));
	R(send(j.k, "kkkkkkkkkkkk", 12, DW));
	if (!second)
		R(send(j.c, "cccccccccccc", 12, DW));
	return j;
}

static void jam_accepts(int type)
{
	(void)type;
	jam(0);
}

static void jam_drains(int type)
{
	static char got[FILLING + 64];
	(void)type;
	struct jam j = jam(0);
	size_t total = collect(j.t.p, got, sizeof got, FILLING + 24);
	const char *rest = total > FILLING ? bytes(got + FILLING, total - FILLING) : "nothing";
	say("peer got %zu exact %d then %s", total, filled(got, FILLING, 0), rest);
}

static void jam_second_connection(int type)
{
	(void)type;
	struct jam j = jam(1);
	struct pair u = attached(j.k, j.prog);
	R(send(j.c, "cccccccccccc", 12, DW));
	drain(u.p, 12);
}

static void jam_proc(int type)
{
	(void)type;
	struct jam j = jam(0);
	nap(10);
	char *rest;
	int k_reserved = 0, psock_reserved = 0, clone_waits = 0;
	for (char *line = strtok_r(proc_read("/proc/net/kcm"), "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
		k_reserved |= strstr(line, "kcm-0") && strstr(line, "Psck-0 ");
		clone_waits |= strstr(line, "kcm-1") && strstr(line, "TxWait ");
		psock_reserved |= strstr(line, "psock-0") && strstr(line, "Rsvd-0 ");
	}
	say("kcm-0 Psck-0: %d, kcm-1 TxWait: %d, psock-0 Rsvd-0: %d", k_reserved, clone_waits, psock_reserved);
	close(j.k);
}

static void jam_close(int type)
{
	(void)type;
	static char got[FILLING];
	struct jam j = jam(0);
	R(close(j.k));
	nap(10);
	SO_ERR(j.t.a);
	size_t total = collect(j.t.p, got, sizeof got, 1000);
	int clone_sent = total >= 12 && !memcmp(got + total - 12, "cccccccccccc", 12);
	say("fragment only: %d, the clone's bytes absent: %d", total < FILLING && filled(got, total, 0), !clone_sent);
	msg(j.t.p, 8, 'm');
	rx(j.c, 100, 0);
}

static void close_discards(int type)
{
	int k = kcm(type), c = clone_kcm(k);
	R(send(k, "lost", 4, MSG_EOR));
	R(close(k));
	struct pair t = attached(c, prog_p4());
	drain(t.p, 0);
}

static void send_and_close(int type)
{
	int k = kcm(type);
	struct pair t = attached(k, prog_p4());
	R(send(k, "kept", 4, MSG_EOR));
	R(close(k));
	drain(t.p, 4);
	R(write(t.a, "raw", 3));
	drain(t.p, 3);
	PUT(t.p, "back");
	drain(t.a, 4);
}

static void open_message_close(int type)
{
	(void)type;
	int k = kcm(SOCK_SEQPACKET);
	struct pair t = attached(k, prog_p4());
	R(send(k, "open", 4, 0));
	R(close(k));
	drain(t.p, 0);
	SO_ERR(t.a);
}

static const struct kcm_case cases[] = {
	{"E01", S, ONCE, sndbuf_gate},
	{"E02", S, ONCE, full_poll},
	{"E03", T, ONCE, send_timeout},
	{"E04", S, ONCE, attach_flushes},
	{"E05", S, ONCE, one_large_send},
	{"E06", S, ONCE, send_interrupted},
	{"E07", T, ONCE, send_restarted},
	{"E08", S, BOTH, rotation},
	{"E09", S, BOTH, batch_stays},
	{"E10", S, BOTH, waiting_order},
	{"E11", S, ONCE, jam_accepts},
	{"E12", T, ONCE, jam_drains},
	{"E13", S, ONCE, jam_second_connection},
	{"E14", S, ONCE, jam_proc},
	{"E15", S, ONCE, jam_close},
	{"E16", S, BOTH, close_discards},
	{"E17", S, BOTH, send_and_close},
	{"E18", S, ONCE, open_message_close},
};
GUEST_MAIN(cases)
