/* Connections that several processes hold.
 *
 *   stack_share peer ADDRESS     serves the guest, says "listening", ends when its standard input does
 *   stack_share guest ADDRESS    prints what each call returned
 *   stack_share kills ADDRESS    kills children of its own in the middle of their work
 *   stack_share orphan ADDRESS   kills the process that opened a connection
 *   stack_share daemon ADDRESS   listens, leaves the work to a child and ends; the child echoes
 *   stack_share client ADDRESS   talks to that child */
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
#include <sys/sendfile.h>
#include <sys/un.h>

enum { BULK = 600000 };

static int try_all(int fd, const char *bytes, size_t n)
{
	for (ssize_t done; n > 0; bytes += done, n -= done)
		if ((done = send(fd, bytes, n, MSG_NOSIGNAL)) <= 0)
			return 0;
	return 1;
}

static void write_all(int fd, const char *bytes, size_t n)
{
	check(try_all(fd, bytes, n), "send");
}

static void read_all(int fd, char *bytes, size_t n)
{
	for (ssize_t done; n > 0; bytes += done, n -= done)
		check((done = recv(fd, bytes, n, 0)) > 0, "recv");
}

static void fill(char *bytes, size_t n)
{
	for (size_t i = 0; i < n; i++)
		bytes[i] = i * 131 >> 5;
}

/* ---- the peer: the first byte of a connection says what it does */

/* Connections that are not read before one says so, and what came over them. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static int are_read, read_out;
static long held_bytes, held_resets;

static char last; /* how the last connection ended: e for the end, r for a reset */

static void *serve(void *arg)
{
	static _Thread_local char buf[100 << 10]; /* every thread's stack has it, the library's too */
	int fd = (int)(long)arg;
	ssize_t n;
	char what, end = 'e';
	struct linger hard = { 1, 0 };
	if (recv(fd, &what, 1, 0) != 1) {
		close(fd);
		return NULL;
	}
	switch (what) {
	case 'E': /* echoes */
		while ((n = recv(fd, buf, sizeof buf, 0)) > 0 && try_all(fd, buf, n))
			;
		break;
	case 'R': /* sends, and resets when it is told to */
		write_all(fd, "bye", 3);
		n = recv(fd, buf, 1, 0);
		setsockopt(fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
		break;
	case 'P': /* expects its own words back */
		write_all(fd, "there and back\n", 15);
		read_all(fd, buf, 15);
		write_all(fd, memcmp(buf, "there and back\n", 15) ? "N" : "Y", 1);
		shutdown(fd, SHUT_WR);
		while ((n = recv(fd, buf, sizeof buf, 0)) > 0)
			;
		break;
	case 'S': /* sends, and waits for the end */
		probe(fd);
		write_all(fd, "unread", 6);
		while ((n = recv(fd, buf, sizeof buf, 0)) > 0)
			;
		end = n == 0 ? 'e' : errno == ECONNRESET ? 'r' : '?';
		break;
	case 'C': /* says "end" at the end */
		while ((n = recv(fd, buf, sizeof buf, 0)) > 0)
			;
		write_all(fd, "end", 3);
		break;
	case 'B': { /* many bytes */
		char *bytes = malloc(BULK);
		fill(bytes, BULK);
		write_all(fd, bytes, BULK);
		free(bytes);
		break;
	}
	case 'D': { /* dials so many times where it is told to, and tells what it has heard there */
		unsigned char to[3], heard[256];
		struct sockaddr_in a;
		socklen_t length = sizeof a;
		read_all(fd, (char *)to, 3);
		getpeername(fd, (void *)&a, &length);
		memcpy(&a.sin_port, to, 2);
		for (int i = 0; i < to[2]; i++) {
			int other = socket(AF_INET, SOCK_STREAM, 0);
			heard[i] = '-';
			if (connect(other, (void *)&a, sizeof a) == 0) {
				heard[i] = '0';
				send(other, "hello", 5, MSG_NOSIGNAL);
				if (recv(other, heard + i, 1, 0) <= 0)
					heard[i] = 'r';
			}
			close(other);
		}
		write_all(fd, (char *)heard, to[2]);
		break;
	}
	case 'H': { /* is not read for now */
		long got = 0;
		pthread_mutex_lock(&lock);
		while (!are_read)
			pthread_cond_wait(&changed, &lock);
		pthread_mutex_unlock(&lock);
		while ((n = recv(fd, buf, sizeof buf, 0)) > 0)
			got += n;
		pthread_mutex_lock(&lock);
		read_out++;
		held_bytes += got;
		held_resets += n < 0;
		pthread_cond_broadcast(&changed);
		pthread_mutex_unlock(&lock);
		break;
	}
	case 'G': { /* now they are, so many; tells what has come */
		unsigned char count;
		read_all(fd, (char *)&count, 1);
		pthread_mutex_lock(&lock);
		are_read = 1;
		pthread_cond_broadcast(&changed);
		while (read_out < count)
			pthread_cond_wait(&changed, &lock);
		long all[2] = { held_bytes, held_resets };
		pthread_mutex_unlock(&lock);
		write_all(fd, (char *)all, sizeof all);
		break;
	}
	case 'L':
		pthread_mutex_lock(&lock);
		while (!last)
			pthread_cond_wait(&changed, &lock);
		what = last;
		last = 0;
		pthread_mutex_unlock(&lock);
		write_all(fd, &what, 1);
		break;
	}
	if (what == 'S') {
		pthread_mutex_lock(&lock);
		last = end;
		pthread_cond_broadcast(&changed);
		pthread_mutex_unlock(&lock);
	}
	close(fd);
	return NULL;
}

static void peer(void)
{
	struct sockaddr_in a = at(ip, PORT);
	int s = socket(AF_INET, SOCK_STREAM, 0), one = 1;
	setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	check(bind(s, (void *)&a, sizeof a) == 0 && listen(s, 64) == 0, "listen");
	puts("listening");
	fflush(stdout);
	struct pollfd p[2] = { { s, POLLIN, 0 }, { 0, POLLIN, 0 } };
	while (poll(p, 2, -1) > 0 && !p[1].revents) {
		pthread_t t;
		int fd = accept(s, NULL, NULL);
		check(fd >= 0 && pthread_create(&t, NULL, serve, (void *)(long)fd) == 0, "accept");
		pthread_detach(t);
	}
}

/* ---- the guest */

static void uses(void)
{
	int fd = dial('E');
	echoes("the parent before", fd);
	CHILD(echoes("the child", fd));
	join("uses");
	echoes("the parent after", fd);
	CHILD(echoes("another child", fd));
	join("uses");
	say("close", close(fd));
}

static void serves(void)
{
	static char out[BULK], in[BULK];
	int fd = dial('E');
	fill(out, BULK);
	CHILD({
		size_t sent = 0, got = 0;
		while (got < BULK) {
			struct pollfd p = { fd, POLLIN | (sent < BULK ? POLLOUT : 0), 0 };
			check(poll(&p, 1, -1) == 1, "poll");
			if (p.revents & POLLOUT) {
				ssize_t n = send(fd, out + sent, BULK - sent, MSG_DONTWAIT);
				check(n > 0 || errno == EAGAIN, "send");
				sent += n > 0 ? n : 0;
			}
			if (p.revents & POLLIN) {
				ssize_t n = recv(fd, in + got, BULK - got, MSG_DONTWAIT);
				check(n > 0, "recv");
				got += n;
			}
		}
		check(!memcmp(in, out, BULK), "bytes");
		say("shutdown", shutdown(fd, SHUT_WR));
		text("end", fd, 10);
		struct pollfd p = { fd, POLLIN | POLLOUT | POLLRDHUP, 0 };
		poll(&p, 1, 0);
		printf("at the end: %x\n", p.revents);
		say("send", send(fd, "x", 1, MSG_NOSIGNAL));
	});
	close(fd);
	join("serves");
}

/* What a number is to a process, and that it is the connection. */
static void number(const char *who, int fd)
{
	int priority = -1;
	socklen_t length = sizeof priority;
	getsockopt(fd, SOL_SOCKET, SO_PRIORITY, &priority, &length);
	printf("%s: flags %x, %s, priority %d\n", who, fcntl(fd, F_GETFD), fcntl(fd, F_GETFL) & O_NONBLOCK ? "nonblocking" : "blocking",
	       priority);
	struct pollfd p = { fd, POLLIN, 0 };
	write_all(fd, who, strlen(who));
	check(poll(&p, 1, -1) == 1, "poll");
	text(who, fd, strlen(who));
}

static void by_every_number(void)
{
	int one = dial('E'), two = dup(one), three = fcntl(one, F_DUPFD_CLOEXEC, 0), priority = 5;
	check(setsockopt(one, SOL_SOCKET, SO_PRIORITY, &priority, sizeof priority) == 0, "priority");
	check(fcntl(two, F_SETFL, fcntl(two, F_GETFL) | O_NONBLOCK) == 0, "nonblocking");
	number("before", three);
	CHILD({
		number("first of a child", one);
		number("second of a child", two);
		number("third of a child", three);
	});
	join("by every number");
	close(one);
	number("second", two);
	close(two);
	CHILD(number("third of another child", three));
	join("by every number");
	number("third", three);
	close(three);
}

static void takes_turns(void)
{
	int fd = dial('E'), go[2];
	char c;
	check(pipe(go) == 0, "pipe");
	CHILD({
		write_all(fd, "from the child", 14);
		check(read(go[0], &c, 1) == 1, "go");
		text("child", fd, 8);
	});
	text("parent", fd, 14);
	write_all(fd, "from the parent", 15);
	struct pollfd p = { fd, POLLIN, 0 };
	while (poll(&p, 1, -1) == 1 && recv(fd, (char[20]){ 0 }, 20, MSG_PEEK) < 15)
		;
	check(write(go[1], "g", 1) == 1, "go");
	join("takes turns");
	text("the rest", fd, 100);
	close(fd);
	close(go[0]);
	close(go[1]);
}

static void *waits(void *arg)
{
	text("a thread that slept", (int)(long)arg, 100);
	return NULL;
}

static void asleep(void)
{
	int fd = dial('E'), ep = epoll_create1(0);
	pthread_t t;
	struct epoll_event e = { .events = EPOLLIN, .data.u64 = 77 };
	check(pthread_create(&t, NULL, waits, (void *)(long)fd) == 0, "thread");
	usleep(50000);
	CHILD(write_all(fd, "wake", 4));
	pthread_join(t, NULL);
	join("asleep");
	close(fd);

	fd = dial('E');
	check(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e) == 0, "epoll_ctl");
	CHILD(write_all(fd, "event", 5));
	int n = epoll_wait(ep, &e, 1, -1);
	printf("epoll: %d %x %d\n", n, e.events, (int)e.data.u64);
	text("then", fd, 100);
	e.events = EPOLLOUT;
	say("mod", epoll_ctl(ep, EPOLL_CTL_MOD, fd, &e));
	n = epoll_wait(ep, &e, 1, -1);
	printf("epoll: %d %x\n", n, e.events);
	say("del", epoll_ctl(ep, EPOLL_CTL_DEL, fd, NULL));
	join("epoll");
	close(fd);
	close(ep);
}

static void reset(int first)
{
	int fd = dial('R');
	probe(fd);
	CHILD({
		if (first)
			text("before", fd, 3);
		write_all(fd, "x", 1);
		struct pollfd p = { fd, POLLRDHUP, 0 };
		poll(&p, 1, -1);
		p.events = POLLIN | POLLOUT | POLLRDHUP;
		poll(&p, 1, 0);
		printf("reset shows: %x\n", p.revents);
		if (!first)
			text("still there", fd, 3);
		text("then", fd, 10);
		text("and then", fd, 10);
		say("send", send(fd, "x", 1, MSG_NOSIGNAL));
	});
	close(fd);
	join("reset");

	fd = dial('R');
	probe(fd);
	CHILD({
		text("before", fd, 3);
		write_all(fd, "x", 1);
		struct pollfd p = { fd, POLLRDHUP, 0 };
		poll(&p, 1, -1);
		say("first send", send(fd, "x", 1, MSG_NOSIGNAL));
		say("second send", send(fd, "x", 1, MSG_NOSIGNAL));
		text("receive", fd, 10);
	});
	close(fd);
	join("reset");
}

static void knows(void)
{
	int fd = dial('E'), one = 1, got;
	struct sockaddr_in here, there, a;
	socklen_t n = sizeof here;
	check(getsockname(fd, (void *)&here, &n) == 0, "getsockname");
	n = sizeof there;
	check(getpeername(fd, (void *)&there, &n) == 0, "getpeername");
	CHILD({
		n = sizeof a;
		say("getsockname", getsockname(fd, (void *)&a, &n));
		printf("same: %d\n", n == sizeof a && !memcmp(&a, &here, 8));
		n = sizeof a;
		say("getpeername", getpeername(fd, (void *)&a, &n));
		printf("same: %d\n", n == sizeof a && !memcmp(&a, &there, 8));
		say("set", setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one));
		int want[][2] = { { IPPROTO_TCP, TCP_NODELAY }, { SOL_SOCKET, SO_KEEPALIVE },
			{ SOL_SOCKET, SO_TYPE }, { SOL_SOCKET, SO_DOMAIN }, { SOL_SOCKET, SO_PROTOCOL },
			{ SOL_SOCKET, SO_ERROR }, { SOL_SOCKET, SO_ACCEPTCONN }, { IPPROTO_TCP, TCP_KEEPIDLE } };
		for (unsigned i = 0; i < sizeof want / sizeof *want; i++) {
			n = sizeof got;
			int r = getsockopt(fd, want[i][0], want[i][1], &got, &n);
			printf("option %u: %d %d %u\n", i, r, got, n);
		}
		say("refused", setsockopt(fd, IPPROTO_TCP, 9999, &one, sizeof one));
		say("refused", setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &(int){ 0 }, sizeof one));
		struct tcp_info info;
		n = sizeof info;
		say("TCP_INFO", getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &n));
		printf("state %d, mss %d\n", info.tcpi_state, info.tcpi_snd_mss > 500);
		char ca[16] = "";
		n = sizeof ca;
		say("TCP_CONGESTION", getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, ca, &n));
		struct linger l = { 1, 5 };
		say("SO_LINGER", setsockopt(fd, SOL_SOCKET, SO_LINGER, &l, sizeof l));
		memset(&l, 0, sizeof l);
		n = sizeof l;
		say("SO_LINGER", getsockopt(fd, SOL_SOCKET, SO_LINGER, &l, &n));
		printf("linger %d %d\n", l.l_onoff, l.l_linger);
		l.l_onoff = 0;
		setsockopt(fd, SOL_SOCKET, SO_LINGER, &l, sizeof l);
		write_all(fd, "12345", 5);
		struct pollfd p = { fd, POLLIN, 0 };
		do
			check(poll(&p, 1, -1) == 1 && ioctl(fd, FIONREAD, &got) == 0, "FIONREAD");
		while (got < 5);
		printf("FIONREAD %d\n", got);
		say("SIOCOUTQ", ioctl(fd, TIOCOUTQ, &got));
		printf("unacknowledged %d\n", got);
		char buf[10];
		n = sizeof a;
		say("recvfrom", recvfrom(fd, buf, 3, 0, (void *)&a, &n));
		printf("address %u\n", n);
		struct iovec v = { buf, 10 };
		struct msghdr m = { .msg_name = &a, .msg_namelen = sizeof a, .msg_iov = &v, .msg_iovlen = 1 };
		say("recvmsg", recvmsg(fd, &m, 0));
		printf("address %u, flags %x\n", m.msg_namelen, m.msg_flags);
		say("no more", recv(fd, buf, 1, MSG_DONTWAIT));
		say("connect", connect(fd, (void *)&there, sizeof there));
		say("listen", listen(fd, 1));
		say("accept", accept(fd, NULL, NULL));
	});
	join("knows");
	n = sizeof got;
	getsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &got, &n);
	printf("the parent sees %d\n", got);
	close(fd);
}

static void half(void)
{
	int fd = dial('C');
	CHILD({
		write_all(fd, "words", 5);
		check(shutdown(fd, SHUT_WR) == 0, "shutdown");
	});
	text("parent", fd, 3);
	text("parent", fd, 3);
	say("parent sends", send(fd, "x", 1, MSG_NOSIGNAL));
	join("half");
	close(fd);

	fd = dial('C');
	say("shutdown before the fork", shutdown(fd, SHUT_WR));
	CHILD({
		say("child sends", send(fd, "x", 1, MSG_NOSIGNAL));
		text("child", fd, 3);
	});
	join("half");
	close(fd);
}

static void leaves_unread(void)
{
	int fd = dial('S'), l;
	CHILD({
		struct pollfd p = { fd, POLLIN, 0 };
		check(poll(&p, 1, -1) == 1, "poll");
		close(fd);
	});
	close(fd);
	join("unread");
	text("the peer saw", l = dial('L'), 1);
	close(l);
	fd = dial('S');
	CHILD(text("read", fd, 6));
	close(fd);
	join("read");
	text("the peer saw", l = dial('L'), 1);
	close(l);
}

static void dies(void)
{
	int fd = dial('E');
	CHILD({
		echoes("a child that is killed", fd);
		kill(getpid(), SIGKILL);
	});
	join("dies");
	echoes("its parent", fd);
	close(fd);
}

static void executes(int bare)
{
	char *none[] = { NULL };
	extern char **environ;
	int fd = dial('P');
	CHILD({
		dup2(fd, 0);
		dup2(fd, 1);
		close(fd);
		execle("/bin/sh", "sh", "-c", "IFS= read -r line && echo \"$line\"", NULL, bare ? none : environ);
		_exit(1);
	});
	/* What the shell wrote is the peer's to judge; its answer is for whoever reads. */
	join("executes");
	text("answer", fd, 1);
	text("end", fd, 1);
	close(fd);

	char command[80];
	fd = dial('P');
	sprintf(command, "head -n 1 <&%d >&%d", fd, fd);
	if (bare)
		unsetenv("LD_PRELOAD");
	say("system", system(command));
	text("answer", fd, 1);
	close(fd);
}

/* A program that cannot be executed leaves everything as it was. */
static void cannot_execute(void)
{
	static char much[200 << 10];
	char *words[] = { "nothing", NULL }, *too_much[] = { "sh", much, NULL };
	int fd = dial('E'), sleeps = dial('E'), file = memfd_create("nothing", MFD_CLOEXEC);
	pthread_t t;
	check(pthread_create(&t, NULL, waits, (void *)(long)sleeps) == 0, "thread");
	usleep(50000);
	say("a directory", execv("/", words));
	echoes("after a directory", fd);
	memset(much, 'x', sizeof much - 1);
	say("too much", execv("/bin/sh", too_much));
	echoes("after too much", fd);
	check(write(file, "nothing", 7) == 7, "write");
	say("no program", fexecve(file, words, environ));
	CHILD(echoes("a child", fd));
	join("cannot execute");
	echoes("after no program", fd);
	echoes("one more", dial('E'));
	write_all(sleeps, "wake", 4);
	pthread_join(t, NULL);
	close(file);
	close(sleeps);
	close(fd);
}

static void bulk(void)
{
	static char in[BULK], want[BULK];
	int fd = dial('B');
	size_t got = 0, before;
	fill(want, BULK);
	/* Some of it read before the fork, some by the child, the rest by the parent. */
	for (ssize_t n; got < BULK / 10; got += n)
		check((n = read(fd, in + got, BULK / 10 - got)) > 0, "read");
	before = got;
	int out[2];
	check(pipe(out) == 0, "pipe");
	CHILD({
		for (ssize_t n; got < BULK / 2; got += n)
			check((n = read(fd, in + got, BULK / 2 - got)) > 0, "read");
		check(!memcmp(in + before, want + before, got - before), "the child's part");
	});
	join("bulk");
	got = BULK / 2;
	for (ssize_t n; got < BULK; got += n)
		check((n = read(fd, in + got, BULK - got)) > 0, "read");
	check(!memcmp(in, want, before) && !memcmp(in + BULK / 2, want + BULK / 2, BULK / 2), "the parent's parts");
	text("end", fd, 1);
	close(fd);
}

/* A file goes out through a socket that does not block, as web servers do. */
static void sends_file(void)
{
	int fd = dial('C'), file = open("/proc/self/exe", O_RDONLY);
	off_t end = lseek(file, 0, SEEK_END);
	CHILD({
		check(fcntl(fd, F_SETFL, O_NONBLOCK) == 0, "F_SETFL");
		for (int round = 0; round < 40; round++)
			for (off_t at = 0; at < end;) {
				struct pollfd p = { fd, POLLOUT, 0 };
				check(poll(&p, 1, -1) == 1, "room");
				check(sendfile(fd, file, &at, end - at) > 0 || errno == EAGAIN, "sendfile");
			}
		check(shutdown(fd, SHUT_WR) == 0, "shutdown");
	});
	struct pollfd p = { fd, POLLIN, 0 };
	check(poll(&p, 1, -1) == 1, "answer");
	text("all of it", fd, 3);
	join("sends a file");
	close(fd);
	close(file);
}

static void passes(void)
{
	int pair[2], fd;
	char c = 'c';
	union { char space[CMSG_SPACE(sizeof(int))]; struct cmsghdr head; } u = { 0 };
	struct iovec v = { &c, 1 };
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1, .msg_control = &u, .msg_controllen = sizeof u };
	check(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0, "socketpair");
	CHILD({
		check(recvmsg(pair[1], &m, 0) == 1, "recvmsg");
		memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof fd);
		struct sockaddr_in a;
		socklen_t n = sizeof a;
		say("getpeername", getpeername(fd, (void *)&a, &n));
		printf("family %d, port %d\n", a.sin_family, ntohs(a.sin_port));
		echoes("who was given it", fd);
	});
	fd = dial('E');
	u.head = (struct cmsghdr){ CMSG_LEN(sizeof fd), SOL_SOCKET, SCM_RIGHTS };
	memcpy(CMSG_DATA(&u.head), &fd, sizeof fd);
	check(sendmsg(pair[0], &m, 0) == 1, "sendmsg");
	close(fd);
	join("passes");
	close(pair[0]);
	close(pair[1]);
}

static void harmless(void)
{
	int fd = dial('E');
	CHILD(close(fd));
	join("harmless");
	say("system", system("exit 3"));
	echoes("as ever", fd);
	FILE *date = popen("echo a command", "r");
	char line[40] = "";
	check(date && fgets(line, sizeof line, date), "popen");
	printf("%s", line);
	pclose(date);
	echoes("as before", fd);
	int s = shutdown(fd, SHUT_RDWR);
	say("shutdown", s);
	text("end", fd, 1);
	close(fd);
}

static void guest(void)
{
	hang_guard("guest");
	setlinebuf(stdout);
	uses();
	serves();
	by_every_number();
	takes_turns();
	asleep();
	reset(1);
	reset(0);
	knows();
	half();
	leaves_unread();
	dies();
	bulk();
	sends_file();
	passes();
	harmless();
	executes(0);
	cannot_execute();
	executes(1); /* takes the library out of the environment */
	puts("done");
}

/* ---- killed processes */

static int descriptors(void)
{
	int count = 0;
	for (int fd = 0; fd < 20000; fd++)
		count += fcntl(fd, F_GETFD) >= 0;
	return count;
}

/* Sends and checks what comes back, a piece at a time. */
static void works(int fd, int pieces)
{
	char out[5000], in[5000];
	for (int i = 0; i < pieces; i++) {
		fill(out, sizeof out);
		out[0] = i;
		write_all(fd, out, sizeof out);
		read_all(fd, in, sizeof in);
		check(!memcmp(in, out, sizeof out), "bytes");
	}
}

static void kills(void)
{
	enum { CHILDREN = 8, ROUNDS = 6 };
	unsigned seed = 7;
	int shared = dial('E'), before = 0;
	hang_guard("kills");
	for (int round = 0; round < ROUNDS; round++) {
		pid_t pids[CHILDREN];
		for (int i = 0; i < CHILDREN; i++) {
			int fd = dial('E');
			CHILD(works(fd, i % 2 ? 1000000 : 40));
			pids[i] = last_child;
			close(fd);
		}
		/* Odd ones are killed wherever they are; even ones have to come to their end. */
		for (int i = 1; i < CHILDREN; i += 2) {
			usleep(rand_r(&seed) % 3000);
			kill(pids[i], SIGKILL);
		}
		for (int i = 0; i < CHILDREN; i++) {
			int status;
			check(waitpid(pids[i], &status, 0) == pids[i], "waitpid");
			check(i % 2 ? WIFSIGNALED(status) : status == 0, "a child's end");
		}
		works(shared, 3);
		CHILD(works(shared, 3));
		check(waitpid(last_child, NULL, 0) == last_child, "waitpid");
		/* What the killed have left goes as its end is noticed. */
		while (round > 0 && descriptors() > before)
			usleep(10000);
		if (round == 0)
			before = descriptors();
	}
	puts("done");
}

static void orphan(void)
{
	int out[2];
	check(pipe(out) == 0, "pipe");
	hang_guard("orphan");
	CHILD({
		int fd = dial('E');
		echoes("its owner", fd);
		CHILD({
			echoes("another process", fd);
			kill(getppid(), SIGKILL);
			text("receive", fd, 10);
			text("receive again", fd, 10);
			say("send", send(fd, "x", 1, MSG_NOSIGNAL));
			close(out[0]);
			check(write(out[1], "x", 1) == 1, "write");
		});
		pause();
	});
	char c;
	close(out[1]);
	check(read(out[0], &c, 1) == 1, "read");
	join("the owner");
	int fd = dial('E'); /* the address is free again */
	echoes("whoever comes next", fd);
}

/* ---- a daemon, and its client */

static void daemonise(void)
{
	struct sockaddr_in a = at(ip, PORT);
	int s = socket(AF_INET, SOCK_STREAM, 0), one = 1;
	setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	check(bind(s, (void *)&a, sizeof a) == 0 && listen(s, 64) == 0, "listen");
	pid_t child = fork();
	check(child >= 0, "fork");
	if (child > 0) {
		printf("%d\n", child);
		exit(0);
	}
	setsid();
	hang_guard("daemon");
	int null = open("/dev/null", O_RDWR);
	for (int i = 0; i < 3; i++)
		dup2(null, i);
	for (;;) {
		char buf[4096];
		int fd = accept(s, NULL, NULL);
		check(fd >= 0, "accept");
		for (ssize_t n; (n = read(fd, buf, sizeof buf)) > 0;) {
			if (buf[0] == 'q')
				exit(0);
			write_all(fd, buf, n);
		}
		close(fd);
	}
}

static void client(void)
{
	struct sockaddr_in a = at(ip, PORT);
	hang_guard("client");
	for (int i = 0; i < 3; i++) {
		int fd = socket(AF_INET, SOCK_STREAM, 0);
		check(connect(fd, (void *)&a, sizeof a) == 0, "connect");
		echoes("hello", fd);
		if (i == 2) {
			write_all(fd, "q", 1);
			text("it quits", fd, 1);
		}
		close(fd);
	}
	/* The last who held the listener is gone: a reset answers, or in the end nothing at all. */
	for (;;) {
		int fd = socket(AF_INET, SOCK_STREAM, 0), tries = 1;
		setsockopt(fd, IPPROTO_TCP, TCP_SYNCNT, &tries, sizeof tries);
		if (connect(fd, (void *)&a, sizeof a) < 0)
			return;
		close(fd);
		usleep(100000);
	}
}

int main(int argc, char **argv)
{
	check(argc == 3, "usage: stack_share peer|guest|kills|orphan|daemon|client ADDRESS");
	ip = argv[2];
	signal(SIGPIPE, SIG_IGN);
	if (!strcmp(argv[1], "peer"))
		peer();
	else if (!strcmp(argv[1], "guest"))
		guest();
	else if (!strcmp(argv[1], "kills"))
		kills();
	else if (!strcmp(argv[1], "orphan"))
		orphan();
	else if (!strcmp(argv[1], "daemon"))
		daemonise();
	else
		client();
	return 0;
}
