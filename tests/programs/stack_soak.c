/* stack_soak: a service on the stack under load, round after round. Connections come from a peer on the
 * kernel's stack, bring bytes of all sizes, take them back and leave, some with a reset in the middle.
 * Threads of the server answer them, and workers, forked while all this goes on, one of which is killed
 * in each round; what the server connects to itself, and a program that it starts, gets its bytes back
 * as well, and so do datagrams. Every byte that comes back is the right one, nobody waits for ever, and
 * the server needs no more of anything in the end than in the beginning.
 *   stack_soak serve ADDRESS PEER          serves, until its standard input ends
 *   stack_soak call ADDRESS PEER SECONDS   calls for so long, and serves until its standard input ends
 *   stack_soak guest PEER                  a few connections of a program of its own */
#include "usage.h"
#include <poll.h>
#include <spawn.h>
#include <stdatomic.h>

enum {
	ECHO = 7,       /* the port of those who send back */
	CALLERS = 6,
	ANSWERERS = 2,
	CONNS = 64,     /* of a worker at a time */
	SOME = 16384,   /* bytes moved at a time */
	MOST = 300000,  /* bytes a connection brings */
	OF_GUEST = 3,   /* connections */
	WARM_ROUNDS = 10,
	/* A receive ring of 8 MiB that is touched bit by bit, and what all connections have under way at their
	 * fullest: on a link with faults 24 MiB in all, from the first minute on. */
	SLACK_KIB = 32 << 10,
};

static struct in_addr address, peer;

static struct sockaddr_in at(struct in_addr host, int port)
{
	return (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(port), .sin_addr = host};
}

static int bound(int type, struct in_addr host, int port)
{
	struct sockaddr_in where = at(host, port);
	int fd = socket(AF_INET, type | SOCK_NONBLOCK, 0), one = 1;
	CHECK(fd >= 0 && setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) == 0);
	CHECK(bind(fd, (void *)&where, sizeof where) == 0);
	CHECK(type != SOCK_STREAM || listen(fd, 128) == 0);
	return fd;
}

static void await(int fd, short events)
{
	struct pollfd p = {fd, events, 0};
	CHECK(poll(&p, 1, -1) == 1);
}

/* On a link with faults a reset may be lost, and nobody hears of the end: so both ends ask. */
static void keep_asking(int fd)
{
	int one = 1;
	CHECK(setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one) == 0);
	CHECK(setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &one, sizeof one) == 0);
	CHECK(setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &one, sizeof one) == 0);
}

/* ---- those who send back */

struct conn {
	int fd;
	size_t from, to;
	unsigned char bytes[SOME];
};

/* As far as it goes now. 0 once there is nothing more to come, or nobody to hear it. */
static int send_back(struct conn *c)
{
	for (;;) {
		ssize_t n;
		if (c->from < c->to) {
			n = send(c->fd, c->bytes + c->from, c->to - c->from, MSG_NOSIGNAL);
			if (n > 0)
				c->from += n;
		} else {
			c->from = c->to = 0;
			n = recv(c->fd, c->bytes, SOME, 0);
			if (n > 0)
				c->to = n;
		}
		if (n < 0 && errno == EAGAIN)
			return 1;
		CHECK(n >= 0 || errno == ECONNRESET || errno == EPIPE);
		if (n <= 0)
			return 0;
	}
}

static int accepted(int listener)
{
	int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	CHECK(fd >= 0 || errno == EAGAIN || errno == ECONNABORTED);
	if (fd >= 0)
		keep_asking(fd);
	return fd;
}

static int listener;

static void *answer(void *unused)
{
	struct conn c;
	for (;;) {
		struct pollfd p = {listener, POLLIN, 0};
		CHECK(poll(&p, 1, -1) == 1);
		if ((c.fd = accepted(listener)) < 0)
			continue;
		c.from = c.to = 0;
		while (send_back(&c))
			await(c.fd, c.from < c.to ? POLLOUT : POLLIN);
		close(c.fd);
	}
	return unused;
}

static void *answer_datagrams(void *arg)
{
	struct sockaddr_in from;
	char bytes[64];
	for (int fd = (intptr_t)arg;;) {
		struct pollfd p = {fd, POLLIN, 0};
		socklen_t len = sizeof from;
		CHECK(poll(&p, 1, -1) == 1);
		ssize_t n = recvfrom(fd, bytes, sizeof bytes, 0, (void *)&from, &len);
		if (n >= 0)
			sendto(fd, bytes, n, 0, (void *)&from, len);
	}
	return NULL;
}

static void close_all_but(int lower, int higher)
{
	CHECK(lower == 3 || close_range(3, lower - 1, 0) == 0);
	CHECK(lower + 1 == higher || close_range(lower + 1, higher - 1, 0) == 0);
	CHECK(close_range(higher + 1, ~0U, 0) == 0);
}

/* A child that answers until something comes at `stop`, and then those who are there. */
static pid_t worker(int stop)
{
	static struct conn conns[CONNS];
	pid_t pid = fork();
	CHECK(pid >= 0);
	if (pid)
		return pid;
	hang_guard("a worker");
	/* What the threads of the server had open would stay open, and their peers would wait for ever. */
	close_all_but(listener < stop ? listener : stop, listener < stop ? stop : listener);
	int set = epoll_create1(0), open = 0, serves = 1;
	struct epoll_event e = {.events = EPOLLIN, .data.u32 = CONNS};
	CHECK(set >= 0 && epoll_ctl(set, EPOLL_CTL_ADD, listener, &e) == 0);
	e = (struct epoll_event){.events = EPOLLIN, .data.u32 = CONNS + 1};
	CHECK(epoll_ctl(set, EPOLL_CTL_ADD, stop, &e) == 0);
	for (int i = 0; i < CONNS; i++)
		conns[i].fd = -1;
	while (serves || open) {
		if (epoll_wait(set, &e, 1, -1) != 1)
			continue; /* stopped and continued */
		unsigned i = e.data.u32;
		if (i == CONNS + 1) {
			CHECK(epoll_ctl(set, EPOLL_CTL_DEL, stop, NULL) == 0);
			CHECK(open == CONNS || epoll_ctl(set, EPOLL_CTL_DEL, listener, NULL) == 0);
			serves = 0;
			continue;
		}
		if (i == CONNS) {
			for (i = 0; conns[i].fd >= 0; i++)
				;
			conns[i] = (struct conn){.fd = accepted(listener)};
			e = (struct epoll_event){.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.u32 = i};
			if (conns[i].fd < 0)
				continue;
			CHECK(epoll_ctl(set, EPOLL_CTL_ADD, conns[i].fd, &e) == 0);
			CHECK(++open < CONNS || epoll_ctl(set, EPOLL_CTL_DEL, listener, NULL) == 0);
		} else if (conns[i].fd >= 0 && !send_back(&conns[i])) {
			close(conns[i].fd);
			conns[i].fd = -1;
			e = (struct epoll_event){.events = EPOLLIN, .data.u32 = CONNS};
			CHECK(open-- < CONNS || !serves || epoll_ctl(set, EPOLL_CTL_ADD, listener, &e) == 0);
		}
	}
	_exit(0);
}

/* ---- those who send */

static unsigned char nth(unsigned seed, size_t n)
{
	return seed + n * 7 + (n >> 8);
}

static int dial(struct in_addr host)
{
	struct sockaddr_in to = at(host, ECHO);
	for (;; usleep(10000)) {
		int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
		CHECK(fd >= 0);
		keep_asking(fd);
		if (connect(fd, (void *)&to, sizeof to) == 0) {
			CHECK(fcntl(fd, F_SETFL, O_NONBLOCK) == 0);
			return fd;
		}
		CHECK(errno == ECONNREFUSED); /* not there yet */
		close(fd);
	}
}

/* Sends `total` bytes and takes them back, or some of them and leaves. Whether all came; the other end
 * may be killed. */
static int exchange(int fd, unsigned *seed, size_t total)
{
	unsigned char bytes[SOME], key = rand_r(seed);
	size_t sent = 0, got = 0, enough = rand_r(seed) % 8 ? total : total / 2;
	int whole = 1;
	while (got < enough && whole) {
		ssize_t n = 0;
		await(fd, sent < total ? POLLIN | POLLOUT : POLLIN);
		size_t most = total - sent < SOME ? total - sent : SOME;
		for (size_t i = 0; i < most; i++)
			bytes[i] = nth(key, sent + i);
		if (most && (n = send(fd, bytes, 1 + rand_r(seed) % most, MSG_NOSIGNAL)) > 0)
			sent += n;
		CHECK(n >= 0 || errno == EAGAIN || errno == EPIPE || errno == ECONNRESET);
		while ((n = recv(fd, bytes, SOME, 0)) > 0)
			for (ssize_t i = 0; i < n; i++, got++)
				CHECK(bytes[i] == nth(key, got));
		CHECK(n == 0 || errno == EAGAIN || errno == ECONNRESET);
		whole = n < 0 && errno == EAGAIN;
	}
	whole = got == total;
	if (got < total && enough < total)
		reset(fd);
	else if (whole && shutdown(fd, SHUT_WR) == 0) {
		await(fd, POLLIN);
		ssize_t n = recv(fd, bytes, SOME, 0);
		CHECK(n == 0 || (n < 0 && errno == ECONNRESET));
		close(fd);
	} else
		close(fd);
	return whole;
}

static size_t some_size(unsigned *seed)
{
	return 1 + rand_r(seed) % (rand_r(seed) % 2 ? MOST : 2000);
}

static atomic_int is_over, whole, cut, answered;

static void *caller(void *arg)
{
	unsigned seed = (intptr_t)arg;
	while (!atomic_load(&is_over)) {
		int came = exchange(dial(address), &seed, some_size(&seed));
		atomic_fetch_add(came ? &whole : &cut, 1);
	}
	return NULL;
}

static void *datagram_caller(void *unused)
{
	struct sockaddr_in to = at(address, ECHO);
	int fd = socket(AF_INET, SOCK_DGRAM, 0);
	CHECK(connect(fd, (void *)&to, sizeof to) == 0 && set_timeout(fd, SO_RCVTIMEO, 100) == 0);
	for (unsigned number = 0, back; !atomic_load(&is_over); number++) {
		CHECK(send(fd, &number, sizeof number, 0) == sizeof number);
		/* What was late answers an earlier one. */
		if (recv(fd, &back, sizeof back, 0) == sizeof back) {
			CHECK(back <= number);
			atomic_fetch_add(&answered, 1);
		}
	}
	return unused;
}

static void *dialer(void *unused)
{
	unsigned seed = 1;
	while (!atomic_load(&is_over))
		exchange(dial(peer), &seed, some_size(&seed));
	return unused;
}

static int guest(void)
{
	unsigned seed = getpid();
	hang_guard("guest");
	for (int i = 0; i < OF_GUEST; i++)
		exchange(dial(peer), &seed, some_size(&seed));
	return 0;
}

/* ---- both ends */

static int has_ended(void)
{
	struct pollfd p = {STDIN_FILENO, POLLIN, 0};
	return poll(&p, 1, 0) != 0;
}

static void one_round(unsigned *seed, char **guest_words)
{
	extern char **environ;
	pid_t lost, kept, program;
	int stop[2], status;
	CHECK(pipe(stop) == 0);
	lost = worker(stop[0]);
	kept = worker(stop[0]);
	CHECK(posix_spawn(&program, "/proc/self/exe", NULL, NULL, guest_words, environ) == 0);
	usleep(rand_r(seed) % 100000);
	kill(lost, SIGKILL);
	CHECK(waitpid(lost, &status, 0) == lost && WIFSIGNALED(status));
	CHECK(waitpid(program, &status, 0) == program && status == 0);
	CHECK(write(stop[1], "", 1) == 1);
	CHECK(waitpid(kept, &status, 0) == kept && status == 0);
	close(stop[0]);
	close(stop[1]);
}

static int serve(char *peer_name)
{
	char *guest_words[] = {"stack_soak", "guest", peer_name, NULL};
	struct usage warm = {0};
	unsigned seed = 1, round = 0;
	listener = bound(SOCK_STREAM, address, ECHO);
	for (int i = 0; i < ANSWERERS; i++)
		spawn(answer, NULL);
	spawn(answer_datagrams, (void *)(intptr_t)bound(SOCK_DGRAM, address, ECHO));
	pthread_t dials = spawn(dialer, NULL);
	puts("listening");
	do {
		hang_guard("stack_soak");
		one_round(&seed, guest_words);
		if (++round == WARM_ROUNDS)
			warm = usage();
	} while (round < WARM_ROUNDS || !has_ended());
	atomic_store(&is_over, 1);
	pthread_join(dials, NULL);
	printf("%u rounds: ", round);
	check_steady(warm, usage(), SLACK_KIB);
	puts("done");
	return 0;
}

static int call(long seconds)
{
	pthread_t callers[CALLERS + 1];
	listener = bound(SOCK_STREAM, peer, ECHO);
	for (int i = 0; i < ANSWERERS; i++)
		spawn(answer, NULL);
	for (intptr_t i = 0; i < CALLERS; i++)
		callers[i] = spawn(caller, (void *)(i + 1));
	callers[CALLERS] = spawn(datagram_caller, NULL);
	sleep(seconds);
	atomic_store(&is_over, 1);
	hang_guard("call");
	for (int i = 0; i <= CALLERS; i++)
		pthread_join(callers[i], NULL);
	printf("%d connections had all their bytes, %d some; %d datagrams\n", atomic_load(&whole), atomic_load(&cut),
	       atomic_load(&answered));
	CHECK(atomic_load(&whole) > 0 && atomic_load(&answered) > 0);
	puts("done");
	await(STDIN_FILENO, POLLIN | POLLHUP);
	return 0;
}

int main(int argc, char **argv)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (argc == 3 && !strcmp(argv[1], "guest"))
		return inet_aton(argv[2], &peer) ? guest() : 2;
	CHECK(argc >= 4 && inet_aton(argv[2], &address) && inet_aton(argv[3], &peer));
	return argc == 4 ? serve(argv[3]) : call(atol(argv[4]));
}
