/* Sockets of processes at an address that another process has opened.
 *
 *   stack_guests trace ADDRESS    children of a process that has connections open their own, and print what
 *                                 each call returned; ADDRESS is that of `stack_share peer`
 *   stack_guests hold ADDRESS     opens a connection, says "holding", ends when its standard input does
 *   stack_guests echo ADDRESS     one connection, and its echo */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PORT = 7200, OWN = 7210 };

static const char *ip;
static pid_t last_child;

static void die(const char *what)
{
	fprintf(stderr, "stack_guests: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void check(int good, const char *what)
{
	if (!good)
		die(what);
}

static struct sockaddr_in at(const char *host, int port)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(port) };
	check(inet_pton(AF_INET, host, &a.sin_addr) == 1, "address");
	return a;
}

static const char *name(int err)
{
	return err ? strerrorname_np(err) : "-";
}

static void say(const char *what, long result)
{
	printf("%s: %ld %s\n", what, result, result < 0 ? name(errno) : "-");
	fflush(stdout);
}

#define CHILD(...)                                                                 \
	do {                                                                       \
		fflush(stdout);                                                    \
		pid_t child_ = fork();                                             \
		check(child_ >= 0, "fork");                                        \
		if (child_ == 0) {                                                 \
			alarm(60);                                                 \
			__VA_ARGS__;                                               \
			fflush(stdout);                                            \
			_exit(0);                                                  \
		}                                                                  \
		last_child = child_;                                               \
	} while (0)

static void join(const char *what)
{
	int status;
	check(waitpid(last_child, &status, 0) == last_child, "waitpid");
	printf("%s: child ended with %x\n", what, status);
	fflush(stdout);
}

static int tcp(int flags)
{
	int fd = socket(AF_INET, SOCK_STREAM | flags, 0);
	check(fd >= 0, "socket");
	return fd;
}

static int dial(char what)
{
	struct sockaddr_in a = at(ip, PORT);
	int fd = tcp(0);
	check(connect(fd, (void *)&a, sizeof a) == 0, "connect");
	check(send(fd, &what, 1, 0) == 1, "first byte");
	return fd;
}

static void echoes(const char *what, int fd)
{
	char buf[100];
	size_t n = strlen(what);
	check(send(fd, what, n, MSG_NOSIGNAL) == (ssize_t)n, "send");
	check(recv(fd, buf, n, MSG_WAITALL) == (ssize_t)n && !memcmp(buf, what, n), "echo");
	printf("%s comes back\n", what);
	fflush(stdout);
}

static void text(const char *what, int fd, size_t most)
{
	char buf[100];
	ssize_t n = recv(fd, buf, most, 0);
	printf("%s: %zd %.*s %s\n", what, n, n > 0 ? (int)n : 0, buf, n < 0 ? name(errno) : "-");
	fflush(stdout);
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
	int n = epoll_wait(ep, &e, 1, 10000);
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
	n = epoll_wait(ep, &e, 1, 10000);
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
	check(poll(&p, 1, 10000) == 1, "poll");
	say("send", send(fd, "x", 1, MSG_NOSIGNAL));
	say("send", send(fd, "x", 1, MSG_NOSIGNAL));
	close(fd);
	fd = tcp(SOCK_NONBLOCK);
	say("connect", connect(fd, (void *)&gone, sizeof gone));
	p = (struct pollfd){ fd, POLLOUT, 0 };
	check(poll(&p, 1, 10000) == 1, "poll");
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
	int n = epoll_wait(ep, &e, 1, 20000);
	printf("epoll: %d %x\n", n, e.events);
	so_error(fd);
	close(fd);
	close(ep);
}

static void trace(void)
{
	alarm(120);
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
	echoes("the parent again", fd);
	close(fd);
	puts("done");
}

int main(int argc, char **argv)
{
	check(argc == 3, "usage: stack_guests trace|hold|echo ADDRESS");
	ip = argv[2];
	signal(SIGPIPE, SIG_IGN);
	if (!strcmp(argv[1], "trace"))
		trace();
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
