/* Sockets of processes at an address that another process has opened.
 *
 *   stack_guests trace ADDRESS    children of a process that has connections open their own, and print what
 *                                 each call returned; ADDRESS is that of `stack_share peer`
 *   stack_guests leaves ADDRESS   children that end before what they sent is taken
 *   stack_guests ports ADDRESS OWN
 *                                 uses the port of what another has left at OWN
 *   stack_guests survives ADDRESS OWN
 *                                 kills the makers of listeners at OWN, and prints what the peer hears
 *   stack_guests forks ADDRESS OWN
 *                                 forks while workers get what comes to OWN
 *   stack_guests bound ADDRESS OWN
 *                                 binds sockets for children, which listen and connect
 *   stack_guests takes ADDRESS FD listens on what it has inherited, and answers four calls
 *   stack_guests datagrams ADDRESS OWN
 *                                 a UDP server with children, which `stack_guests asks` asks
 *   stack_guests hold ADDRESS     opens a connection, says "holding", ends when its standard input does
 *   stack_guests echo ADDRESS     one connection, and its echo */
#define _GNU_SOURCE
#include "stack_family.h"

#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

enum { OWN = 7210 };
/* UDP: where nobody reads; how often a socket is connected there and back. */
enum { DISCARDS = 7209, TURNS = 100 };

static int tcp(int flags)
{
	int fd = socket(AF_INET, SOCK_STREAM | flags, 0);
	check(fd >= 0, "socket");
	return fd;
}

static void so_error(int fd)
{
	int error = -1;
	socklen_t n = sizeof error;
	check(getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &n) == 0, "SO_ERROR");
	printf("SO_ERROR %s\n", name(error));
	fflush(stdout);
}

static int shows(int fd)
{
	struct pollfd p = { fd, POLLIN | POLLOUT | POLLRDHUP, 0 };
	check(poll(&p, 1, 0) >= 0, "poll");
	return p.revents;
}

static struct sockaddr_in local(int fd)
{
	struct sockaddr_in a = { 0 };
	socklen_t n = sizeof a;
	check(getsockname(fd, (void *)&a, &n) == 0, "getsockname");
	return a;
}

static void names(int fd)
{
	struct sockaddr_in here = local(fd), there = { 0 };
	socklen_t n = sizeof there;
	int r = getpeername(fd, (void *)&there, &n);
	printf("family %d, from %s, a port %d, ", here.sin_family, inet_ntoa(here.sin_addr), here.sin_port != 0);
	printf("to %d %s %d %s\n", r, r ? "-" : inet_ntoa(there.sin_addr), r ? 0 : ntohs(there.sin_port), r ? name(errno) : "-");
	fflush(stdout);
}

/* ---- connect */

static void connects(void)
{
	struct sockaddr_in a = at(ip, PORT), gone = at(ip, 9);
	int fd = dial('E'), one = 1, got;
	socklen_t n = sizeof got;
	names(fd);
	echoes("a connection of the child's", fd);
	say("connect again", connect(fd, (void *)&a, sizeof a));
	struct sockaddr_in any = at("0.0.0.0", 0);
	say("bind", bind(fd, (void *)&any, sizeof any));
	say("listen", listen(fd, 5));
	say("accept", accept(fd, NULL, NULL));
	say("TCP_NODELAY", setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one));
	check(getsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &got, &n) == 0, "getsockopt");
	printf("is %d\n", got);
	struct tcp_info info;
	n = sizeof info;
	say("TCP_INFO", getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &n));
	printf("state %d\n", info.tcpi_state);
	printf("shows %x\n", shows(fd));
	say("shutdown", shutdown(fd, SHUT_WR));
	text("end", fd, 10);
	close(fd);

	/* Nobody listens. */
	fd = tcp(0);
	say("refused", connect(fd, (void *)&gone, sizeof gone));
	so_error(fd);
	names(fd);
	text("receive", fd, 10);
	say("send", send(fd, "x", 1, MSG_NOSIGNAL));
	say("another try", connect(fd, (void *)&gone, sizeof gone));
	say("elsewhere", connect(fd, (void *)&a, sizeof a));
	check(send(fd, "E", 1, 0) == 1, "first byte");
	echoes("the second try", fd);
	close(fd);

	/* What was set before goes with it. */
	fd = tcp(0);
	int size = 30000, idle = 77;
	setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
	setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one);
	struct timeval soon = { 0, 50000 };
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &soon, sizeof soon);
	say("with options", connect(fd, (void *)&a, sizeof a));
	int want[][2] = { { SOL_SOCKET, SO_RCVBUF }, { IPPROTO_TCP, TCP_KEEPIDLE }, { SOL_SOCKET, SO_KEEPALIVE } };
	for (int i = 0; i < 3; i++) {
		n = sizeof got;
		check(getsockopt(fd, want[i][0], want[i][1], &got, &n) == 0, "getsockopt");
		printf("option %d: %d\n", i, got);
	}
	text("nothing comes", fd, 10);
	close(fd);

	/* From a port of its own. */
	fd = tcp(0);
	struct sockaddr_in own = at("0.0.0.0", OWN);
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	say("bind", bind(fd, (void *)&own, sizeof own));
	say("connect", connect(fd, (void *)&a, sizeof a));
	printf("from port %d\n", ntohs(local(fd).sin_port));
	struct linger hard = { 1, 0 };
	setsockopt(fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
	close(fd);
}

static void waits_for_none(int watched_before)
{
	struct sockaddr_in a = at(ip, PORT), gone = at(ip, 9);
	struct epoll_event e = { .events = EPOLLOUT | EPOLLIN | EPOLLET, .data.u64 = 55 };
	int ep = epoll_create1(0), fd = tcp(SOCK_NONBLOCK);
	if (watched_before)
		check(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e) == 0 && epoll_wait(ep, &e, 1, 0) == 1, "epoll");
	e = (struct epoll_event){ .events = EPOLLOUT | EPOLLIN | EPOLLET, .data.u64 = 55 };
	say("connect", connect(fd, (void *)&a, sizeof a));
	if (!watched_before)
		check(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e) == 0, "epoll_ctl");
	int n = epoll_wait(ep, &e, 1, -1);
	printf("epoll: %d %x %d\n", n, e.events, (int)e.data.u64);
	so_error(fd);
	names(fd);
	say("connect again", connect(fd, (void *)&a, sizeof a));
	say("and again", connect(fd, (void *)&a, sizeof a));
	text("receive", fd, 10);
	check(send(fd, "E", 1, 0) == 1, "first byte");
	fcntl(fd, F_SETFL, 0);
	echoes("without waiting", fd);
	close(fd);

	fd = tcp(SOCK_NONBLOCK);
	say("connect", connect(fd, (void *)&gone, sizeof gone));
	e = (struct epoll_event){ .events = EPOLLOUT | EPOLLIN | EPOLLRDHUP, .data.u64 = 66 };
	check(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e) == 0, "epoll_ctl");
	n = epoll_wait(ep, &e, 1, -1);
	printf("epoll: %d %x %d\n", n, e.events, (int)e.data.u64);
	printf("shows %x\n", shows(fd));
	so_error(fd);
	so_error(fd);
	printf("shows %x\n", shows(fd));
	close(fd);

	/* The error is the send's, or the next connect's. */
	fd = tcp(SOCK_NONBLOCK);
	say("connect", connect(fd, (void *)&gone, sizeof gone));
	struct pollfd p = { fd, POLLOUT, 0 };
	check(poll(&p, 1, -1) == 1, "poll");
	say("send", send(fd, "x", 1, MSG_NOSIGNAL));
	say("send", send(fd, "x", 1, MSG_NOSIGNAL));
	close(fd);
	fd = tcp(SOCK_NONBLOCK);
	say("connect", connect(fd, (void *)&gone, sizeof gone));
	p = (struct pollfd){ fd, POLLOUT, 0 };
	check(poll(&p, 1, -1) == 1, "poll");
	say("connect", connect(fd, (void *)&gone, sizeof gone));
	close(fd);
	close(ep);
}

/* Nobody has the address: it takes its time. */
static void takes_long(void)
{
	struct sockaddr_in nobody = at("10.9.0.77", PORT);
	int fd = tcp(SOCK_NONBLOCK), ep = epoll_create1(0);
	struct epoll_event e = { .events = EPOLLOUT | EPOLLIN | EPOLLRDHUP, .data.u64 = 88 };
	say("connect", connect(fd, (void *)&nobody, sizeof nobody));
	check(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e) == 0, "epoll_ctl");
	printf("epoll: %d, shows %x\n", epoll_wait(ep, &e, 1, 0), shows(fd));
	say("connect", connect(fd, (void *)&nobody, sizeof nobody));
	say("send", send(fd, "x", 1, MSG_NOSIGNAL));
	text("receive", fd, 10);
	names(fd);
	so_error(fd);
	struct timeval soon = { 0, 20000 };
	int other = tcp(0);
	setsockopt(other, SOL_SOCKET, SO_SNDTIMEO, &soon, sizeof soon);
	say("not for long", connect(other, (void *)&nobody, sizeof nobody));
	close(other);
	int n;
	do /* who is stopped and goes on is told so */
		n = epoll_wait(ep, &e, 1, -1);
	while (n < 0 && errno == EINTR);
	printf("epoll: %d %x\n", n, e.events);
	so_error(fd);
	close(fd);
	close(ep);
}

/* ---- listen */

/* Has the peer dial back to this port so many times. */
static int calls(int port, int times)
{
	unsigned char where[3] = { port >> 8, port & 255, times };
	int fd = dial('D');
	check(send(fd, where, 3, 0) == 3, "where to");
	return fd;
}

/* How many of them have heard what. */
static void heard(const char *what, int fd, int times)
{
	char all[256];
	int count[256] = { 0 };
	check(recv(fd, all, times, MSG_WAITALL) == times, "what was heard");
	for (int i = 0; i < times; i++)
		count[(unsigned char)all[i]]++;
	printf("%s:", what);
	for (int i = 0; i < 256; i++)
		if (count[i])
			printf(" %c %d", i, count[i]);
	puts("");
	fflush(stdout);
	close(fd);
}

static int listener(const char *host, int port, int option)
{
	struct sockaddr_in a = at(host, port);
	int s = tcp(0), one = 1;
	setsockopt(s, SOL_SOCKET, option, &one, sizeof one);
	check(bind(s, (void *)&a, sizeof a) == 0, "bind");
	check(listen(s, 16) == 0, "listen");
	return s;
}

/* Answers `times` connections with `byte`. */
static void answers(int s, int times, char byte)
{
	for (int i = 0; i < times; i++) {
		char buf[5];
		int fd = accept(s, NULL, NULL);
		check(fd >= 0, "accept");
		check(recv(fd, buf, 5, MSG_WAITALL) == 5 && !memcmp(buf, "hello", 5), "hello");
		check(send(fd, &byte, 1, 0) == 1, "answer");
		recv(fd, buf, 1, 0);
		close(fd);
	}
}

/* Answers at s until the peer has told what it has heard; how many it were. */
static int answers_until(int told, int s, char byte)
{
	struct pollfd p[2] = { { told, POLLIN, 0 }, { s, POLLIN, 0 } };
	int count = 0;
	for (; poll(p, 2, -1) > 0 && !p[0].revents; count++)
		answers(s, 1, byte);
	return count;
}

static void listens(const char *own)
{
	struct sockaddr_in a = at(own, OWN), other = at(own, OWN), peer;
	int s = tcp(0), second = tcp(0), got, one = 1;
	socklen_t n = sizeof peer;
	setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	say("bind", bind(s, (void *)&a, sizeof a));
	printf("shows %x\n", shows(s));
	say("bind again", bind(s, (void *)&a, sizeof a));
	say("accept too early", accept(s, NULL, NULL));
	say("another there", bind(second, (void *)&other, sizeof other));
	close(second);
	say("listen", listen(s, 5));
	say("listen again", listen(s, 6));
	say("connect", connect(s, (void *)&a, sizeof a));
	printf("named %s %d\n", inet_ntoa(local(s).sin_addr), ntohs(local(s).sin_port));
	say("getpeername", getpeername(s, (void *)&peer, &n));
	n = sizeof got;
	check(getsockopt(s, SOL_SOCKET, SO_ACCEPTCONN, &got, &n) == 0, "SO_ACCEPTCONN");
	printf("listens %d, shows %x\n", got, shows(s));
	fcntl(s, F_SETFL, O_NONBLOCK);
	say("nobody", accept(s, NULL, NULL));
	fcntl(s, F_SETFL, 0);
	int fd = calls(OWN, 3);
	n = sizeof peer;
	int first = accept4(s, (void *)&peer, &n, SOCK_CLOEXEC);
	check(first >= 0, "accept");
	printf("from %s, cloexec %d\n", inet_ntoa(peer.sin_addr), fcntl(first, F_GETFD));
	printf("at %s %d\n", inet_ntoa(local(first).sin_addr), ntohs(local(first).sin_port));
	text("first", first, 10);
	check(send(first, "x", 1, 0) == 1, "send");
	close(first);
	answers(s, 2, 'y');
	heard("the peer", fd, 3);
	/* In an epoll set, and gone. */
	struct epoll_event e = { .events = EPOLLIN, .data.u64 = 5 };
	int ep = epoll_create1(0);
	check(epoll_ctl(ep, EPOLL_CTL_ADD, s, &e) == 0, "epoll_ctl");
	fd = calls(OWN, 1);
	int count = epoll_wait(ep, &e, 1, -1);
	printf("epoll: %d %x %d\n", count, e.events, (int)e.data.u64);
	answers(s, 1, 'z');
	heard("the peer", fd, 1);
	close(ep);
	close(s);
	/* Its place is free at once. */
	s = tcp(0);
	setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	say("bind", bind(s, (void *)&a, sizeof a));
	say("listen", listen(s, 5));
	close(s);
	/* A port that it does not choose; and one that listens without a name. */
	s = tcp(0);
	a.sin_port = 0;
	say("bind", bind(s, (void *)&a, sizeof a));
	printf("a port %d\n", ntohs(local(s).sin_port) > 1024);
	say("listen", listen(s, 1));
	fd = calls(ntohs(local(s).sin_port), 1);
	answers(s, 1, 'p');
	heard("the peer", fd, 1);
	close(s);
	s = tcp(0);
	say("listen", listen(s, 1));
	fd = calls(ntohs(local(s).sin_port), 1);
	answers(s, 1, 'q');
	heard("the peer", fd, 1);
	close(s);
	/* All of this host's addresses, the kernel's too. */
	s = listener("0.0.0.0", OWN + 1, SO_REUSEADDR);
	fd = calls(OWN + 1, 2);
	answers(s, 2, 'w');
	heard("the peer", fd, 2);
	CHILD({
		struct sockaddr_in here = at("127.0.0.1", OWN + 1);
		int c = tcp(0);
		char byte = 0;
		check(connect(c, (void *)&here, sizeof here) == 0 && send(c, "hello", 5, 0) == 5, "loopback");
		check(recv(c, &byte, 1, 0) == 1, "answer");
		printf("over loopback: %c\n", byte);
	});
	answers(s, 1, 'l');
	join("loopback");
	close(s);
	/* Connects from where it is bound. */
	s = tcp(0);
	a.sin_port = htons(OWN + 2);
	setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	say("bind", bind(s, (void *)&a, sizeof a));
	other = at(ip, PORT);
	say("connect", connect(s, (void *)&other, sizeof other));
	printf("from %d\n", ntohs(local(s).sin_port));
	check(send(s, "E", 1, 0) == 1, "first byte");
	echoes("bound and connected", s);
	struct linger hard = { 1, 0 };
	setsockopt(s, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
	close(s);
}

/* Children with listeners of their own on one port: each gets its share. */
static void spread(const char *own)
{
	enum { CHILDREN = 3, TIMES = 60 };
	int ready[2], s = listener(own, OWN + 3, SO_REUSEPORT);
	pid_t pids[CHILDREN];
	char c;
	check(pipe(ready) == 0, "pipe");
	for (int i = 0; i < CHILDREN; i++) {
		CHILD({
			close(s);
			int mine = listener(own, OWN + 3, SO_REUSEPORT);
			check(write(ready[1], "x", 1) == 1, "write");
			answers(mine, TIMES, '0');
		});
		pids[i] = last_child;
	}
	for (int i = 0; i < CHILDREN; i++)
		check(read(ready[0], &c, 1) == 1, "read");
	int fd = calls(OWN + 3, TIMES);
	int mine = answers_until(fd, s, '0');
	heard("all of them", fd, TIMES);
	printf("some here %d, some there %d\n", mine > 0, mine < TIMES);
	for (int i = 0; i < CHILDREN; i++) {
		kill(pids[i], SIGKILL);
		waitpid(pids[i], NULL, 0);
	}
	/* Whoever was killed gets none any more, as soon as that is known. */
	do
		fd = calls(OWN + 3, TIMES);
	while (answers_until(fd, s, '1') < TIMES && close(fd) == 0);
	heard("all the rest", fd, TIMES);
	close(s);
}

/* Workers of a listener whose maker is killed. Each answers with a byte of its own. */
static void worker(int s, char byte, int by_epoll)
{
	struct epoll_event e = { .events = EPOLLIN };
	int ep = epoll_create1(0);
	check(epoll_ctl(ep, EPOLL_CTL_ADD, s, &e) == 0, "epoll_ctl");
	for (;;) {
		if (by_epoll) {
			int n = epoll_wait(ep, &e, 1, -1);
			if (n < 0 && errno == EINTR)
				continue; /* stopped for a while: signal(7) */
			check(n == 1 && fcntl(s, F_SETFL, O_NONBLOCK) == 0, "epoll_wait");
		}
		int fd = accept(s, NULL, NULL);
		char buf[5];
		if (fd < 0 && errno == EAGAIN)
			continue;
		check(fd >= 0, "accept");
		fcntl(fd, F_SETFL, 0);
		if (recv(fd, buf, 5, MSG_WAITALL) == 5)
			send(fd, &byte, 1, MSG_NOSIGNAL);
		close(fd);
	}
}

/* What the peer hears at this port, in a process of its own. */
static void asks(const char *what, int port)
{
	/* Whoever takes the address first learns of the listener a moment later. */
	CHILD({
		char byte = 0;
		while (byte != 'w') {
			int fd = calls(port, 1);
			check(recv(fd, &byte, 1, 0) == 1, "what was heard");
			close(fd);
			if (byte != 'w')
				usleep(20000);
		}
		heard(what, calls(port, 8), 8);
	});
	int status;
	check(waitpid(last_child, &status, 0) == last_child, "waitpid");
	if (status)
		printf("%s: the peer was not answered (%#x)\n", what, status);
}

/* The master of `workers` is killed, and they go on; whoever is killed after that as well. */
static void killed_master(const char *host, int port, int workers)
{
	int out[2];
	pid_t pids[8], master;
	check(pipe(out) == 0, "pipe");
	CHILD({
		int s = listener(host, port, SO_REUSEADDR);
		for (int i = 0; i < workers; i++) {
			CHILD(worker(s, 'w', workers > 1));
			check(write(out[1], &last_child, sizeof last_child) == sizeof last_child, "write");
		}
		for (;;)
			pause();
	});
	master = last_child;
	for (int i = 0; i < workers; i++)
		check(read(out[0], &pids[i], sizeof pids[i]) == sizeof pids[i], "read");
	asks("with a master", port);
	kill(master, SIGKILL);
	waitpid(master, NULL, 0);
	asks("without", port);
	asks("and again", port);
	for (int i = 0; i < workers - 1; i++) {
		kill(pids[i], SIGKILL);
		asks("with fewer", port);
	}
	kill(pids[workers - 1], SIGKILL);
	close(out[0]);
	close(out[1]);
}

static void survives(const char *own)
{
	hang_guard("survives");
	killed_master(own, OWN + 4, 1);
	killed_master(own, OWN + 5, 3);
	killed_master("0.0.0.0", OWN + 6, 2);
	puts("done");
}

static int tid_asleep;

static void *waits_for_ever(void *fd)
{
	char byte;
	__atomic_store_n(&tid_asleep, gettid(), __ATOMIC_SEQ_CST);
	recv((int)(long)fd, &byte, 1, 0);
	pause();
	return NULL;
}

/* Another thread waits for what comes to the socket, until the process ends. */
static void has_receiver(int fd)
{
	char path[64], state = 0;
	pthread_t thread;
	check(pthread_create(&thread, NULL, waits_for_ever, (void *)(long)fd) == 0, "thread");
	while (state != 'S') {
		usleep(1000);
		snprintf(path, sizeof path, "/proc/self/task/%d/stat",
			 __atomic_load_n(&tid_asleep, __ATOMIC_SEQ_CST));
		FILE *f = fopen(path, "r");
		if (f) {
			check(fscanf(f, "%*d %*s %c", &state) == 1, "state");
			fclose(f);
		}
	}
}

/* Programs end before what they sent is taken, and the next begins. */
static void leaves(void)
{
	enum { TIMES = 4, BYTES = 150000 };
	static char bytes[BYTES];
	long all[2] = { 0 };
	hang_guard("leaves");
	for (int i = 0; i < TIMES; i++) {
		CHILD({
			int fd = dial('H');
			int size = 2 * BYTES;
			setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
			check(send(fd, bytes, BYTES, 0) == BYTES, "send");
			if (i % 2)
				has_receiver(fd);
		});
		join("sends and ends");
	}
	int fd = dial('G');
	char times = TIMES;
	check(send(fd, &times, 1, 0) == 1, "send");
	check(recv(fd, all, sizeof all, MSG_WAITALL) == sizeof all, "what came");
	printf("%ld of %d bytes, %ld resets\n", all[0], TIMES * BYTES, all[1]);
	puts("done");
}

static int bound(const char *own, int port)
{
	struct sockaddr_in a = at(own, port);
	int s = tcp(0), one = 1;
	setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	check(bind(s, (void *)&a, sizeof a) == 0, "bind");
	return s;
}

/* The port of a connection, which the peer has accepted. */
static int chosen(void)
{
	struct linger hard = { 1, 0 };
	int fd = dial('E'), port = ntohs(local(fd).sin_port);
	char byte;
	check(send(fd, "x", 1, 0) == 1 && recv(fd, &byte, 1, 0) == 1, "echo");
	setsockopt(fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
	close(fd);
	return port;
}

/* The ports of connections that a program has left, of which the peer does not read one for now, nor end any. Among
 * the ports that are chosen so many times would be one of theirs, but for three of a thousand runs. */
static void ports(const char *own)
{
	enum { PORT_LEFT = OWN + 20, BYTES = 150000, LEFT = 240, CHOSEN = 700 };
	static char bytes[BYTES];
	struct sockaddr_in a = at(own, PORT_LEFT), same = at(ip, PORT), other = at(ip, 9);
	long all[2] = { 0 };
	unsigned char times = LEFT;
	char *is_left = mmap(NULL, 1 << 16, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	hang_guard("ports");
	CHILD({
		int fd = bound(own, PORT_LEFT), size = 2 * BYTES;
		setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
		check(connect(fd, (void *)&same, sizeof same) == 0 && send(fd, "H", 1, 0) == 1, "connect");
		for (int i = 1; i < LEFT; i++) {
			is_left[ntohs(local(dial('H')).sin_port)] = 1;
			if (i % 16 == 0)
				chosen(); /* the peer has room for a few that it has not accepted yet */
		}
		check(send(fd, bytes, BYTES, 0) == BYTES, "send");
	});
	join("sends and ends");
	for (int i = 0; i < CHOSEN; i++)
		check(!is_left[chosen()], "a port of its own");
	int s = tcp(0);
	say("its port", bind(s, (void *)&a, sizeof a));
	a.sin_addr.s_addr = INADDR_ANY;
	if (bind(s, (void *)&a, sizeof a) == 0) /* that is the kernel's to say, before the stack has its turn */
		say("on any address", listen(s, 16));
	else
		say("on any address", -1);
	close(s);
	s = bound(own, PORT_LEFT);
	say("to its peer", connect(s, (void *)&same, sizeof same));
	say("to another", connect(s, (void *)&other, sizeof other));
	close(s);
	s = bound(own, PORT_LEFT);
	say("listen", listen(s, 16));
	int calling = calls(PORT_LEFT, 2);
	answers(s, 2, 'l');
	heard("who calls there", calling, 2);
	close(s);
	int fd = dial('G');
	check(send(fd, &times, 1, 0) == 1, "send");
	check(recv(fd, all, sizeof all, MSG_WAITALL) == sizeof all, "what came");
	printf("%ld of %d bytes, %ld resets\n", all[0], BYTES, all[1]);
	puts("done");
}

/* Until somebody listens at the port, the peer cannot be told to call there. */
static void wait_listens(int ready)
{
	char byte;
	check(read(ready, &byte, 1) == 1, "ready");
}

static void listens_for(int s, int ready, int times, char byte)
{
	say("listen", listen(s, 16));
	check(write(ready, "r", 1) == 1, "ready");
	answers(s, times, byte);
}

/* Sockets that have an address, and are no more yet, in other processes. */
static void bound_sockets(const char *own)
{
	int ready[2], s, one = 1, got = 0;
	socklen_t n = sizeof got;
	hang_guard("bound");
	check(pipe(ready) == 0, "pipe");

	s = bound(own, OWN + 12);
	CHILD({
		printf("shows %x\n", shows(s));
		names(s);
		check(getsockopt(s, SOL_SOCKET, SO_REUSEADDR, &got, &n) == 0 && got == 1, "SO_REUSEADDR");
		say("another bind", bind(s, (void *)&(struct sockaddr_in){ .sin_family = AF_INET }, sizeof(struct sockaddr_in)));
		say("accept", accept(s, NULL, NULL));
		listens_for(s, ready[1], 4, 'c');
	});
	close(s);
	wait_listens(ready[0]);
	heard("a child listens", calls(OWN + 12, 4), 4);
	join("it");
	s = bound(own, OWN + 12); /* free again */
	close(s);

	s = bound(own, OWN + 13);
	CHILD(listens_for(s, ready[1], 4, 'c'));
	wait_listens(ready[0]);
	heard("and the parent has it too", calls(OWN + 13, 4), 4);
	join("it");
	CHILD(answers(s, 4, 'b'));
	heard("another child", calls(OWN + 13, 4), 4);
	join("it");
	int fd = calls(OWN + 13, 2);
	answers(s, 2, 'p');
	heard("the parent", fd, 2);
	close(s);

	s = bound(own, OWN + 14);
	CHILD({
		wait_listens(ready[0]);
		answers(s, 4, 'c');
	});
	say("the parent listens", listen(s, 16));
	check(write(ready[1], "r", 1) == 1, "ready");
	heard("a child accepts", calls(OWN + 14, 4), 4);
	join("it");
	close(s);

	s = bound(own, OWN + 15);
	pid_t pids[2];
	for (int i = 0; i < 2; i++) {
		CHILD({
			say("listen", listen(s, 16));
			check(write(ready[1], "r", 1) == 1, "ready");
			worker(s, 'w', i);
		});
		pids[i] = last_child;
		wait_listens(ready[0]);
	}
	close(s);
	heard("of two that listen", calls(OWN + 15, 20), 20);
	for (int i = 0; i < 2; i++) {
		kill(pids[i], SIGKILL);
		waitpid(pids[i], NULL, 0);
	}

	s = bound(own, OWN + 16);
	CHILD({
		struct sockaddr_in a = at(ip, PORT);
		say("connect", connect(s, (void *)&a, sizeof a));
		check(send(s, "E", 1, 0) == 1, "send");
		echoes("a child connects", s);
		names(s);
	});
	join("it");
	close(s);

	s = bound(own, OWN + 17);
	CHILD({
		char number[20];
		sprintf(number, "%d", s);
		execl("/proc/self/exe", "stack_guests", "takes", ip, number, NULL);
	});
	close(s);
	usleep(1);
	CHILD({
		/* It listens when it does. */
		char byte = 0;
		while (byte != 'x') {
			fd = calls(OWN + 17, 1);
			check(recv(fd, &byte, 1, 0) == 1, "what was heard");
			close(fd);
		}
		heard("a program", calls(OWN + 17, 3), 3);
	});
	join("who asks");
	check(wait(NULL) > 0, "the program ends");

	s = bound(own, OWN + 18);
	CHILD(pause());
	kill(last_child, SIGKILL);
	waitpid(last_child, NULL, 0);
	struct sockaddr_in a = at(ip, PORT);
	int own_port = ntohs(local(s).sin_port);
	say("connect", connect(s, (void *)&a, sizeof a));
	check(send(s, "E", 1, 0) == 1, "send");
	CHILD(echoes("the parent has connected", s));
	join("it");
	echoes("and goes on", s);
	check(ntohs(local(s).sin_port) == own_port, "port");
	close(s);

	s = bound(own, OWN + 19);
	CHILD(pause());
	kill(last_child, SIGKILL);
	waitpid(last_child, NULL, 0);
	say("listen, all alone", listen(s, 16));
	fd = calls(OWN + 19, 2);
	answers(s, 2, 'p');
	heard("the parent", fd, 2);
	setsockopt(s, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one);
	close(s);
	puts("done");
}

/* The maker of a listener forks while connections to it are handed over to its workers. */
static void forks(const char *own)
{
	enum { WORKERS = 2, CALLERS = 4, TIMES = 100 };
	int s = listener(own, OWN + 11, SO_REUSEADDR);
	pid_t pids[WORKERS];
	struct pollfd p[CALLERS];
	hang_guard("forks");
	for (int i = 0; i < WORKERS; i++) {
		CHILD(worker(s, 'w', 0));
		pids[i] = last_child;
	}
	for (int i = 0; i < CALLERS; i++)
		p[i] = (struct pollfd){ calls(OWN + 11, TIMES), POLLIN, 0 };
	for (int i = 0; i < CALLERS; i++) {
		while (poll(p + i, 1, 0) == 0) {
			CHILD();
			check(waitpid(last_child, NULL, 0) == last_child, "waitpid");
		}
		heard("beside forks", p[i].fd, TIMES);
	}
	for (int i = 0; i < WORKERS; i++) {
		kill(pids[i], SIGKILL);
		waitpid(pids[i], NULL, 0);
	}
	puts("done");
}

/* ---- UDP */

static int udp_at(const char *host, int port)
{
	struct sockaddr_in a = at(host, port);
	int fd = socket(AF_INET, SOCK_DGRAM, 0);
	check(fd >= 0 && bind(fd, (void *)&a, sizeof a) == 0, "bind");
	return fd;
}

/* Tells one asker who has heard it: the byte, what it sent, and whether it was sent to the address asked. */
static void answers_datagram(int s, char byte)
{
	char buf[3000], control[100];
	struct sockaddr_in from;
	struct iovec v = { buf + 1, sizeof buf - 1 };
	struct msghdr m = { .msg_name = &from, .msg_namelen = sizeof from, .msg_iov = &v, .msg_iovlen = 1,
		.msg_control = control, .msg_controllen = sizeof control };
	ssize_t n = recvmsg(s, &m, 0);
	check(n >= 0 && m.msg_namelen == sizeof from && !(m.msg_flags & MSG_TRUNC), "recvmsg");
	buf[0] = byte;
	check(sendto(s, buf, n + 1, 0, (void *)&from, sizeof from) == n + 1, "sendto");
}

static void describes(int s)
{
	int got, one = 1;
	socklen_t n = sizeof got;
	struct sockaddr_in here = local(s), there;
	printf("named %s %d\n", inet_ntoa(here.sin_addr), ntohs(here.sin_port));
	n = sizeof there;
	say("getpeername", getpeername(s, (void *)&there, &n));
	int want[][2] = { { SOL_SOCKET, SO_TYPE }, { SOL_SOCKET, SO_PROTOCOL }, { SOL_SOCKET, SO_DOMAIN },
		{ SOL_SOCKET, SO_ERROR }, { SOL_SOCKET, SO_BROADCAST }, { IPPROTO_IP, IP_TTL } };
	for (unsigned i = 0; i < sizeof want / sizeof *want; i++) {
		n = sizeof got;
		int r = getsockopt(s, want[i][0], want[i][1], &got, &n);
		printf("option %u: %d %d\n", i, r, got);
	}
	say("IP_PKTINFO", setsockopt(s, IPPROTO_IP, IP_PKTINFO, &one, sizeof one));
	say("listen", listen(s, 1));
	say("accept", accept(s, NULL, NULL));
	say("nobody to send to", send(s, "x", 1, 0));
	say("no port", sendto(s, "x", 1, 0, (void *)&(struct sockaddr_in){ .sin_family = AF_INET }, sizeof here));
	say("too long", sendto(s, calloc(70000, 1), 70000, 0, (void *)&here, sizeof here));
	printf("shows %x\n", shows(s));
	say("nothing", recv(s, &got, sizeof got, MSG_DONTWAIT));
}

/* What comes in one by one: looked at, cut, and with where it was sent to. */
static void looks(int s)
{
	char buf[3000], control[200] = { 0 };
	struct sockaddr_in from;
	socklen_t n = sizeof from;
	int length = -1;
	struct pollfd p = { s, POLLIN, 0 };
	check(poll(&p, 1, -1) == 1, "poll");
	check(ioctl(s, FIONREAD, &length) == 0, "FIONREAD");
	printf("shows %x, %d bytes\n", p.revents, length);
	printf("peeked %zd\n", recv(s, buf, 3, MSG_PEEK | MSG_TRUNC));
	struct iovec v = { buf, 4 };
	struct msghdr m = { .msg_name = &from, .msg_namelen = sizeof from, .msg_iov = &v, .msg_iovlen = 1,
		.msg_control = control, .msg_controllen = sizeof control };
	ssize_t got = recvmsg(s, &m, 0);
	printf("cut %zd %.4s flags %x from %s\n", got, buf, m.msg_flags, inet_ntoa(from.sin_addr));
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&m); c; c = CMSG_NXTHDR(&m, c)) {
		struct in_pktinfo info;
		memcpy(&info, CMSG_DATA(c), sizeof info);
		printf("control %d %d to %s\n", c->cmsg_level, c->cmsg_type, inet_ntoa(info.ipi_addr));
	}
	got = recvfrom(s, buf, sizeof buf, 0, (void *)&from, &n);
	printf("whole %zd from %s\n", got, inet_ntoa(from.sin_addr));
	check(sendto(s, "answer", 6, 0, (void *)&from, sizeof from) == 6, "sendto");
	/* Connected, it needs no address, and hears of what is refused. */
	say("connect", connect(s, (void *)&from, sizeof from));
	n = sizeof from;
	say("getpeername", getpeername(s, (void *)&from, &n));
	say("send", send(s, "answer", 6, 0));
	/* What is sent goes where the socket was connected then, whatever is done to it next. */
	for (int i = 1; i < TURNS; i++) {
		struct sockaddr_in elsewhere = from;
		elsewhere.sin_port = htons(DISCARDS);
		check(connect(s, (void *)&elsewhere, sizeof elsewhere) == 0, "connect");
		check(connect(s, (void *)&from, sizeof from) == 0, "connect");
		check(send(s, "answer", 6, 0) == 6, "send");
	}
	from.sin_port = htons(9);
	say("connect elsewhere", connect(s, (void *)&from, sizeof from));
	say("send", send(s, "x", 1, 0));
	p.revents = 0;
	check(poll(&p, 1, -1) == 1, "poll");
	say("refused", recv(s, buf, sizeof buf, 0));
	from.sin_family = AF_UNSPEC;
	say("disconnect", connect(s, (void *)&from, sizeof from));
	say("nobody to send to", send(s, "x", 1, 0));
}

/* The peer's part of it: `stack_guests asks ADDRESS OWN`. */
static void asks_datagrams(const char *own)
{
	enum { TIMES = 40 };
	struct sockaddr_in a = at(own, OWN + 7);
	int count = 0;
	hang_guard("asks");
	for (int i = 0; i < TIMES; i++) {
		char out[2000], in[2001];
		int fd = socket(AF_INET, SOCK_DGRAM, 0);
		a.sin_port = htons(i % 2 ? OWN + 7 : OWN + 9);
		memset(out, i, sizeof out);
		check(connect(fd, (void *)&a, sizeof a) == 0, "connect"); /* hears from nobody else */
		check(send(fd, out, i * 40, 0) == i * 40, "send");
		count += recv(fd, in, sizeof in, 0) == i * 40 + 1 && in[0] == 'w' && !memcmp(in + 1, out, i * 40);
		close(fd);
	}
	printf("%d of %d are right\n", count, TIMES);
	int fd = socket(AF_INET, SOCK_DGRAM, 0);
	char in[100];
	udp_at(ip, DISCARDS);
	a = at(own, OWN + 8);
	check(connect(fd, (void *)&a, sizeof a) == 0, "connect");
	check(send(fd, "the first one", 13, 0) == 13 && send(fd, "the second", 10, 0) == 10, "send");
	for (int i = 0; i <= TURNS; i++)
		printf("hears %zd\n", recv(fd, in, sizeof in, 0));
}

/* UDP sockets of a child's own. */
static void on_its_own(const char *own)
{
	struct sockaddr_in a = at(ip, 9), from;
	socklen_t n = sizeof from;
	char buf[100];
	int fd = socket(AF_INET, SOCK_DGRAM, 0);
	say("connect", connect(fd, (void *)&a, sizeof a));
	names(fd);
	say("send", send(fd, "x", 1, 0));
	say("refused", recv(fd, buf, sizeof buf, 0));
	close(fd);
	fd = socket(AF_INET, SOCK_DGRAM, 0);
	a = at(own, OWN + 7);
	say("sendto", sendto(fd, "hello", 5, 0, (void *)&a, sizeof a));
	ssize_t got = recvfrom(fd, buf, sizeof buf, 0, (void *)&from, &n);
	printf("answer %zd %.6s from %s %d\n", got, buf, inet_ntoa(from.sin_addr), ntohs(from.sin_port));
	close(fd);
	a.sin_port = htons(OWN + 10);
	fd = socket(AF_INET, SOCK_DGRAM, 0);
	say("bind", bind(fd, (void *)&a, sizeof a));
	int second = socket(AF_INET, SOCK_DGRAM, 0);
	say("another there", bind(second, (void *)&a, sizeof a));
	close(fd);
	while (bind(second, (void *)&a, sizeof a) < 0)
		usleep(10000); /* the owner hears of the close */
	printf("in its place %d\n", ntohs(local(second).sin_port));
	close(second);
}

static void datagrams(const char *own)
{
	enum { CHILDREN = 3 };
	pid_t pids[CHILDREN + 1];
	char c;
	int ready[2], s = udp_at(own, OWN + 7), other = udp_at(own, OWN + 8), one = 1;
	hang_guard("datagrams");
	check(pipe(ready) == 0, "pipe");
	setsockopt(other, IPPROTO_IP, IP_PKTINFO, &one, sizeof one);
	for (int i = 0; i < CHILDREN; i++) {
		CHILD(for (;;) answers_datagram(s, 'w'));
		pids[i] = last_child;
	}
	CHILD(describes(other));
	join("describes");
	CHILD(on_its_own(own));
	join("on its own");
	CHILD({
		int mine = udp_at(own, OWN + 9);
		check(write(ready[1], "x", 1) == 1, "write");
		for (;;)
			answers_datagram(mine, 'w');
	});
	pids[CHILDREN] = last_child;
	check(read(ready[0], &c, 1) == 1, "read");
	puts("ready");
	fflush(stdout);
	CHILD(looks(other));
	join("looks");
	printf("here as well: %zd\n", recv(other, &one, sizeof one, MSG_DONTWAIT));
	for (int i = 0; i <= CHILDREN; i++) {
		kill(pids[i], SIGKILL);
		waitpid(pids[i], NULL, 0);
	}
	puts("done");
}

static void trace(void)
{
	hang_guard("trace");
	int fd = dial('E');
	echoes("the parent", fd);
	CHILD(connects());
	join("connects");
	CHILD(waits_for_none(0));
	join("waits for none");
	CHILD(waits_for_none(1));
	join("waits for none");
	CHILD(takes_long());
	join("takes long");
	/* What a child has made, its own children use. */
	CHILD({
		int own = dial('E');
		CHILD(echoes("a grandchild", own));
		join("grandchild");
		echoes("its parent", own);
		CHILD(echoes("a grandchild on its own", dial('E')));
		join("grandchild");
	});
	join("generations");
	char own[20];
	strcpy(own, inet_ntoa(local(fd).sin_addr));
	CHILD(listens(own));
	join("listens");
	spread(own);
	echoes("the parent again", fd);
	close(fd);
	puts("done");
}

int main(int argc, char **argv)
{
	check(argc >= 3, "usage: stack_guests trace|survives|leaves|ports|forks|hold|echo ADDRESS [OWN]");
	ip = argv[2];
	signal(SIGPIPE, SIG_IGN);
	if (!strcmp(argv[1], "trace"))
		trace();
	else if (!strcmp(argv[1], "datagrams"))
		datagrams(argv[3]);
	else if (!strcmp(argv[1], "asks"))
		asks_datagrams(argv[3]);
	else if (!strcmp(argv[1], "bound"))
		bound_sockets(argv[3]);
	else if (!strcmp(argv[1], "takes")) {
		int s = atoi(argv[3]);
		check(listen(s, 16) == 0, "listen");
		answers(s, 4, 'x');
	} else if (!strcmp(argv[1], "survives"))
		survives(argv[3]);
	else if (!strcmp(argv[1], "leaves"))
		leaves();
	else if (!strcmp(argv[1], "ports"))
		ports(argv[3]);
	else if (!strcmp(argv[1], "forks"))
		forks(argv[3]);
	else if (!strcmp(argv[1], "hold")) {
		int fd = dial('E');
		puts("holding");
		fflush(stdout);
		while (getchar() != EOF)
			;
		echoes("who held", fd);
	} else
		echoes("hello", dial('E'));
	return 0;
}
