/* kcm_m_signals.c: section M, every call that blocks on a KCM socket, interrupted by a handler with and
 * without SA_RESTART, with and without a timeout, and cancelled; also in a process that inherited the
 * socket. */
#include "guest.h"

enum { EVERY_MS = 15, RELIEF_MS = 80, LONG_MS = 10000 };

static int k;
static struct pair t;
static char room[200];
static int ends[2]; /* of a pipe */

/* --- calls that receive ---------------------------------------------------------------------- */

static struct iovec iov = {room, sizeof room};
static struct mmsghdr header;

static struct msghdr *message(void)
{
	iov = (struct iovec){room, sizeof room};
	header.msg_hdr = (struct msghdr){.msg_iov = &iov, .msg_iovlen = 1};
	return &header.msg_hdr;
}

static long by_read(void) { return read(k, room, sizeof room); }
static long by_readv(void) { return message(), readv(k, &iov, 1); }
static long by_recv(void) { return recv(k, room, sizeof room, 0); }
static long by_recvfrom(void) { return recvfrom(k, room, sizeof room, 0, NULL, NULL); }
static long by_recvmsg(void) { return recvmsg(k, message(), 0); }
static long by_recvmmsg(void) { return message(), recvmmsg(k, &header, 1, 0, NULL); }
static long by_splice(void) { return splice(k, NULL, ends[1], NULL, sizeof room, 0); }

/* --- calls that send ------------------------------------------------------------------------- */

static long by_write(void) { return write(k, "later", 5); }
static long by_writev(void) { return writev(k, &(struct iovec){"later", 5}, 1); }
static long by_send(void) { return send(k, "later", 5, MSG_EOR); }
static long by_sendto(void) { return sendto(k, "later", 5, MSG_EOR, NULL, 0); }
static long by_sendmsg(void)
{
	message(), iov = (struct iovec){"later", 5};
	return sendmsg(k, &header.msg_hdr, MSG_EOR);
}
static long by_sendmmsg(void)
{
	message(), iov = (struct iovec){"later", 5};
	return sendmmsg(k, &header, 1, MSG_EOR);
}

/* --- calls that wait ------------------------------------------------------------------------- */

static int wait_ms; /* negative: for ever */

static long by_poll(void)
{
	return poll(&(struct pollfd){.fd = k, .events = POLLIN}, 1, wait_ms);
}

static struct timespec *as_timespec(void)
{
	static struct timespec length;
	length = (struct timespec){.tv_sec = wait_ms / 1000};
	return wait_ms < 0 ? NULL : &length;
}

static long by_ppoll(void)
{
	return ppoll(&(struct pollfd){.fd = k, .events = POLLIN}, 1, as_timespec(), NULL);
}

static fd_set *only_k(void)
{
	static fd_set set;
	FD_ZERO(&set);
	FD_SET(k, &set);
	return &set;
}

static long by_select(void)
{
	struct timeval length = {.tv_sec = wait_ms / 1000};
	return select(k + 1, only_k(), NULL, NULL, wait_ms < 0 ? NULL : &length);
}

static long by_pselect(void) { return pselect(k + 1, only_k(), NULL, NULL, as_timespec(), NULL); }

static int set_of_k(void)
{
	int set = epoll_create1(0);
	struct epoll_event event = {.events = EPOLLIN};
	epoll_ctl(set, EPOLL_CTL_ADD, k, &event);
	return set;
}

static long by_epoll_wait(void)
{
	struct epoll_event event;
	int set = set_of_k();
	long got = epoll_wait(set, &event, 1, wait_ms);
	int err = errno;
	close(set);
	errno = err;
	return got;
}

static long by_epoll_pwait(void)
{
	struct epoll_event event;
	int set = set_of_k();
	long got = epoll_pwait(set, &event, 1, wait_ms, NULL);
	int err = errno;
	close(set);
	errno = err;
	return got;
}

/* --- the matrix ------------------------------------------------------------------------------ */

struct call {
	const char *name;
	long (*make)(void);
};

#define BY(name) {#name, by_##name}
#define COUNT(calls) (sizeof calls / sizeof *calls)

static const struct call receives[] = {BY(read),	  BY(readv),	  BY(recv),  BY(recvfrom),
									   BY(recvmsg), BY(recvmmsg), BY(splice)};
static const struct call sends[] = {BY(write),  BY(writev),	 BY(send),
									BY(sendto), BY(sendmsg), BY(sendmmsg)};
static const struct call waits[] = {BY(poll),	   BY(ppoll),		 BY(select),
									BY(pselect), BY(epoll_wait), BY(epoll_pwait)};

/* One interrupted call. */
static void interrupt(const struct call *call, const char *how, int flags)
{
	char label[64];
	snprintf(label, sizeof label, "%s, %s", call->name, how);
	signal_after(EVERY_MS, flags);
	RL(label, call->make());
	signal_over();
}

static void *give_later(void *arg)
{
	char data[64];
	usleep(RELIEF_MS * 1000);
	return write(t.p, data, p4(data, 8, 'm')) < 0 ? arg : NULL;
}

/* A timed call ends whatever the handler says; one without a time goes on if the handler says so. */
static void interrupt_receives(void)
{
	for (size_t i = 0; i < COUNT(receives); i++) {
		const struct call *call = &receives[i];
		interrupt(call, "no SA_RESTART", 0);
		set_timeout(k, SO_RCVTIMEO, LONG_MS);
		interrupt(call, "no SA_RESTART, SO_RCVTIMEO", 0);
		interrupt(call, "SA_RESTART, SO_RCVTIMEO", SA_RESTART);
		set_timeout(k, SO_RCVTIMEO, 0);
		pthread_t giver = spawn(give_later, NULL);
		interrupt(call, "SA_RESTART, then a message", SA_RESTART);
		pthread_join(giver, NULL);
	}
}

/* A KCM socket whose queue is full. */
static void fill_queue(void)
{
	static const char zeros[4096];
	set_int(k, SOL_SOCKET, SO_SNDBUF, 1);
	/* What a child sends may have to settle before the queue is full for good. */
	for (int refused = 0; refused < 3;) {
		if (send(k, zeros, sizeof zeros, MSG_DONTWAIT | MSG_EOR) > 0)
			refused = 0;
		else if (++refused < 3)
			usleep(EVERY_MS * 1000);
	}
}

static void *attach_later(void *arg)
{
	usleep(RELIEF_MS * 1000);
	attach(k, t.a, prog_p4());
	return arg;
}

static void interrupt_send(const struct call *call)
{
	fill_queue();
	interrupt(call, "no SA_RESTART", 0);
	set_timeout(k, SO_SNDTIMEO, LONG_MS);
	interrupt(call, "no SA_RESTART, SO_SNDTIMEO", 0);
	interrupt(call, "SA_RESTART, SO_SNDTIMEO", SA_RESTART);
	set_timeout(k, SO_SNDTIMEO, 0);
	pthread_t attacher = spawn(attach_later, NULL);
	interrupt(call, "SA_RESTART, then room", SA_RESTART);
	pthread_join(attacher, NULL);
}

/* No wait is ever restarted. */
static void interrupt_waits(void)
{
	for (size_t i = 0; i < COUNT(waits); i++) {
		wait_ms = -1;
		interrupt(&waits[i], "no SA_RESTART", 0);
		interrupt(&waits[i], "SA_RESTART", SA_RESTART);
		wait_ms = LONG_MS;
		interrupt(&waits[i], "SA_RESTART, timeout", SA_RESTART);
	}
}

static void open_all(int type)
{
	k = kcm(type);
	t = attached(k, prog_p4());
	if (pipe(ends))
		lane_lacks("a pipe");
}

/* Runs `body` in a process that inherited everything. */
static void in_child(void (*body)(void))
{
	fflush(NULL);
	pid_t pid = fork();
	if (!pid) {
		body();
		fflush(NULL);
		_exit(0);
	}
	int status;
	waitpid(pid, &status, 0);
	say("child: %d", status);
}

static void receives_interrupted(int type)
{
	open_all(type);
	interrupt_receives();
}

static void waits_interrupted(int type)
{
	open_all(type);
	interrupt_waits();
}

static void sends_interrupted(int type)
{
	for (size_t i = 0; i < COUNT(sends); i++) {
		k = kcm(type);
		t = pair();
		interrupt_send(&sends[i]);
		close(k), close(t.a), close(t.p);
	}
}

static void receives_of_a_child(int type)
{
	open_all(type);
	in_child(interrupt_receives);
}

static void waits_of_a_child(int type)
{
	open_all(type);
	in_child(interrupt_waits);
}

static void send_of_a_child(void)
{
	interrupt_send(&sends[2]);
}

static void sends_of_a_child(int type)
{
	k = kcm(type);
	t = pair();
	in_child(send_of_a_child);
}

/* --- cancellation ---------------------------------------------------------------------------- */

static void *make_call(void *call)
{
	((const struct call *)call)->make();
	return NULL;
}

/* The call is a cancellation point, and leaves a socket that works. */
static void cancel(const struct call *call, int ms)
{
	void *result;
	pthread_t thread = spawn(make_call, (void *)call);
	usleep(ms * 1000);
	pthread_cancel(thread);
	pthread_join(thread, &result);
	say("%s: %s", call->name, result == PTHREAD_CANCELED ? "cancelled" : "returned");
}

static void cancel_all(void)
{
	wait_ms = -1;
	for (int ms = 0; ms <= 2 * EVERY_MS; ms += 2 * EVERY_MS) {
		for (size_t i = 0; i < COUNT(receives); i++)
			cancel(&receives[i], ms);
		for (size_t i = 0; i < COUNT(waits); i++)
			cancel(&waits[i], ms);
	}
	give_later(NULL);
	R(by_recv());
}

static void cancelled(int type)
{
	open_all(type);
	cancel_all();
}

static void cancelled_in_a_child(int type)
{
	open_all(type);
	in_child(cancel_all);
}

static void sends_cancelled(int type)
{
	k = kcm(type);
	t = pair();
	fill_queue();
	for (size_t i = 0; i < COUNT(sends); i++)
		cancel(&sends[i], 2 * EVERY_MS);
	attach(k, t.a, prog_p4());
	R(send(k, "later", 5, MSG_EOR));
}

static const struct kcm_case cases[] = {
	{"M01", S, BOTH, receives_interrupted}, {"M02", S, BOTH, waits_interrupted},
	{"M03", S, BOTH, sends_interrupted},	{"M04", S, BOTH, receives_of_a_child},
	{"M05", S, BOTH, waits_of_a_child},		{"M06", S, BOTH, sends_of_a_child},
	{"M07", S, BOTH, cancelled},			{"M08", S, BOTH, cancelled_in_a_child},
	{"M09", S, BOTH, sends_cancelled},
};
GUEST_MAIN(cases)
