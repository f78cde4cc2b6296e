/* Every socket call of TCP, its results and errors, against a peer on the kernel's stack.
 *
 *   stack_calls peer ADDRESS          the peer; ends when its standard input does
 *   stack_calls guest PEER ADDRESS    prints what each call returned
 *
 * The same guest runs on the kernel's stack and on ours, and prints the same. What may differ from run
 * to run, ports, sizes of buffers, moments, is not printed. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/select.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <linux/sockios.h>

#include "guard.h"

enum { ECHO = 7001, HELLO, RESET, URGENT, DEAF, CLOSED, BULK, CALLBACK, HEARS };
enum { BULK_BYTES = 3000000 };

static const char *peer_address, *own_address;

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static struct sockaddr_in at(const char *ip, int port)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(port) };
	if (inet_pton(AF_INET, ip, &a.sin_addr) != 1)
		die("inet_pton");
	return a;
}

static void write_all(int fd, const char *bytes, size_t n)
{
	while (n > 0) {
		ssize_t done = send(fd, bytes, n, MSG_NOSIGNAL);
		if (done <= 0)
			return;
		bytes += done;
		n -= done;
	}
}

/* ---- the peer ---- */

static sem_t heard;

static void *serve_one(void *arg)
{
	long packed = (long)arg;
	int fd = packed >> 16, port = packed & 0xffff;
	static char buf[1 << 16];
	char small[256];
	ssize_t n;
	switch (port) {
	case ECHO:
		while ((n = read(fd, small, sizeof small)) > 0)
			write_all(fd, small, n);
		break;
	case HELLO:
		write_all(fd, "hello", 5);
		break;
	case RESET:
		if (read(fd, small, 1) == 1)
			setsockopt(fd, SOL_SOCKET, SO_LINGER, &(struct linger){ 1, 0 }, sizeof(struct linger));
		break;
	case URGENT:
		write_all(fd, "abc", 3);
		send(fd, "U", 1, MSG_OOB | MSG_NOSIGNAL);
		write_all(fd, "def", 3);
		(void)!read(fd, small, 1);
		break;
	case DEAF: /* Reads nothing until somebody connects to HEARS. */
		sem_wait(&heard);
		while (read(fd, small, sizeof small) > 0)
			;
		break;
	case HEARS:
		sem_post(&heard);
		break;
	case BULK:
		for (int left = BULK_BYTES; left > 0; left -= sizeof buf)
			write_all(fd, buf, left < (int)sizeof buf ? left : (int)sizeof buf);
		break;
	case CALLBACK:
		n = read(fd, small, sizeof small - 1);
		if (n > 0) {
			char ip[64];
			int to;
			small[n] = 0;
			if (sscanf(small, "%63s %d", ip, &to) == 2) {
				struct sockaddr_in a = at(ip, to);
				int out = socket(AF_INET, SOCK_STREAM, 0);
				if (connect(out, (void *)&a, sizeof a) == 0) {
					write_all(out, "ping", 4);
					n = read(out, small, sizeof small);
					if (n > 0)
						write_all(fd, small, n);
				}
				close(out);
			}
		}
		break;
	}
	close(fd);
	return NULL;
}

static void *serve(void *arg)
{
	long packed = (long)arg;
	int s = packed >> 16, port = packed & 0xffff;
	for (;;) {
		int fd = accept(s, NULL, NULL);
		pthread_t t;
		if (fd < 0)
			continue;
		pthread_create(&t, NULL, serve_one, (void *)((long)fd << 16 | port));
		pthread_detach(t);
	}
	return NULL;
}

static int peer(void)
{
	static const int ports[] = { ECHO, HELLO, RESET, URGENT, DEAF, BULK, CALLBACK, HEARS };
	signal(SIGPIPE, SIG_IGN);
	sem_init(&heard, 0, 0);
	for (size_t i = 0; i < sizeof ports / sizeof *ports; i++) {
		int s = socket(AF_INET, SOCK_STREAM, 0), one = 1;
		struct sockaddr_in a = at(peer_address, ports[i]);
		setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
		if (bind(s, (void *)&a, sizeof a) || listen(s, 64))
			die("peer");
		pthread_t t;
		pthread_create(&t, NULL, serve, (void *)((long)s << 16 | ports[i]));
	}
	puts("listening");
	fflush(stdout);
	char c;
	while (read(0, &c, 1) > 0)
		;
	return 0;
}

/* ---- the guest ---- */

static const char *name_of(int err)
{
	const char *name = strerrorname_np(err);
	return name ? name : "?";
}

static long say(const char *what, long result)
{
	int err = errno;
	if (result < 0)
		printf("  %s = %ld %s\n", what, result, name_of(err));
	else
		printf("  %s = %ld\n", what, result);
	fflush(stdout);
	return result;
}

#define R(call) say(#call, call)

static void show_bits(const char *what, unsigned bits)
{
	static const struct { unsigned bit; const char *name; } names[] = {
		{ POLLIN, "IN" }, { POLLPRI, "PRI" }, { POLLOUT, "OUT" }, { POLLERR, "ERR" },
		{ POLLHUP, "HUP" }, { POLLRDHUP, "RDHUP" }, { POLLNVAL, "NVAL" },
	};
	printf("  %s:", what);
	for (size_t i = 0; i < sizeof names / sizeof *names; i++)
		if (bits & names[i].bit)
			printf(" %s", names[i].name);
	printf("\n");
	fflush(stdout);
}

/* What poll(2) shows, once it shows any of `until`. */
static void bits(int fd, short until)
{
	struct pollfd p = { fd, until, 0 };
	if (until)
		poll(&p, 1, -1);
	p.events = POLLIN | POLLPRI | POLLOUT | POLLRDHUP;
	poll(&p, 1, 0);
	show_bits("poll", p.revents);
}

static int tcp(void)
{
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	if (fd < 0)
		die("socket");
	return fd;
}

static int connected(int port)
{
	int fd = tcp();
	struct sockaddr_in a = at(peer_address, port);
	if (connect(fd, (void *)&a, sizeof a))
		die("connect");
	return fd;
}

static int nonblocking(int fd)
{
	return fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
}

static int option(int fd, int level, int name)
{
	int value = -1;
	socklen_t len = sizeof value;
	return getsockopt(fd, level, name, &value, &len) ? -errno : value;
}

static void show_name(const char *what, int (*call)(int, struct sockaddr *, socklen_t *), int fd)
{
	struct sockaddr_in a = { 0 };
	socklen_t len = sizeof a;
	char text[64] = "";
	int done = call(fd, (void *)&a, &len);
	if (say(what, done) == 0) {
		inet_ntop(AF_INET, &a.sin_addr, text, sizeof text);
		printf("    family %d address %s port %s length %u\n", a.sin_family, text,
		       a.sin_port ? "some" : "none", len);
	}
}

static void wait_for(int fd, int bytes)
{
	for (int n = 0; ioctl(fd, FIONREAD, &n) == 0 && n < bytes;)
		usleep(1000);
}

static void case_stream(void)
{
	char buf[256];
	int n;
	int fd = connected(ECHO);
	show_name("getsockname", getsockname, fd);
	show_name("getpeername", getpeername, fd);
	struct sockaddr_in a = at(peer_address, ECHO);
	R(connect(fd, (void *)&a, sizeof a));
	R(bind(fd, (void *)&a, sizeof a));
	R(listen(fd, 1));
	R(accept(fd, NULL, NULL));
	bits(fd, POLLOUT);
	R(recv(fd, buf, 10, MSG_DONTWAIT));
	R(send(fd, "0123456789", 10, 0));
	wait_for(fd, 10);
	bits(fd, POLLIN);
	R(ioctl(fd, FIONREAD, &n));
	printf("    %d bytes\n", n);
	R(recv(fd, buf, 4, MSG_PEEK));
	R(recv(fd, buf, 0, 0));
	R(recv(fd, NULL, 3, MSG_TRUNC));
	R(recv(fd, buf, 4, 0));
	printf("    %.4s\n", buf);
	R(recv(fd, (void *)8, 4, 0));
	R(recv(fd, buf, sizeof buf, MSG_DONTWAIT));
	printf("    %.3s\n", buf);
	R(send(fd, (void *)8, 4, 0));
	R(send(fd, buf, 0, 0));
	R(write(fd, buf, 0));
	R(read(fd, buf, 0));
	struct iovec out[3] = { { "ab", 2 }, { "", 0 }, { "cdef", 4 } };
	R(writev(fd, out, 3));
	struct iovec in[2] = { { buf, 3 }, { buf + 100, 3 } };
	struct msghdr msg = { .msg_iov = in, .msg_iovlen = 2, .msg_name = &a, .msg_namelen = sizeof a };
	R(recvmsg(fd, &msg, MSG_WAITALL));
	printf("    %.3s %.3s namelen %u flags %#x\n", buf, buf + 100, msg.msg_namelen, msg.msg_flags);
	socklen_t len = sizeof a;
	R(sendto(fd, "x", 1, 0, (void *)&a, sizeof a));
	R(recvfrom(fd, buf, 1, 0, (void *)&a, &len));
	printf("    length %u\n", len);
	R(shutdown(fd, 9));
	R(setsockopt(-1, SOL_SOCKET, SO_KEEPALIVE, &(int){ 1 }, sizeof(int)));
	R(fcntl(-1, F_SETOWN, getpid()));
	R(shutdown(fd, SHUT_WR));
	R(send(fd, "x", 1, MSG_NOSIGNAL));
	R(read(fd, buf, sizeof buf));
	bits(fd, POLLHUP);
	R(read(fd, buf, sizeof buf));
	R(close(fd));
	R(read(fd, buf, 1));
}

static void case_unconnected(void)
{
	char buf[8];
	int fd = tcp();
	struct sockaddr_in a = at(own_address, 0), wrong = a;
	show_name("getsockname", getsockname, fd);
	R(recv(fd, buf, 1, 0));
	R(send(fd, buf, 1, MSG_NOSIGNAL));
	R(shutdown(fd, SHUT_RDWR));
	R(bind(fd, (void *)&a, 4));
	wrong.sin_addr.s_addr = htonl(0x0a090063);
	R(bind(fd, (void *)&wrong, sizeof wrong));
	R(bind(fd, (void *)&a, sizeof a));
	show_name("getsockname", getsockname, fd);
	show_name("getpeername", getpeername, fd);
	R(bind(fd, (void *)&a, sizeof a));
	R(accept(fd, NULL, NULL));
	R(recv(fd, buf, 1, 0));
	R(recv(fd, buf, 1, MSG_DONTWAIT));
	R(send(fd, buf, 1, MSG_NOSIGNAL));
	R(shutdown(fd, SHUT_RDWR));
	bits(fd, 0);
	printf("  type %d domain %d protocol %d accepts %d error %d\n", option(fd, SOL_SOCKET, SO_TYPE),
	       option(fd, SOL_SOCKET, SO_DOMAIN), option(fd, SOL_SOCKET, SO_PROTOCOL),
	       option(fd, SOL_SOCKET, SO_ACCEPTCONN), option(fd, SOL_SOCKET, SO_ERROR));
	struct sockaddr_in to = at(peer_address, ECHO);
	to.sin_family = AF_UNIX;
	R(connect(fd, (void *)&to, sizeof to));
	R(connect(fd, (void *)&to, 4));
	R(connect(fd, (void *)8, sizeof to));
	to.sin_family = AF_INET;
	R(connect(fd, (void *)&to, sizeof to));
	show_name("getsockname", getsockname, fd);
	close(fd);
}

static void case_connect_nonblocking(void)
{
	int fd = tcp();
	struct sockaddr_in a = at(peer_address, ECHO);
	nonblocking(fd);
	R(connect(fd, (void *)&a, sizeof a));
	bits(fd, POLLOUT);
	R(connect(fd, (void *)&a, sizeof a));
	R(connect(fd, (void *)&a, sizeof a));
	printf("  error %d\n", option(fd, SOL_SOCKET, SO_ERROR));
	close(fd);
}

static void case_refused(void)
{
	char c;
	int fd = tcp();
	struct sockaddr_in a = at(peer_address, CLOSED), good = at(peer_address, ECHO);
	R(connect(fd, (void *)&a, sizeof a));
	printf("  error %d\n", option(fd, SOL_SOCKET, SO_ERROR));
	R(connect(fd, (void *)&good, sizeof good));
	close(fd);
	fd = tcp();
	nonblocking(fd);
	R(connect(fd, (void *)&a, sizeof a));
	bits(fd, POLLOUT);
	printf("  error %d\n", option(fd, SOL_SOCKET, SO_ERROR));
	printf("  error %d\n", option(fd, SOL_SOCKET, SO_ERROR));
	R(recv(fd, &c, 1, 0));
	R(send(fd, &c, 1, MSG_NOSIGNAL));
	close(fd);
	fd = tcp();
	nonblocking(fd);
	R(connect(fd, (void *)&a, sizeof a));
	struct pollfd p = { fd, POLLOUT, 0 };
	poll(&p, 1, -1);
	R(connect(fd, (void *)&a, sizeof a));
	close(fd);
}

static volatile sig_atomic_t pipes;

static void on_pipe(int sig)
{
	(void)sig;
	pipes++;
}

static void case_reset(void)
{
	char c;
	int fd = connected(RESET);
	R(send(fd, "x", 1, 0));
	bits(fd, POLLHUP);
	R(recv(fd, &c, 1, 0));
	R(recv(fd, &c, 1, 0));
	signal(SIGPIPE, on_pipe);
	R(send(fd, "x", 1, 0));
	R(write(fd, "x", 1));
	R(send(fd, "x", 1, MSG_NOSIGNAL));
	printf("  %d signals\n", (int)pipes);
	bits(fd, 0);
	R(shutdown(fd, SHUT_RDWR));
	show_name("getpeername", getpeername, fd);
	close(fd);
	fd = connected(RESET);
	R(send(fd, "x", 1, 0));
	struct pollfd p = { fd, 0, 0 };
	poll(&p, 1, -1);
	printf("  error %s\n", name_of(option(fd, SOL_SOCKET, SO_ERROR)));
	R(recv(fd, &c, 1, 0));
	close(fd);
}

static void show_events(const char *what, int ep, int timeout)
{
	struct epoll_event e[4];
	int n = epoll_wait(ep, e, 4, timeout);
	say(what, n);
	for (int i = 0; i < n; i++)
		show_bits("    event", e[i].events);
}

static void case_epoll(void)
{
	char buf[16];
	int ep = epoll_create1(0), fd = tcp();
	struct sockaddr_in a = at(peer_address, ECHO);
	struct epoll_event e = { .events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET };
	R(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e)); /* before the socket is anybody's */
	show_events("unconnected", ep, 0);
	if (connect(fd, (void *)&a, sizeof a))
		die("connect");
	show_events("connected", ep, -1);
	show_events("edge is over", ep, 0);
	R(send(fd, "abcdef", 6, 0));
	wait_for(fd, 6);
	show_events("data", ep, -1);
	show_events("edge is over", ep, 0);
	e.events = EPOLLIN;
	R(epoll_ctl(ep, EPOLL_CTL_MOD, fd, &e));
	show_events("level", ep, 0);
	show_events("level", ep, 0);
	R(recv(fd, buf, sizeof buf, 0));
	show_events("read", ep, 0);
	e.events = EPOLLOUT | EPOLLONESHOT;
	R(epoll_ctl(ep, EPOLL_CTL_MOD, fd, &e));
	show_events("one shot", ep, 0);
	show_events("spent", ep, 0);
	R(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e));
	e.events = EPOLLIN | EPOLLRDHUP | EPOLLET;
	R(epoll_ctl(ep, EPOLL_CTL_MOD, fd, &e));
	shutdown(fd, SHUT_WR);
	show_events("end", ep, -1);
	R(epoll_ctl(ep, EPOLL_CTL_DEL, fd, NULL));
	R(epoll_ctl(ep, EPOLL_CTL_DEL, fd, NULL));
	close(fd);
	close(ep);
}

static long cpu_ms(void)
{
	struct timespec t;
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* A member that goes while it has something leaves nothing behind that keeps a waiter awake. */
static void case_idle(void)
{
	int ep = epoll_create1(0), fd = connected(HELLO), other = connected(ECHO);
	struct epoll_event e = { .events = EPOLLIN };
	epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e);
	epoll_ctl(ep, EPOLL_CTL_ADD, other, &e);
	wait_for(fd, 5);
	show_events("data", ep, -1);
	close(fd);
	long before = cpu_ms();
	show_events("nothing", ep, 300);
	printf("  slept %d\n", cpu_ms() - before < 150);
	close(other);
	close(ep);
}

static void case_select(void)
{
	char buf[8];
	int pair[2], fd = connected(ECHO);
	if (pipe(pair))
		die("pipe");
	fd_set in, out;
	struct timeval soon = { 0, 0 };
	FD_ZERO(&in);
	FD_ZERO(&out);
	FD_SET(fd, &in);
	FD_SET(fd, &out);
	FD_SET(pair[0], &in);
	int top = (fd > pair[0] ? fd : pair[0]) + 1;
	R(select(top, &in, &out, NULL, &soon));
	(void)!write(pair[1], "x", 1);
	send(fd, "y", 1, 0);
	wait_for(fd, 1);
	FD_ZERO(&in);
	FD_SET(fd, &in);
	FD_SET(pair[0], &in);
	R(select(top, &in, NULL, NULL, NULL));
	printf("  socket %d pipe %d\n", !!FD_ISSET(fd, &in), !!FD_ISSET(pair[0], &in));
	R(read(fd, buf, sizeof buf));
	close(fd), close(pair[0]), close(pair[1]);
}

static void case_listen(void)
{
	char text[64], buf[64];
	int one = 1, s = tcp(), other = tcp();
	struct sockaddr_in a = at(own_address, 0);
	socklen_t len = sizeof a;
	setsockopt(s, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	bind(s, (void *)&a, sizeof a);
	getsockname(s, (void *)&a, &len);
	R(listen(s, 4));
	R(listen(s, 8));
	R(bind(other, (void *)&a, sizeof a));
	close(other);
	nonblocking(s);
	R(accept(s, NULL, NULL));
	R(accept4(s, NULL, NULL, 1));
	R(recv(s, buf, 1, 0));
	R(send(s, buf, 1, MSG_NOSIGNAL));
	show_name("getpeername", getpeername, s);
	struct sockaddr_in to = at(peer_address, ECHO);
	R(connect(s, (void *)&to, sizeof to));
	bits(s, 0);
	printf("  accepts %d\n", option(s, SOL_SOCKET, SO_ACCEPTCONN));
	int control = connected(CALLBACK);
	int n = snprintf(text, sizeof text, "%s %d", own_address, ntohs(a.sin_port));
	write_all(control, text, n);
	bits(s, POLLIN);
	struct sockaddr_in from = { 0 };
	len = sizeof from;
	int fd = accept4(s, (void *)&from, &len, SOCK_CLOEXEC | SOCK_NONBLOCK);
	printf("  accepted %d length %u peer %s nodelay %d flags %d %d\n", fd >= 0, len,
	       inet_ntoa(from.sin_addr), option(fd, IPPROTO_TCP, TCP_NODELAY) != 0,
	       (fcntl(fd, F_GETFL) & O_NONBLOCK) != 0, fcntl(fd, F_GETFD));
	bits(fd, POLLIN);
	R(read(fd, buf, sizeof buf));
	R(read(fd, buf, sizeof buf));
	write_all(fd, "pong", 4);
	R(recv(control, buf, 4, MSG_WAITALL));
	bits(fd, POLLRDHUP);
	R(read(fd, buf, sizeof buf));
	close(fd);
	close(control);
	R(shutdown(s, SHUT_RD));
	R(accept(s, NULL, NULL));
	close(s);
}

/* Nothing that was done to an accepted connection shows in the next. */
static void case_one_after_another(void)
{
	char text[64];
	int s = tcp(), other, priority = 6;
	struct sockaddr_in a = at(own_address, 0);
	socklen_t len = sizeof a;
	bind(s, (void *)&a, sizeof a);
	getsockname(s, (void *)&a, &len);
	R(listen(s, 4));
	for (int round = 0; round < 9; round++) {
		int control = connected(CALLBACK);
		write_all(control, text, snprintf(text, sizeof text, "%s %d", own_address, ntohs(a.sin_port)));
		int fd = accept4(s, NULL, NULL, round % 3 == 1 ? SOCK_NONBLOCK : round % 3 == 2 ? SOCK_CLOEXEC : 0);
		printf("  flags %x %x owner %d priority %d\n",
		       fcntl(fd, F_GETFL) & (O_NONBLOCK | O_ASYNC), fcntl(fd, F_GETFD), fcntl(fd, F_GETOWN),
		       option(fd, SOL_SOCKET, SO_PRIORITY));
		switch (round) {
		case 0:
			fcntl(fd, F_SETFL, O_NONBLOCK | O_ASYNC);
			break;
		case 2:
			fcntl(fd, F_SETOWN, getpid());
			break;
		case 4:
			setsockopt(fd, SOL_SOCKET, SO_PRIORITY, &priority, sizeof priority);
			break;
		case 6:
			other = dup(fd);
			close(fd);
			fcntl(other, F_SETFL, O_NONBLOCK);
			fd = other;
			break;
		}
		wait_for(fd, 4);
		R(read(fd, text, sizeof text));
		write_all(fd, "pong", 4);
		R(recv(control, text, 4, MSG_WAITALL));
		close(fd);
		close(control);
	}
	close(s);
}

/* Connects a new socket to loopback, after what `round` says was done to it. The number of the copy that has to
 * be connected then. */
static int by_way_of(int round, int fd, const struct sockaddr_in *to)
{
	int priority = 6, pair[2], ep, me = getpid();
	char control[CMSG_SPACE(sizeof(int))] = "", byte;
	struct iovec iov = { &byte, 1 };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control };
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);
	struct sockaddr_in any = at("127.0.0.1", 0);
	struct epoll_event e = { .events = EPOLLOUT | EPOLLET };
	int copy = fd;
	switch (round) {
	case 1:
		R(setsockopt(fd, SOL_SOCKET, SO_PRIORITY, &priority, sizeof priority));
		break;
	case 2:
		copy = dup2(fd, 90);
		break;
	case 3:
		R(bind(fd, (void *)&any, sizeof any));
		break;
	case 4:
		R(fcntl(fd, F_SETOWN, me));
		break;
	case 5:
		ep = epoll_create1(0);
		R(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e));
		show_events("not connected", ep, 0);
		break;
	case 6:
		socketpair(AF_UNIX, SOCK_DGRAM, 0, pair);
		*c = (struct cmsghdr){ CMSG_LEN(sizeof fd), SOL_SOCKET, SCM_RIGHTS };
		memcpy(CMSG_DATA(c), &fd, sizeof fd);
		R(sendmsg(pair[0], &m, 0));
		R(recvmsg(pair[1], &m, 0));
		memcpy(&copy, CMSG_DATA(c), sizeof copy);
		break;
	case 9:
		R(ioctl(fd, SIOCSPGRP, &me));
		break;
	}
	if (round == 7 && !fork()) {
		connect(fd, (void *)to, sizeof *to);
		_exit(0);
	}
	if (round == 7)
		wait(NULL);
	else
		connect(fd, (void *)to, sizeof *to);
	if (round == 5) {
		show_events("connected", ep, -1);
		close(ep);
	}
	if (round == 6) {
		close(pair[0]);
		close(pair[1]);
	}
	return copy;
}

/* A copy that was made first is a copy of what the socket becomes. */
static void case_copied_early(void)
{
	char text[64];
	struct sockaddr_in echo = at(peer_address, ECHO), own = at(own_address, 0);
	socklen_t len = sizeof own;
	for (int how = 0; how < 4; how++) {
		int fd = tcp(), ep = epoll_create1(0), copy, one = 1;
		struct epoll_event e = { .events = EPOLLIN | EPOLLET };
		R(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one));
		copy = how == 0 ? dup(fd) : how == 1 ? dup2(fd, 90) : how == 2 ? dup3(fd, 91, O_CLOEXEC) :
			fcntl(fd, F_DUPFD_CLOEXEC, 92);
		R(setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one));
		R(epoll_ctl(ep, EPOLL_CTL_ADD, copy, &e));
		show_events("not connected", ep, 0);
		R(connect(how % 2 ? copy : fd, (void *)&echo, sizeof echo));
		printf("  copy: flags %x nodelay %d keepalive %d\n", fcntl(copy, F_GETFD),
		       option(copy, IPPROTO_TCP, TCP_NODELAY), option(copy, SOL_SOCKET, SO_KEEPALIVE));
		show_name("getpeername", getpeername, copy);
		R(write(copy, "abc", 3));
		show_events("answered", ep, -1);
		R(read(fd, text, 3));
		close(fd);
		R(write(copy, "def", 3));
		wait_for(copy, 3);
		show_events("answered again", ep, -1);
		R(read(copy, text, sizeof text));
		close(copy);
		close(ep);
	}
	int fd = tcp(), copy = dup(fd);
	R(bind(fd, (void *)&own, sizeof own));
	R(listen(copy, 4));
	close(fd);
	R(getsockname(copy, (void *)&own, &len));
	int control = connected(CALLBACK);
	write_all(control, text, snprintf(text, sizeof text, "%s %d", own_address, ntohs(own.sin_port)));
	fd = accept(copy, NULL, NULL);
	write_all(fd, "pong", 4);
	R(recv(control, text, 4, MSG_WAITALL));
	close(fd);
	close(control);
	close(copy);
}

/* A socket that is made after a connection has ended is as new, whoever turns out to have its peer. */
static void case_after_a_connection(void)
{
	char text[8];
	int l = tcp();
	struct sockaddr_in a = at("127.0.0.1", 0);
	socklen_t len = sizeof a;
	bind(l, (void *)&a, sizeof a);
	getsockname(l, (void *)&a, &len);
	R(listen(l, 4));
	for (int round = 0; round < 10; round++) {
		struct stat before, after;
		int first = socket(AF_INET, SOCK_STREAM, 0), fd, copy, other;
		struct sockaddr_in echo = at(peer_address, ECHO);
		fstat(first, &before);
		R(connect(first, (void *)&echo, sizeof echo));
		close(first);
		fd = socket(AF_INET, SOCK_STREAM | (round % 2 ? SOCK_CLOEXEC : 0), 0);
		R(fd == first);
		printf("  round %d: flags %x %x owner %d priority %d\n", round, fcntl(fd, F_GETFL), fcntl(fd, F_GETFD),
		       fcntl(fd, F_GETOWN), option(fd, SOL_SOCKET, SO_PRIORITY));
		if (round == 8) {
			R(listen(fd, 1));
			close(fd);
			continue;
		}
		copy = by_way_of(round, fd, &a);
		fstat(fd, &after);
		if (round == 0 || round == 1 || round == 3 || round == 9)
			R(after.st_ino == before.st_ino);
		other = accept(l, NULL, NULL);
		R(write(copy, "abc", 3));
		R(read(other, text, sizeof text));
		printf("  then flags %x owner %d priority %d\n", fcntl(fd, F_GETFL), fcntl(fd, F_GETOWN) != 0,
		       option(fd, SOL_SOCKET, SO_PRIORITY));
		if (copy != fd)
			close(copy);
		close(fd);
		close(other);
	}
	close(l);
}

static void case_urgent(void)
{
	char buf[16];
	int n = 0, fd = connected(URGENT);
	bits(fd, POLLPRI);
	wait_for(fd, 3); /* up to the mark */
	R(recv(fd, buf, 1, MSG_OOB));
	printf("    %c\n", buf[0]);
	R(recv(fd, buf, 1, MSG_OOB));
	R(ioctl(fd, SIOCATMARK, &n));
	printf("    mark %d\n", n);
	R(recv(fd, buf, sizeof buf, 0));
	R(sockatmark(fd));
	R(recv(fd, buf, sizeof buf, 0));
	R(sockatmark(fd));
	R(send(fd, "x", 1, MSG_OOB));
	close(fd);
}

static void case_timeouts(void)
{
	char c;
	struct timeval t = { 0, 50000 }, got;
	socklen_t len = sizeof got;
	int fd = tcp();
	R(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t));
	struct sockaddr_in a = at(peer_address, ECHO);
	if (connect(fd, (void *)&a, sizeof a))
		die("connect");
	R(getsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &got, &len));
	printf("    %ld us\n", (long)got.tv_usec);
	R(recv(fd, &c, 1, 0));
	struct pollfd p = { fd, POLLIN, 0 };
	R(poll(&p, 1, 10));
	close(fd);
}

static void case_full(void)
{
	static char buf[1 << 16];
	int fd = connected(DEAF), n = 0;
	ssize_t sent, total = 0;
	nonblocking(fd);
	while ((sent = send(fd, buf, sizeof buf, 0)) > 0)
		total += sent;
	say("send", sent);
	bits(fd, 0);
	R(ioctl(fd, SIOCOUTQ, &n));
	printf("    some wait %d\n", n > 0 && n <= total);
	close(connected(HEARS));
	bits(fd, POLLOUT);
	close(fd);
	fd = connected(DEAF);
	struct timeval t = { 0, 50000 };
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &t, sizeof t);
	while ((sent = send(fd, buf, sizeof buf, 0)) == sizeof buf)
		;
	printf("  cut short %d\n", sent > 0 || errno == EAGAIN);
	close(connected(HEARS));
	close(fd);
}

static void case_bulk(void)
{
	static char buf[100000];
	int fd = connected(BULK);
	R(recv(fd, buf, 60000, MSG_WAITALL));
	R(recv(fd, buf, 60000, MSG_WAITALL | MSG_PEEK) > 0);
	long total = 60000;
	ssize_t n;
	while ((n = read(fd, buf, sizeof buf)) > 0)
		total += n;
	printf("  %ld bytes, end %zd\n", total, n);
	close(fd);
}

static void case_files(void)
{
	char name[] = "/tmp/stack_calls.XXXXXX", buf[64];
	int fd = connected(ECHO), file = mkstemp(name), pair[2];
	unlink(name);
	(void)!write(file, "0123456789", 10);
	lseek(file, 2, SEEK_SET);
	R(sendfile(fd, file, NULL, 3));
	R(lseek(file, 0, SEEK_CUR));
	off_t from = 6;
	R(sendfile(fd, file, &from, 100));
	printf("    offset %ld\n", (long)from);
	R(recv(fd, buf, 7, MSG_WAITALL));
	printf("    %.7s\n", buf);
	R(sendfile(file, fd, NULL, 10));
	if (pipe(pair))
		die("pipe");
	(void)!write(pair[1], "through", 7);
	R(splice(pair[0], NULL, fd, NULL, 100, 0));
	R(splice(fd, NULL, pair[1], NULL, 100, 0));
	R(read(pair[0], buf, sizeof buf));
	printf("    %.7s\n", buf);
	R(lseek(fd, 0, SEEK_SET));
	R(pread(fd, buf, 1, 0));
	close(fd), close(file), close(pair[0]), close(pair[1]);
}

static void case_copies(void)
{
	char buf[8];
	int fd = connected(ECHO), copy = dup(fd);
	nonblocking(copy);
	R(recv(fd, buf, 1, 0));
	R(close(fd));
	R(send(copy, "a", 1, 0));
	bits(copy, POLLIN);
	R(recv(copy, buf, 1, 0));
	R(dup2(copy, fd) == fd);
	R(close(copy));
	R(send(fd, "b", 1, 0));
	bits(fd, POLLIN);
	R(recv(fd, buf, 1, 0));
	struct sockaddr none = { .sa_family = AF_UNSPEC };
	R(connect(fd, &none, sizeof none));
	R(send(fd, "b", 1, MSG_NOSIGNAL));
	struct sockaddr_in a = at(peer_address, HELLO);
	fcntl(fd, F_SETFL, 0);
	R(connect(fd, (void *)&a, sizeof a));
	R(recv(fd, buf, 5, MSG_WAITALL));
	R(recv(fd, buf, 5, MSG_WAITALL));
	close(fd);
}

static void set_and_get(int fd, const char *what, int level, int name, int value)
{
	int done = setsockopt(fd, level, name, &value, sizeof value);
	int err = errno;
	printf("  %s %d: %s, then %d\n", what, value, done ? name_of(err) : "set", option(fd, level, name));
}

#define OPTION(level, name, value) set_and_get(fd, #name, level, name, value)

static void case_options(void)
{
	int fd = connected(ECHO);
	OPTION(SOL_SOCKET, SO_REUSEADDR, 1);
	OPTION(SOL_SOCKET, SO_REUSEPORT, 1);
	OPTION(SOL_SOCKET, SO_KEEPALIVE, 1);
	OPTION(SOL_SOCKET, SO_OOBINLINE, 5);
	OPTION(SOL_SOCKET, SO_RCVLOWAT, 3);
	OPTION(SOL_SOCKET, SO_RCVLOWAT, 0);
	OPTION(SOL_SOCKET, SO_SNDLOWAT, 3);
	OPTION(SOL_SOCKET, SO_RCVBUF, 40000);
	OPTION(SOL_SOCKET, SO_SNDBUF, 40000);
	OPTION(SOL_SOCKET, SO_SNDBUF, 1);
	OPTION(SOL_SOCKET, SO_TYPE, 1);
	OPTION(SOL_SOCKET, SO_ERROR, 1);
	OPTION(IPPROTO_TCP, TCP_NODELAY, 7);
	OPTION(IPPROTO_TCP, TCP_CORK, 1);
	OPTION(IPPROTO_TCP, TCP_CORK, 0);
	OPTION(IPPROTO_TCP, TCP_KEEPIDLE, 100);
	OPTION(IPPROTO_TCP, TCP_KEEPIDLE, 0);
	OPTION(IPPROTO_TCP, TCP_KEEPINTVL, 32768);
	OPTION(IPPROTO_TCP, TCP_KEEPCNT, 127);
	OPTION(IPPROTO_TCP, TCP_KEEPCNT, 128);
	OPTION(IPPROTO_TCP, TCP_USER_TIMEOUT, 5000);
	OPTION(IPPROTO_TCP, TCP_USER_TIMEOUT, -1);
	OPTION(IPPROTO_TCP, TCP_SYNCNT, 3);
	OPTION(IPPROTO_TCP, TCP_DEFER_ACCEPT, 5);
	OPTION(IPPROTO_TCP, TCP_DEFER_ACCEPT, 0);
	OPTION(IPPROTO_IP, IP_TOS, 0x10);
	OPTION(IPPROTO_IP, IP_TTL, 70);
	OPTION(IPPROTO_IP, IP_TTL, 0);
	OPTION(IPPROTO_TCP, 12345, 1);
	char name[16] = "";
	socklen_t len = sizeof name;
	R(setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "reno", 4));
	R(getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name, &len));
	printf("    %s %u\n", name, len);
	R(setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "nosuch", 6));
	R(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &len, 3));
	R(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, (void *)8, 4));
	R(getsockopt(fd, SOL_SOCKET, SO_TYPE, (void *)8, &len));
	struct linger l = { 1, 7 };
	len = sizeof l;
	R(setsockopt(fd, SOL_SOCKET, SO_LINGER, &l, 4));
	R(setsockopt(fd, SOL_SOCKET, SO_LINGER, &l, sizeof l));
	R(getsockopt(fd, SOL_SOCKET, SO_LINGER, &l, &len));
	printf("    %d %d %u\n", l.l_onoff, l.l_linger, len);
	struct tcp_info info = { 0 };
	len = sizeof info;
	R(getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &len));
	printf("    state %d, measured %d\n", info.tcpi_state, info.tcpi_rtt > 0);
	l.l_onoff = 0;
	setsockopt(fd, SOL_SOCKET, SO_LINGER, &l, sizeof l);
	close(fd);
}

static int guest(void)
{
	static const struct { const char *name; void (*run)(void); } cases[] = {
		{ "stream", case_stream }, { "unconnected", case_unconnected },
		{ "connect, not blocking", case_connect_nonblocking }, { "refused", case_refused },
		{ "reset", case_reset }, { "epoll", case_epoll }, { "idle", case_idle }, { "select", case_select },
		{ "listen", case_listen }, { "one after another", case_one_after_another },
		{ "copied early", case_copied_early }, { "after a connection", case_after_a_connection },
		{ "urgent", case_urgent }, { "timeouts", case_timeouts },
		{ "full", case_full }, { "bulk", case_bulk }, { "files", case_files },
		{ "copies", case_copies }, { "options", case_options },
	};
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		printf("%s\n", cases[i].name);
		fflush(stdout);
		hang_guard(cases[i].name); /* a call that never returns ends the trace here */
		cases[i].run();
	}
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "peer")) {
		peer_address = argv[2];
		return peer();
	}
	if (argc == 4 && !strcmp(argv[1], "guest")) {
		peer_address = argv[2];
		own_address = argv[3];
		return guest();
	}
	fprintf(stderr, "usage: stack_calls peer ADDRESS | guest PEER ADDRESS\n");
	return 2;
}
