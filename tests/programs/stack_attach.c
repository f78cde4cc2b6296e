/* TCP sockets attached to a mux: what each call returned, to compare sockets of the stack with the
 * kernel's.
 *
 *   stack_attach peer ADDRESS     says "listening", serves plain TCP, ends when its standard input does
 *   stack_attach guest ADDRESS    prints what it sees
 *   stack_attach left ADDRESS     the same of a child whose parent ends
 *   stack_attach ends ADDRESS     what the peer sees of programs that end and have closed nothing but the
 *                                 descriptor of the connection */
#include "guest.h"
#include "guard.h"

enum { PORT = 7200, ECHO = 0, RESET, HALF, WITNESS, DEAF, MESSAGES = 300, LONGEST = 60000 };

static void check(int good, const char *what)
{
	if (!good) {
		fprintf(stderr, "stack_attach: %s: %s\n", what, strerror(errno));
		exit(1);
	}
}

static struct sockaddr_in at(const char *ip, int port)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port) };
	check(inet_pton(AF_INET, ip, &a.sin_addr) == 1, "address");
	return a;
}

static void *echo(void *arg)
{
	int fd = (int)(intptr_t)arg;
	char *buf = malloc(1 << 16);
	for (ssize_t n; (n = recv(fd, buf, 1 << 16, 0)) > 0;)
		for (ssize_t at = 0, done; at < n; at += done)
			if ((done = send(fd, buf + at, (size_t)(n - at), MSG_NOSIGNAL)) <= 0)
				break;
	free(buf);
	close(fd);
	return NULL;
}

/* A whole message, and bytes that no parser takes for one. */
static void half(int fd)
{
	char bytes[32];
	size_t n = p4(bytes, 5, 'm');
	memcpy(bytes + n, "\x7f\xff\xff\xffrestof", 10);
	put(fd, bytes, n + 10);
}

/* How the connection before has ended, for who asks. */
static void witness(int fd)
{
	static char end = '-';
	char c = 0;
	ssize_t n;
	while ((n = recv(fd, &c, 1, 0)) > 0 && c != '?')
		;
	if (n > 0)
		put(fd, &end, 1);
	else
		end = n == 0 ? 'F' : errno == ECONNRESET ? 'R' : 'E';
	close(fd);
}

static void *serve(void *arg)
{
	int s = (int)(intptr_t)arg;
	struct sockaddr_in name;
	socklen_t len = sizeof name;
	check(getsockname(s, (void *)&name, &len) == 0, "getsockname");
	for (int fd; (fd = accept(s, NULL, NULL)) >= 0;) {
		char c;
		switch (ntohs(name.sin_port) - PORT) {
		case ECHO:
			spawn(echo, (void *)(intptr_t)fd);
			break;
		case RESET:
			check(recv(fd, &c, 1, 0) == 1, "recv");
			reset(fd);
			break;
		case WITNESS:
			witness(fd);
			break;
		case DEAF:
			break; /* reads nothing, and stays open */
		default:
			half(fd);
			recv(fd, &c, 1, 0);
			close(fd);
		}
	}
	return NULL;
}

static void peer(const char *own)
{
	for (int kind = ECHO; kind <= DEAF; kind++) {
		int s = socket(AF_INET, SOCK_STREAM, 0);
		struct sockaddr_in a = at(own, PORT + kind);
		check(bind(s, (void *)&a, sizeof a) == 0 && listen(s, 8) == 0, "listen");
		spawn(serve, (void *)(intptr_t)s);
	}
	puts("listening");
	fflush(stdout);
	char c;
	while (read(0, &c, 1) > 0)
		;
}

static const char *remote;

static int dial(int kind)
{
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	struct sockaddr_in a = at(remote, PORT + kind);
	check(connect(fd, (void *)&a, sizeof a) == 0, "connect");
	return fd;
}

static size_t length_of(int i)
{
	return (size_t)(i * 7919) % (i % 5 ? 900 : LONGEST);
}

static size_t compose(char *to, int i)
{
	size_t n = length_of(i);
	uint32_t word = htonl((uint32_t)n);
	memcpy(to, &word, 4);
	fill(to + 4, n, (unsigned)i);
	return n + 4;
}

static void *write_them(void *arg)
{
	int k = (int)(intptr_t)arg;
	char *buf = malloc(LONGEST + 4);
	for (int i = 0; i < MESSAGES; i++) {
		size_t n = compose(buf, i);
		check(send(k, buf, n, 0) == (ssize_t)n, "send");
	}
	free(buf);
	return NULL;
}

/* Reads them back, in order, by blocking calls or by epoll. */
static void read_them(int k, int by_epoll)
{
	char *buf = malloc(LONGEST + 4);
	struct epoll_event e = { .events = EPOLLIN };
	int ep = epoll_create1(0), good = 0;
	check(!by_epoll || epoll_ctl(ep, EPOLL_CTL_ADD, k, &e) == 0, "epoll_ctl");
	for (int i = 0; i < MESSAGES; i++) {
		ssize_t n;
		while ((n = recv(k, buf, LONGEST + 4, by_epoll ? DW : 0)) < 0)
			check(by_epoll && errno == EAGAIN && epoll_wait(ep, &e, 1, -1) == 1, "wait");
		good += (size_t)n == length_of(i) + 4 && filled(buf + 4, (size_t)n - 4, (unsigned)i);
	}
	say("good %d", good);
	close(ep);
	free(buf);
}

static void pipelined(int tcp, int by_epoll, int closes)
{
	int k = kcm(SOCK_DGRAM);
	report("attach", attach(k, tcp, prog_p4()));
	report("again", attach(k, tcp, prog_p4()));
	if (closes)
		close(tcp);
	pthread_t writer = spawn(write_them, (void *)(intptr_t)k);
	read_them(k, by_epoll);
	pthread_join(writer, NULL);
	close(k);
	if (!closes)
		close(tcp);
}

static void blocking(int tcp)
{
	pipelined(tcp, 0, 0);
}

static void closed_early(int tcp)
{
	pipelined(tcp, 1, 1);
}

static void was_reset(int tcp)
{
	int k = kcm(SOCK_DGRAM);
	report("attach", attach(k, tcp, prog_p4()));
	report("send", send(k, "\0\0\0\1x", 5, 0));
	/* POLLHUP comes with the reset, or a moment after the error that the mux posts. */
	report("ready", ready(tcp, 0, -1) & POLLERR);
	so_error("error", tcp);
	so_error("again", tcp);
	report("unattach", unattach(k, tcp));
	close(tcp);
	close(k);
}

static void unread(int tcp)
{
	char buf[64];
	int k = kcm(SOCK_DGRAM), n = 0;
	report("attach", attach(k, tcp, prog_p4()));
	report("message", recv(k, buf, sizeof buf, 0));
	report("none", recv(k, buf, sizeof buf, DW));
	report("ready", ready(tcp, 0, -1));
	so_error("error", tcp);
	report("unattach", unattach(k, tcp));
	report("again", unattach(k, tcp));
	report("FIONREAD", ioctl(tcp, FIONREAD, &n));
	say("queued %d", n);
	report("recv", recv(tcp, buf, 4, DW));
	report("recv", recv(tcp, buf, sizeof buf, DW));
	report("attach", attach(k, tcp, prog_p4()));
	report("send", send(k, "\0\0\0\1x", 5, 0)); /* the peer closes */
	report("ready", ready(tcp, 0, -1) & POLLERR);
	so_error("error", tcp);
	close(tcp);
	close(k);
}

/* One connection of the kernel's and one that may be the stack's, under one mux. */
static void mixed(void)
{
	int k = kcm(SOCK_DGRAM), tcp = dial(ECHO), good = 0;
	struct pair p = attached(k, prog_p4());
	pthread_t thread = spawn(echo, (void *)(intptr_t)p.p);
	report("attach", attach(k, tcp, prog_p4()));
	for (int i = 0; i < 200; i++) {
		char out[64], in[64];
		size_t n = p4(out, (size_t)i % 50, 'a' + i % 26);
		check(send(k, out, n, 0) == (ssize_t)n, "send");
		good += recv(k, in, sizeof in, 0) == (ssize_t)n && memcmp(in, out, n) == 0;
	}
	say("good %d", good);
	close(tcp);
	shutdown(p.a, SHUT_WR);
	close(p.a);
	close(k);
	pthread_join(thread, NULL);
}

/* --- connections that processes share ------------------------------------------------------------ */

/* A process that this one waits for. */
static void join(pid_t pid)
{
	int status = 0;
	waitpid(pid, &status, 0);
	say("child ended with %d", status);
}

static pid_t child(void)
{
	fflush(NULL);
	pid_t pid = fork();
	if (pid == 0)
		hang_guard("a child");
	return pid;
}

static void by_the_owner(void (*body)(int), int kind)
{
	body(dial(kind));
}

static void by_a_child(void (*body)(int), int kind)
{
	int tcp = dial(kind);
	pid_t pid = child();
	if (pid == 0) {
		body(tcp);
		exit(0);
	}
	join(pid);
	close(tcp);
}

/* A child has looked at the connection before. */
static void by_an_owner_that_shares(void (*body)(int), int kind)
{
	int tcp = dial(kind);
	pid_t pid = child();
	if (pid == 0) {
		report("writable", ready(tcp, POLLOUT, -1));
		exit(0);
	}
	join(pid);
	body(tcp);
}

/* A process that did not inherit it gets it in a message. */
static void by_a_receiver(void (*body)(int), int kind)
{
	int ends[2];
	check(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0, "socketpair");
	pid_t pid = child();
	char byte = 'f', space[CMSG_SPACE(sizeof(int))] = { 0 };
	struct iovec part = { &byte, 1 };
	struct msghdr m = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space };
	if (pid == 0) {
		int tcp;
		check(recvmsg(ends[0], &m, 0) == 1 && CMSG_FIRSTHDR(&m), "a descriptor");
		memcpy(&tcp, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof tcp);
		body(tcp);
		exit(0);
	}
	int tcp = dial(kind);
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);
	*c = (struct cmsghdr){ .cmsg_len = CMSG_LEN(sizeof tcp), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS };
	memcpy(CMSG_DATA(c), &tcp, sizeof tcp);
	check(sendmsg(ends[1], &m, 0) == 1, "sendmsg");
	close(tcp);
	join(pid);
	close(ends[0]), close(ends[1]);
}

static void round_trips(int k, int count)
{
	int good = 0;
	for (int i = 0; i < count; i++) {
		char out[64], in[64];
		size_t n = p4(out, (size_t)i % 50, 'a' + i % 26);
		check(send(k, out, n, 0) == (ssize_t)n, "send");
		good += recv(k, in, sizeof in, 0) == (ssize_t)n && memcmp(in, out, n) == 0;
	}
	say("good %d", good);
}

/* Plain TCP again, in whatever process. */
static void plain(int tcp)
{
	char in[5] = "";
	report("send", send(tcp, "plain", 5, 0));
	report("recv", recv(tcp, in, 5, MSG_WAITALL));
	say("%.5s", in);
}

/* The mux is the parent's; a child attaches to it, another one unattaches. */
static void to_the_mux_of_another(void)
{
	int k = kcm(SOCK_DGRAM), tcp = dial(ECHO), program = prog_p4();
	pid_t pid = child();
	if (pid == 0) {
		report("attach", attach(k, tcp, program));
		report("again", attach(k, tcp, program));
		exit(0);
	}
	join(pid);
	report("in the parent", attach(k, tcp, program));
	round_trips(k, 100);
	pid = child();
	if (pid == 0) {
		report("unattach", unattach(k, tcp));
		report("again", unattach(k, tcp));
		plain(tcp);
		exit(0);
	}
	join(pid);
	report("attach", attach(k, tcp, program));
	round_trips(k, 100);
	close(k), close(tcp);
}

/* What a child can do with its copy of a connection that its parent has attached. */
static void attached_by_the_parent(void)
{
	int k = kcm(SOCK_DGRAM), tcp = dial(ECHO), program = prog_p4();
	char buf[16];
	report("attach", attach(k, tcp, program));
	round_trips(k, 10);
	pid_t pid = child();
	if (pid == 0) {
		report("ready", ready(tcp, POLLIN | POLLOUT | POLLRDHUP, 0));
		size_t n = p4(buf, 6, 'c');
		report("write", send(tcp, buf, n, 0));
		exit(0);
	}
	join(pid);
	report("message", recv(k, buf, sizeof buf, 0));
	round_trips(k, 100);
	pid = child();
	if (pid == 0) {
		report("unattach", unattach(k, tcp));
		plain(tcp);
		exit(0);
	}
	join(pid);
	report("unattach", unattach(k, tcp));
	plain(tcp);
	report("attach", attach(k, tcp, program));
	round_trips(k, 100);
	shutdown(tcp, SHUT_WR); /* the peer closes */
	report("ready", ready(tcp, 0, -1) & POLLERR);
	so_error("error", tcp);
	close(k), close(tcp);
}

/* The process that has the mux and the connection ends; its child goes on. */
static void left_by_the_parent(void)
{
	int ended[2], k = kcm(SOCK_DGRAM), tcp = dial(ECHO);
	char c;
	check(pipe(ended) == 0, "pipe");
	report("attach", attach(k, tcp, prog_p4()));
	if (child() != 0)
		return;
	close(ended[1]);
	check(read(ended[0], &c, 1) == 0, "the parent's end");
	round_trips(k, 100);
	report("unattach", unattach(k, tcp));
	plain(tcp);
	puts("done");
}

/* Bytes that the parser wants no part of, in a set that watches the connection. */
static void watched(int tcp)
{
	int k = kcm(SOCK_DGRAM), set = epoll_create1(0);
	struct epoll_event e = { .events = EPOLLRDHUP };
	char buf[32];
	report("watch", epoll_ctl(set, EPOLL_CTL_ADD, tcp, &e));
	report("attach", attach(k, tcp, prog_p4()));
	report("message", recv(k, buf, sizeof buf, 0));
	report("events", epoll_wait(set, &e, 1, -1));
	say("%x", e.events & EPOLLERR);
	report("unattach", unattach(k, tcp));
	e.events = EPOLLIN;
	report("change", epoll_ctl(set, EPOLL_CTL_MOD, tcp, &e));
	so_error("error", tcp);
	report("events", epoll_wait(set, &e, 1, -1));
	say("%x", e.events);
	report("recv", recv(tcp, buf, sizeof buf, DW));
	report("events", epoll_wait(set, &e, 1, 0));
	report("forget", epoll_ctl(set, EPOLL_CTL_DEL, tcp, &e));
	close(set), close(k), close(tcp);
}

/* SO_LINGER of a connection that closes with its mux, whose descriptor was closed before. */
static void lingers(int on, int seconds)
{
	struct linger linger = { on, seconds };
	int k = kcm(SOCK_DGRAM), tcp = dial(WITNESS);
	check(setsockopt(tcp, SOL_SOCKET, SO_LINGER, &linger, sizeof linger) == 0, "SO_LINGER");
	report("attach", attach(k, tcp, prog_p4()));
	report("send", send(k, "\0\0\0\1x", 5, 0));
	close(tcp), close(k);
	int ask = dial(WITNESS);
	char end = 0;
	check(send(ask, "?", 1, 0) == 1 && recv(ask, &end, 1, 0) == 1, "an answer");
	say("linger %d %d: %c", on, seconds, end);
	close(ask);
}

/* The peer reads nothing: the close of the mux waits for the time that was set. */
static void lingers_in_vain(void)
{
	static char much[1 << 20];
	struct linger linger = { 1, 1 };
	int k = kcm(SOCK_DGRAM), tcp = dial(DEAF);
	check(setsockopt(tcp, SOL_SOCKET, SO_LINGER, &linger, sizeof linger) == 0, "SO_LINGER");
	report("attach", attach(k, tcp, prog_p4()));
	p4(much, sizeof much - 4, 'l');
	set_int(k, SOL_SOCKET, SO_SNDBUF, sizeof much);
	for (int i = 0; i < 16 && send(k, much, sizeof much, DW) > 0; i++)
		;
	nap(20);
	close(tcp);
	long before = now_ms();
	close(k);
	say("waits: %d", now_ms() - before >= 900);
}

static void *receives(void *k)
{
	char byte;
	recv((int)(intptr_t)k, &byte, 1, 0);
	pause();
	return NULL;
}

/* A program of its own ends, and leaves all but the number of the connection to its end. */
static void ends(int has_thread)
{
	pid_t pid = child();
	if (pid == 0) {
		int k = kcm(SOCK_DGRAM), tcp = dial(WITNESS);
		report("attach", attach(k, tcp, prog_p4()));
		report("send", send(k, "\0\0\0\1x", 5, 0));
		close(tcp);
		if (has_thread)
			spawn(receives, (void *)(intptr_t)k);
		nap(20);
		exit(0);
	}
	join(pid);
	pid = child();
	if (pid == 0) {
		int ask = dial(WITNESS);
		char end = 0;
		check(send(ask, "?", 1, 0) == 1 && recv(ask, &end, 1, 0) == 1, "an answer");
		say("ends: %c", end);
		exit(0);
	}
	join(pid);
}

/* Every kind of connection, however this process came by it. */
static void however_come_by(void)
{
	static const struct {
		const char *name;
		void (*run)(void (*)(int), int);
	} ways[] = { { "its owner", by_the_owner },
		     { "a child", by_a_child },
		     { "an owner that shares", by_an_owner_that_shares },
		     { "a receiver", by_a_receiver } };
	for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
		printf("attached by %s\n", ways[i].name);
		puts("blocking"), ways[i].run(blocking, ECHO);
		puts("epoll, descriptor closed"), ways[i].run(closed_early, ECHO);
		puts("reset"), ways[i].run(was_reset, RESET);
		puts("unread"), ways[i].run(unread, HALF);
		puts("watched"), ways[i].run(watched, HALF);
	}
}

int main(int argc, char **argv)
{
	check(argc == 3, "usage");
	if (!strcmp(argv[1], "peer")) {
		peer(argv[2]);
		return 0;
	}
	hang_guard(argv[1]); /* a call that never returns ends the trace here */
	remote = argv[2];
	if (!strcmp(argv[1], "left")) {
		left_by_the_parent();
		return 0;
	}
	if (!strcmp(argv[1], "ends")) {
		ends(0);
		ends(1);
		puts("done");
		return 0;
	}
	however_come_by();
	puts("mixed");
	mixed();
	puts("lingers");
	lingers(0, 0);
	lingers(1, 0);
	lingers(1, 5);
	lingers_in_vain();
	puts("to the mux of another");
	to_the_mux_of_another();
	puts("attached by the parent");
	attached_by_the_parent();
	int k = kcm(SOCK_DGRAM), s = socket(AF_INET, SOCK_STREAM, 0);
	report("unconnected", attach(k, s, prog_p4()));
	puts("done");
	return 0;
}
