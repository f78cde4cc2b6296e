/* Section L: random sequences of calls on KCM sockets, connections, pipes, event descriptors and epoll
 * sets, and on their duplicates, in a process and in children it forks.  One case is one seed; what it
 * prints is what every call answered.  Objects are named by a letter and a number.
 *
 * Left out is what the quirk cases show to differ on purpose: several messages in one segment (I21),
 * edges and receives on attached connections (H07, J39), resets (F11, F14). A child does not ask for
 * batches, which say nothing of a message that another process sends, nor what inherited sets show of
 * attached connections, which leave them. */
#include "guest.h"
#include <sys/eventfd.h>

enum { OPEN_MAX = 20, STEPS = 70, CHILD_STEPS = 6, EVENTS_MAX = 2 * OPEN_MAX };

enum kind { FREE, KCM, CONN, PEER, PIPE_OUT, PIPE_IN, EVENT, SET };
static const char letter[] = {'-', 'K', 'C', 'P', 'R', 'W', 'E', 'S'};

static struct descriptor {
	enum kind kind;
	int fd, number; /* duplicates share their number */
} open_ones[OPEN_MAX];
static int numbers, step, in_child, type_of_all, programs[2];
/* By number: what keeps a sequence away from the quirks. */
static int mux_of[OPEN_MAX * 8];  /* KCM, and CONN while attached: number of the mux's first socket, plus 1 */
static int rest_of[OPEN_MAX * 8]; /* PEER: half a message has been sent */
static int end_of[OPEN_MAX * 8];  /* PEER: number of its CONN, and the other way round */
static uint64_t state;

static uint32_t below(uint32_t bound)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return (uint32_t)(state >> 32) % bound;
}

static const char *name_of(const struct descriptor *d)
{
	static char names[4][16];
	static int next;
	char *name = names[next++ % 4];
	sprintf(name, "%c%d", letter[d->kind], d->number);
	return name;
}

static void answer(const char *call, const struct descriptor *d, long value)
{
	int error = errno;
	say("%d%s %s(%s) = %ld %s", step, in_child ? "c" : "", call, name_of(d), value, value == -1 ? errno_name(error) : "");
}

/* A place in the table for a new descriptor; none when it is full. */
static struct descriptor *put_down(enum kind kind, int fd, int number)
{
	for (int i = 0; i < OPEN_MAX; i++)
		if (open_ones[i].kind == FREE) {
			open_ones[i] = (struct descriptor){kind, fd, number};
			return &open_ones[i];
		}
	close(fd);
	return NULL;
}

/* A random open descriptor of a kind, of any with FREE; or NULL. */
static struct descriptor *one(enum kind kind)
{
	int from = below(OPEN_MAX);
	for (int i = 0; i < OPEN_MAX; i++) {
		struct descriptor *d = &open_ones[(from + i) % OPEN_MAX];
		if (d->kind != FREE && (kind == FREE || d->kind == kind))
			return d;
	}
	return NULL;
}

static int room(int want)
{
	int free_ones = 0;
	for (int i = 0; i < OPEN_MAX; i++)
		free_ones += open_ones[i].kind == FREE;
	return free_ones >= want;
}


/* A KCM descriptor was closed: the last of a mux detaches its connections. */
static void forget_dead_muxes(void)
{
	for (int number = 0; number < numbers; number++) {
		int alive = mux_of[number] == 0;
		for (int i = 0; i < OPEN_MAX; i++)
			alive |= open_ones[i].kind == KCM && mux_of[open_ones[i].number] == mux_of[number];
		if (!alive)
			mux_of[number] = 0;
	}
}

/* --- operations -------------------------------------------------------------------------- */

static void make(void)
{
	int ends[2];
	if (!room(2) || numbers + 2 > OPEN_MAX * 8)
		return;
	switch (below(6)) {
	case 0:
		mux_of[numbers] = numbers + 1;
		put_down(KCM, kcm(type_of_all), numbers++);
		break;
	case 1:
	case 2: {
		struct pair t = pair();
		end_of[numbers] = numbers + 1;
		end_of[numbers + 1] = numbers;
		put_down(CONN, t.a, numbers++);
		put_down(PEER, t.p, numbers++);
		break;
	}
	case 3:
		if (pipe2(ends, O_NONBLOCK) == 0) {
			put_down(PIPE_OUT, ends[0], numbers++);
			put_down(PIPE_IN, ends[1], numbers++);
		}
		break;
	case 4: put_down(EVENT, eventfd(below(2), EFD_NONBLOCK), numbers++); break;
	case 5: put_down(SET, epoll_create1(0), numbers++); break;
	}
}

static void requests(void)
{
	struct descriptor *k = one(KCM), *c = one(CONN);
	if (!k)
		return;
	switch (below(5)) {
	case 0:
		if (room(1) && numbers < OPEN_MAX * 8) {
			int made = clone_kcm(k->fd);
			answer("clone", k, made < 0 ? -1 : 0);
			if (made >= 0) {
				mux_of[numbers] = mux_of[k->number];
				put_down(KCM, made, numbers++);
			}
		}
		break;
	case 1:
	case 2:
	case 3:
		if (c) {
			int done = attach(k->fd, c->fd, programs[below(2)]);
			answer(name_of(c), k, done);
			nap(10); /* until it has taken what waited for a connection */
			if (done == 0)
				mux_of[c->number] = mux_of[k->number];
		}
		break;
	case 4:
		if (c && !rest_of[end_of[c->number]]) {
			int done = unattach(k->fd, c->fd);
			answer("unattach", k, done);
			if (done == 0)
				mux_of[c->number] = 0;
		}
		break;
	}
}

/* A message, or the rest of one, or the first part of one. */
static void arrival(void)
{
	struct descriptor *p = one(PEER);
	char data[64];
	if (!p || !mux_of[end_of[p->number]] || (in_child && rest_of[p->number]))
		return;
	if (rest_of[p->number]) {
		put(p->fd, "rest", 4);
		rest_of[p->number] = 0;
		return;
	}
	size_t len = p4(data, 4 + below(20), 'a' + step % 26);
	if (below(4) == 0 && !in_child) {
		len = p4(data, 8, 'a' + step % 26) - 4;
		rest_of[p->number] = 1;
	}
	put(p->fd, data, len);
}

static void receive(void)
{
	static const int flags[] = {0, 0, 0, MSG_PEEK, MSG_TRUNC, MSG_PEEK | MSG_TRUNC};
	struct descriptor *k = one(KCM);
	char buf[64] = "";
	if (!k)
		return;
	struct iovec iov[2] = {{buf, below(4) ? 40 : 5}, {buf + 40, below(8)}};
	struct msghdr m = {.msg_iov = iov, .msg_iovlen = 1 + below(2)};
	ssize_t got = recvmsg(k->fd, &m, DW | flags[below(6)]);
	answer("recvmsg", k, got);
	if (got >= 0)
		say("  %s %s", msg_flags(m.msg_flags), got ? bytes(buf, sizeof buf) : "");
}

static void transmit(void)
{
	struct descriptor *k = one(KCM);
	char data[40];
	if (!k)
		return;
	size_t len = p4(data, below(30), 'A' + step % 26);
	int flags = DW | MSG_NOSIGNAL | (type_of_all == SOCK_SEQPACKET && below(4) ? MSG_EOR : 0) | (below(5) || in_child ? 0 : MSG_BATCH);
	answer("send", k, send(k->fd, data, len, flags));
	nap(10);
}

/* What came out at the other end of a connection. */
static void outcome(void)
{
	struct descriptor *p = one(PEER);
	char buf[4096];
	if (!p)
		return;
	size_t got = collect(p->fd, buf, sizeof buf, 0);
	answer("received", p, got);
	if (got > 0)
		say("  %s", bytes(buf, got));
}

static void plain_io(void)
{
	struct descriptor *d = one(below(2) ? EVENT : below(2) ? PIPE_OUT : PIPE_IN);
	uint64_t word = 1;
	if (!d)
		return;
	if (d->kind == PIPE_OUT || (d->kind == EVENT && below(2)))
		answer("read", d, read(d->fd, &word, 8));
	else
		answer("write", d, write(d->fd, &word, 8));
}

static void duplicate(void)
{
	struct descriptor *d = one(FREE), *onto = one(FREE);
	if (!d || !room(1))
		return;
	if (below(3)) {
		put_down(d->kind, dup(d->fd), d->number);
		return;
	}
	/* A descriptor that takes another's number closes what was there. */
	if (d == onto || onto->kind == PEER || onto->kind == CONN)
		return;
	answer("dup2 onto", onto, dup2(d->fd, onto->fd) == onto->fd ? 0 : -1);
	*onto = (struct descriptor){d->kind, onto->fd, d->number};
	forget_dead_muxes();
}

static void closing(void)
{
	struct descriptor *d = one(FREE);
	if (!d || d->kind == PEER)
		return;
	answer("close", d, close(d->fd));
	d->kind = FREE;
	forget_dead_muxes();
	nap(10);
}

static void options(void)
{
	struct descriptor *k = one(KCM), *c = one(CONN);
	switch (below(3)) {
	case 0:
		if (k)
			answer("recv_disable", k, recv_disable(k->fd, 0));
		break;
	case 1:
		if (k)
			answer("recv_disabled", k, get_int(k->fd, SOL_KCM, KCM_RECV_DISABLE));
		break;
	case 2:
		if (c)
			answer("SO_ERROR", c, take_so_error(c->fd));
		break;
	}
}

static void polling(void)
{
	struct pollfd these[OPEN_MAX];
	struct descriptor *of[OPEN_MAX];
	int count = 0;
	nap(20);
	for (int i = 0; i < OPEN_MAX; i++)
		if (open_ones[i].kind != FREE && below(2) && !(in_child && open_ones[i].kind == SET)) {
			of[count] = &open_ones[i];
			these[count++] = (struct pollfd){open_ones[i].fd, POLLIN | POLLOUT | POLLPRI | POLLRDHUP, 0};
		}
	int ready_ones = poll(these, count, 0);
	say("%d%s poll %d", step, in_child ? "c" : "", ready_ones);
	for (int i = 0; i < count; i++)
		if (these[i].revents)
			say("  %s %s", name_of(of[i]), poll_bits(these[i].revents));
}

static void membership(void)
{
	static const uint32_t wanted[] = {EPOLLIN, EPOLLOUT, EPOLLIN | EPOLLOUT, EPOLLIN | EPOLLRDHUP, 0};
	static const uint32_t modes[] = {0, EPOLLET, EPOLLONESHOT, EPOLLONESHOT | EPOLLET, EPOLLEXCLUSIVE, EPOLLEXCLUSIVE | EPOLLET};
	static const char *const ops[] = {"add", "add", "add", "mod", "mod", "del"};
	static const int op_numbers[] = {EPOLL_CTL_ADD, EPOLL_CTL_ADD, EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLL_CTL_MOD, EPOLL_CTL_DEL};
	struct descriptor *set = one(SET), *d = one(FREE);
	if (!set || !d)
		return;
	int op = below(6);
	struct epoll_event e = {.events = wanted[below(5)] | modes[below(6)], .data.u32 = d - open_ones};
	if (d->kind == CONN)
		e.events &= ~EPOLLET;
	int done = epoll_ctl(set->fd, op_numbers[op], d->fd, &e);
	int error = errno;
	say("%d%s epoll %s(%s, %s, %x) = %s", step, in_child ? "c" : "", ops[op], name_of(set), name_of(d), e.events,
	    done ? errno_name(error) : "0");
}

static int by_member(const void *a, const void *b)
{
	const struct epoll_event *x = a, *y = b;
	return x->data.u32 != y->data.u32 ? (x->data.u32 < y->data.u32 ? -1 : 1) : (x->events > y->events) - (x->events < y->events);
}

static void events(void)
{
	struct descriptor *set = one(SET);
	struct epoll_event these[EVENTS_MAX];
	if (!set)
		return;
	int count = epoll_wait(set->fd, these, EVENTS_MAX, 0);
	answer("epoll_wait", set, count);
	if (count > 0)
		qsort(these, count, sizeof *these, by_member);
	for (int i = 0; i < count; i++)
		say("  %u %x", these[i].data.u32, these[i].events);
}

static void one_step(void)
{
	static void (*const any[])(void) = {
		requests, requests, arrival, arrival, arrival, arrival, receive, receive, receive, transmit, transmit, outcome,
		outcome, plain_io, duplicate, closing, options, polling, polling, membership, membership, membership, events,
		events, events, events};
	any[below(sizeof any / sizeof *any)]();
}

/* A child that does this and that with copies of all descriptors, and ends. */
static void a_child(void)
{
	int status;
	pid_t pid = fork();
	if (pid == 0) {
		static void (*const any[])(void) = {receive, receive, transmit, arrival, plain_io, polling, closing, duplicate};
		in_child = 1;
		for (int i = 0; i < CHILD_STEPS; i++, step++)
			any[below(sizeof any / sizeof *any)]();
		_exit(0);
	}
	waitpid(pid, &status, 0);
	say("%d child ended %x", step, status);
	nap(10);
}

static void sequence(int seed, int type)
{
	state = 0x9e3779b97f4a7c15ULL * (2 * seed + (type == SOCK_DGRAM));
	type_of_all = type;
	programs[0] = programs[1] = prog_p4();
	mux_of[0] = 1;
	put_down(KCM, kcm(type), numbers++);
	for (step = 0; step < 6; step++)
		make();
	for (; step < STEPS; step++) {
		if (below(12) == 0)
			make();
		else if (seed % 2 && below(15) == 0)
			a_child();
		else
			one_step();
	}
}

#define SEED(number)                                                                               \
	static void seed_##number(int type)                                                            \
	{                                                                                              \
		sequence(1##number - 100, type);                                                           \
	}
SEED(01) SEED(02) SEED(03) SEED(04) SEED(05) SEED(06)
SEED(07) SEED(08) SEED(09) SEED(10) SEED(11) SEED(12)
SEED(13) SEED(14) SEED(15) SEED(16) SEED(17) SEED(18)
SEED(19) SEED(20) SEED(21) SEED(22) SEED(23) SEED(24)

static const struct kcm_case cases[] = {
	{"L01", S, BOTH, seed_01}, {"L02", S, BOTH, seed_02}, {"L03", S, BOTH, seed_03},
	{"L04", S, BOTH, seed_04}, {"L05", S, BOTH, seed_05}, {"L06", S, BOTH, seed_06},
	{"L07", S, BOTH, seed_07}, {"L08", S, BOTH, seed_08}, {"L09", S, BOTH, seed_09},
	{"L10", S, BOTH, seed_10}, {"L11", S, BOTH, seed_11}, {"L12", S, BOTH, seed_12},
	{"L13", S, BOTH, seed_13}, {"L14", S, BOTH, seed_14}, {"L15", S, BOTH, seed_15},
	{"L16", S, BOTH, seed_16}, {"L17", S, BOTH, seed_17}, {"L18", S, BOTH, seed_18},
	{"L19", S, BOTH, seed_19}, {"L20", S, BOTH, seed_20}, {"L21", S, BOTH, seed_21},
	{"L22", S, BOTH, seed_22}, {"L23", S, BOTH, seed_23}, {"L24", S, BOTH, seed_24}};
GUEST_MAIN(cases)
