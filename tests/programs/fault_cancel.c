/* fault_cancel: threads blocked on KCM sockets, and what ends their waits: cancellation, longjmp,
 * a close in another thread, a set that becomes one of ours while its waiter is in the kernel.
 * Everything a waiter held is given back: the next waiter works, and no descriptor stays behind. */
#include "check.h"
#include <setjmp.h>

static int k, tcp, peer, program;

static void fresh(void)
{
	k = kcm(SOCK_DGRAM);
	struct pair t = pair();
	tcp = t.a;
	peer = t.p;
	CHECK(attach(k, tcp, program) == 0);
}

static void done(void)
{
	close(k);
	close(tcp);
	close(peer);
}

static void send_one(char c)
{
	char data[8];
	CHECK(write(peer, data, p4(data, 4, c)) == 8);
}

/* A message gets to a receiver at once: nobody who is gone still watches the connection. */
static void works(char c)
{
	char buf[64];
	CHECK(set_timeout(k, SO_RCVTIMEO, 10000) == 0);
	send_one(c);
	CHECK(recv(k, buf, sizeof buf, 0) == 8 && buf[4] == c);
}

static void *in_recv(void *arg)
{
	char buf[64];
	recv(k, buf, sizeof buf, 0);
	return arg;
}

static void *in_poll(void *arg)
{
	struct pollfd p[2] = {{.fd = k, .events = POLLIN}, {.fd = tcp, .events = POLLPRI}};
	poll(p, 2, -1);
	return arg;
}

static void *in_select(void *arg)
{
	fd_set set;
	FD_ZERO(&set);
	FD_SET(k, &set);
	select(k + 1, &set, NULL, NULL, NULL);
	return arg;
}

static void *in_epoll(void *arg)
{
	struct epoll_event e;
	epoll_wait((int)(intptr_t)arg, &e, 1, -1);
	return NULL;
}

static void *in_send(void *arg)
{
	static char big[1 << 16];
	p4(big, sizeof big - 4, 's');
	for (;;)
		if (send(k, big, sizeof big, 0) < 0)
			return arg;
}

static int make_set(int fd, int events)
{
	struct epoll_event e = {.events = events, .data.fd = fd};
	int set = epoll_create1(EPOLL_CLOEXEC);
	CHECK(set >= 0 && epoll_ctl(set, EPOLL_CTL_ADD, fd, &e) == 0);
	return set;
}

static void cancelled(void *(*body)(void *), void *arg)
{
	pthread_t thread = spawn(body, arg);
	void *result;
	usleep(20000);
	CHECK(pthread_cancel(thread) == 0);
	CHECK(pthread_join(thread, &result) == 0 && result == PTHREAD_CANCELED);
}

static void cancellation(void)
{
	static void *(*const bodies[])(void *) = {in_recv, in_poll, in_select, in_epoll};
	int before = 0;
	for (int round = 0; round < 6; round++) {
		for (size_t i = 0; i < sizeof bodies / sizeof *bodies; i++) {
			fresh();
			int set = make_set(k, EPOLLIN);
			cancelled(bodies[i], (void *)(intptr_t)set);
			works('a' + i);
			/* The socket is not held any more: its close ends the mux, and the peer sees it. */
			done();
			close(set);
		}
		/* The first round makes the doorbells. */
		if (round == 1)
			before = open_fd_count();
	}
	CHECK(open_fd_count() == before);
}

static void cancelled_sender(void)
{
	fresh();
	cancelled(in_send, NULL);
	static char sink[1 << 16];
	while (recv(peer, sink, sizeof sink, ready(peer, POLLIN, 300) ? 0 : DW) > 0)
		;
	char byte = 0;
	CHECK(send(k, &byte, 1, DW) == 1);
	done();
}

static sigjmp_buf home;

static void jump(int sig)
{
	(void)sig;
	siglongjmp(home, 1);
}

static pthread_t victim;

static void *kick(void *arg)
{
	usleep(20000);
	pthread_kill(victim, SIGUSR2);
	return arg;
}

static void jumps(void)
{
	static void *(*const bodies[])(void *) = {in_recv, in_poll, in_select, in_epoll};
	struct sigaction act = {.sa_handler = jump};
	CHECK(sigaction(SIGUSR2, &act, NULL) == 0);
	victim = pthread_self();
	for (int i = 0; i < 4; i++) {
		fresh();
		int set = make_set(k, EPOLLIN);
		pthread_t thread = spawn(kick, NULL);
		if (!sigsetjmp(home, 1)) {
			bodies[i]((void *)(intptr_t)set);
			CHECK(!"woken without a message");
		}
		pthread_join(thread, NULL);
		works('j');
		close(set);
		done();
	}
}

struct waiter {
	int fd, by, got;
	_Atomic pid_t tid;
};

/* Until the waiter's thread is in a system call that waits: what comes next finds it asleep. */
static void asleep(struct waiter *w)
{
	static const long waits[] = {
		SYS_recvfrom, SYS_recvmsg, SYS_ppoll, SYS_epoll_pwait, SYS_epoll_pwait2,
#ifdef SYS_poll
		SYS_poll, SYS_epoll_wait,
#endif
	};
	for (;;) {
		char path[64], line[64] = "";
		snprintf(path, sizeof path, "/proc/self/task/%d/syscall", w->tid);
		int fd = w->tid ? open(path, O_RDONLY) : -1;
		if (fd >= 0) {
			CHECK(read(fd, line, sizeof line - 1) > 0);
			close(fd);
			for (size_t i = 0; i < sizeof waits / sizeof *waits; i++)
				if (strtol(line, NULL, 10) == waits[i] && line[0] != 'r')
					return;
		}
		usleep(1000);
	}
}

static void *one_message(void *arg)
{
	struct waiter *w = arg;
	w->tid = gettid();
	char buf[64];
	struct epoll_event e;
	struct pollfd p = {.fd = w->fd, .events = POLLIN};
	if (w->by == 0)
		w->got = recv(w->fd, buf, sizeof buf, 0);
	else if (w->by == 1)
		w->got = poll(&p, 1, 5000);
	else
		w->got = epoll_wait(w->fd, &e, 1, 5000);
	return NULL;
}

/* A blocked call keeps what its number stood for: closing the number neither wakes nor fails it. */
static void closed_while_blocked(void)
{
	for (int by = 0; by < 3; by++) {
		fresh();
		int set = make_set(k, EPOLLIN);
		struct waiter w = {.fd = by == 2 ? set : k, .by = by, .got = -99};
		pthread_t thread = spawn(one_message, &w);
		asleep(&w);
		close(w.fd);
		usleep(10000);
		CHECK(w.got == -99);
		send_one('x');
		pthread_join(thread, NULL);
		CHECK(w.got == (by == 0 ? 8 : 1));
		if (by < 2)
			close(set);
		else
			close(k);
		close(tcp);
		close(peer);
	}
}

/* The waiter is in the kernel's epoll_wait when the set gets its first KCM socket. */
static void joined_while_waiting(void)
{
	for (int round = 0; round < 5; round++) {
		int ends[2];
		CHECK(pipe(ends) == 0);
		int set = make_set(ends[0], EPOLLIN), twin = dup(set);
		struct waiter w[2] = {{.fd = set, .by = 2, .got = -99}, {.fd = twin, .by = 2, .got = -99}};
		pthread_t a = spawn(one_message, &w[0]), b = spawn(one_message, &w[1]);
		asleep(&w[0]);
		asleep(&w[1]);
		fresh();
		struct epoll_event e = {.events = EPOLLIN};
		CHECK(epoll_ctl(round & 1 ? twin : set, EPOLL_CTL_ADD, k, &e) == 0);
		send_one('x');
		/* Level-triggered, and nobody takes the message: both come out. */
		pthread_join(a, NULL);
		pthread_join(b, NULL);
		CHECK(w[0].got == 1 && w[1].got == 1);
		/* The pipe, which was there first, is still heard, by either number. */
		char buf[64];
		CHECK(recv(k, buf, sizeof buf, DW) == 8);
		CHECK(write(ends[1], "x", 1) == 1);
		CHECK(epoll_wait(set, &e, 1, 5000) == 1 && epoll_wait(twin, &e, 1, 5000) == 1);
		close(set);
		close(twin);
		close(ends[0]);
		close(ends[1]);
		done();
	}
}

/* A monitor registers its connections before it attaches them. */
static void registered_before_attach(void)
{
	for (int waiting = 0; waiting < 2; waiting++) {
		struct pair t = pair();
		int set = make_set(t.a, waiting ? EPOLLPRI : EPOLLIN | EPOLLET);
		struct waiter w = {.fd = set, .by = 2, .got = -99};
		pthread_t thread = 0;
		if (waiting) {
			thread = spawn(one_message, &w);
			asleep(&w);
		}
		k = kcm(SOCK_DGRAM);
		CHECK(attach(k, t.a, prog_const(-EPROTO)) == 0);
		CHECK(write(t.p, "garbage", 7) == 7);
		struct epoll_event e = {0};
		if (waiting) {
			pthread_join(thread, NULL);
			CHECK(w.got == 1);
		}
		do
			CHECK(epoll_wait(set, &e, 1, 5000) == 1);
		while (!(e.events & EPOLLERR));
		CHECK(e.data.fd == t.a);
		CHECK(take_so_error(t.a) == EPROTO);
		/* The registration is still one: it can be changed and taken back. */
		e.events = EPOLLOUT;
		CHECK(epoll_ctl(set, EPOLL_CTL_MOD, t.a, &e) == 0);
		CHECK(epoll_wait(set, &e, 1, 5000) == 1 && e.events == EPOLLOUT);
		CHECK(epoll_ctl(set, EPOLL_CTL_DEL, t.a, NULL) == 0);
		FAILS(epoll_ctl(set, EPOLL_CTL_DEL, t.a, NULL), ENOENT);
		CHECK(epoll_wait(set, &e, 1, 0) == 0);
		close(set);
		close(k);
		close(t.a);
		close(t.p);
	}
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		void (*run)(void);
	} parts[] = {
		{"cancellation", cancellation}, {"cancelled_sender", cancelled_sender}, {"jumps", jumps},
		{"closed_while_blocked", closed_while_blocked},
		{"joined_while_waiting", joined_while_waiting},
		{"registered_before_attach", registered_before_attach}};
	hang_guard("fault_cancel");
	program = prog_p4();
	for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
		if (argc < 2 || !strcmp(argv[1], parts[i].name))
			parts[i].run();
	return 0;
}
