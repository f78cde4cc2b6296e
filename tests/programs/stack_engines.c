/* Servers and clients of many connections and threads, for a stack of several engines. Every byte that comes
 * back is compared.
 *
 *   stack_engines reuse|one|fork ADDRESS WORKERS   echoes over TCP; ends when its standard input does
 *       reuse: a thread each with a listener (SO_REUSEPORT) and an epoll set of its own
 *       one:   threads that accept on one listener, and serve what they have accepted
 *       fork:  processes that do so on a listener of their parent's
 *   stack_engines udp ADDRESS WORKERS              echoes datagrams on as many ports, by poll
 *   stack_engines group ADDRESS WORKERS            threads that echo datagrams, each by a socket of one port
 *   stack_engines kcm ADDRESS CONNECTIONS          attaches so many to one mux, and answers each message
 *   stack_engines hoard ADDRESS 0                  listens, and accepts nothing
 *   stack_engines crowd ADDRESS COUNT              opens connections, and leaves them so
 *   stack_engines dial ADDRESS WORKERS COUNT BYTES each thread dials so often, all open at once
 *   stack_engines fixed ADDRESS WORKERS COUNT BYTES as dial, from ports it has bound
 *   stack_engines ping ADDRESS COUNT               one connection, a byte there and back each time
 *   stack_engines knock ADDRESS FLOWS COUNT        datagrams of a byte, there and back, by so many sockets
 *   stack_engines tell ADDRESS WORKERS COUNT       datagrams to each port, there and back
 *   stack_engines ask ADDRESS CONNECTIONS COUNT    messages over each, there and back */
#include "guest.h"
#include "guard.h"
#include <sys/prctl.h>

enum { PORT = 7300, PIECE = 20000 };

static const char *address;
static int workers, count, length;

static void check(int good, const char *what)
{
	if (!good) {
		fprintf(stderr, "stack_engines: %s: %s\n", what, strerror(errno));
		exit(1);
	}
}

static struct sockaddr_in at(int port)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port) };
	check(inet_pton(AF_INET, address, &a.sin_addr) == 1, "address");
	return a;
}

static int listener(int shares)
{
	int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;
	struct sockaddr_in a = at(PORT);
	check(!shares || setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on) == 0, "SO_REUSEPORT");
	check(bind(fd, (void *)&a, sizeof a) == 0, "bind");
	check(listen(fd, 512) == 0, "listen");
	return fd;
}

static void send_all(int fd, const char *data, size_t n)
{
	for (ssize_t done; n > 0; data += done, n -= (size_t)done)
		check((done = send(fd, data, n, MSG_NOSIGNAL)) > 0, "send");
}

static void listening(void)
{
	puts("listening");
	fflush(stdout);
}

static void until_told(void)
{
	char c;
	while (read(0, &c, 1) > 0)
		;
}

/* --- servers */

/* What an epoll server keeps of a connection: bytes that the peer has not taken. */
struct conn {
	int fd;
	size_t from, to;
	char data[1 << 16];
};

static void serve_once(int ep, struct conn *c)
{
	for (;;) {
		while (c->from < c->to) {
			ssize_t n = send(c->fd, c->data + c->from, c->to - c->from, MSG_NOSIGNAL | DW);
			if (n < 0 && errno == EAGAIN)
				return;
			check(n > 0, "send");
			c->from += (size_t)n;
		}
		ssize_t n = recv(c->fd, c->data, sizeof c->data, DW);
		if (n < 0 && errno == EAGAIN)
			return;
		check(n >= 0, "recv");
		if (n == 0) {
			check(epoll_ctl(ep, EPOLL_CTL_DEL, c->fd, NULL) == 0, "epoll_ctl");
			close(c->fd);
			free(c);
			return;
		}
		c->from = 0, c->to = (size_t)n;
	}
}

static void *reuse(void *arg)
{
	int s = (int)(intptr_t)arg, ep = epoll_create1(0);
	struct epoll_event e = { .events = EPOLLIN };
	check(epoll_ctl(ep, EPOLL_CTL_ADD, s, &e) == 0, "epoll_ctl");
	for (;;) {
		struct epoll_event seen[64];
		int n = epoll_wait(ep, seen, 64, -1);
		check(n > 0 || errno == EINTR, "epoll_wait"); /* stopped and continued */
		for (int i = 0; i < n; i++) {
			if (seen[i].data.ptr) {
				serve_once(ep, seen[i].data.ptr);
				continue;
			}
			struct conn *c = calloc(1, sizeof *c);
			check((c->fd = accept4(s, NULL, NULL, SOCK_NONBLOCK)) >= 0, "accept");
			e = (struct epoll_event){ EPOLLIN | EPOLLOUT | EPOLLET, { .ptr = c } };
			check(epoll_ctl(ep, EPOLL_CTL_ADD, c->fd, &e) == 0, "epoll_ctl");
		}
	}
	return NULL;
}

static void *echo(void *arg)
{
	int fd = (int)(intptr_t)arg;
	char *data = malloc(PIECE);
	for (ssize_t n; (n = recv(fd, data, PIECE, 0)) != 0;) {
		check(n > 0, "recv");
		send_all(fd, data, (size_t)n);
	}
	free(data);
	close(fd);
	return NULL;
}

static void *one(void *arg)
{
	for (;;) {
		int fd = accept((int)(intptr_t)arg, NULL, NULL);
		check(fd >= 0, "accept");
		spawn(echo, (void *)(intptr_t)fd);
	}
	return NULL;
}

static void family(int s)
{
	for (int i = 0; i < workers; i++)
		if (fork() == 0) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			one((void *)(intptr_t)s);
		}
}

static void udp(void)
{
	struct pollfd fds[64];
	for (int i = 0; i < workers; i++) {
		struct sockaddr_in a = at(PORT + i);
		fds[i] = (struct pollfd){ socket(AF_INET, SOCK_DGRAM, 0), POLLIN, 0 };
		check(bind(fds[i].fd, (void *)&a, sizeof a) == 0, "bind");
	}
	listening();
	fds[workers] = (struct pollfd){ 0, POLLIN, 0 };
	while (poll(fds, (nfds_t)workers + 1, -1) > 0 && !fds[workers].revents)
		for (int i = 0; i < workers; i++) {
			char data[2000];
			struct sockaddr_in from;
			socklen_t len = sizeof from;
			if (!fds[i].revents)
				continue;
			ssize_t n = recvfrom(fds[i].fd, data, sizeof data, 0, (void *)&from, &len);
			check(n > 0 && sendto(fds[i].fd, data, (size_t)n, 0, (void *)&from, len) == n, "echo");
		}
}

static void *grouped(void *arg)
{
	int s = (int)(intptr_t)arg;
	for (;;) {
		char data[100];
		struct sockaddr_in from;
		socklen_t len = sizeof from;
		ssize_t n = recvfrom(s, data, sizeof data, 0, (void *)&from, &len);
		check(n > 0 && sendto(s, data, (size_t)n, 0, (void *)&from, len) == n, "echo");
	}
	return NULL;
}

static void group(void)
{
	for (int i = 0, on = 1; i < workers; i++) {
		struct sockaddr_in a = at(PORT);
		int s = socket(AF_INET, SOCK_DGRAM, 0);
		check(setsockopt(s, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on) == 0, "SO_REUSEPORT");
		check(bind(s, (void *)&a, sizeof a) == 0, "bind");
		spawn(grouped, (void *)(intptr_t)s);
	}
}

static void *answer(void *arg)
{
	int k = (int)(intptr_t)arg;
	char *data = malloc(PIECE);
	for (ssize_t n; (n = recv(k, data, PIECE, 0)) > 0;)
		check(send(k, data, (size_t)n, 0) == n, "answer");
	return NULL;
}

static void serve_kcm(void)
{
	int s = listener(0), k = kcm(SOCK_DGRAM), prog = prog_p4();
	listening();
	for (int i = 0; i < workers; i++) {
		int fd = accept(s, NULL, NULL);
		check(fd >= 0 && attach(k, fd, prog) == 0, "attach");
		close(fd);
	}
	spawn(answer, (void *)(intptr_t)k);
	until_told();
}

/* --- clients */

static int dial(int port)
{
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	struct sockaddr_in a = at(PORT);
	if (port) {
		struct sockaddr_in own = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port) };
		inet_pton(AF_INET, getenv("OWN"), &own.sin_addr);
		check(bind(fd, (void *)&own, sizeof own) == 0, "bind");
	}
	check(connect(fd, (void *)&a, sizeof a) == 0, "connect");
	return fd;
}

/* MSG_WAITALL would end early where the process is stopped and goes on. */
static void take_all(int fd, char *data, size_t size)
{
	for (ssize_t n; size > 0; data += n, size -= (size_t)n)
		check((n = recv(fd, data, size, 0)) > 0, "recv");
}

static int base; /* of ports, 0 for none */
static int done;

static void *client(void *arg)
{
	int nth = (int)(intptr_t)arg;
	int *fds = calloc((size_t)count, sizeof *fds);
	char *out = malloc((size_t)length), *in = malloc((size_t)length);
	for (int i = 0; i < count; i++)
		fds[i] = dial(base ? base + nth * count + i : 0);
	/* A piece on each, then it back on each: all of them have something under way. */
	for (int sent = 0; sent < length; sent += PIECE) {
		int n = length - sent < PIECE ? length - sent : PIECE;
		for (int i = 0; i < count; i++) {
			fill(out, (size_t)n, (unsigned)(nth * 1000 + i + sent));
			send_all(fds[i], out, (size_t)n);
		}
		for (int i = 0; i < count; i++) {
			take_all(fds[i], in, (size_t)n);
			check(filled(in, (size_t)n, (unsigned)(nth * 1000 + i + sent)), "the bytes");
		}
	}
	for (int i = 0; i < count; i++) {
		check(shutdown(fds[i], SHUT_WR) == 0, "shutdown");
		check(recv(fds[i], in, 1, 0) == 0, "the end");
		close(fds[i]);
		__atomic_add_fetch(&done, 1, __ATOMIC_RELAXED);
	}
	return NULL;
}

static void clients(void)
{
	pthread_t threads[64];
	for (int i = 0; i < workers; i++)
		threads[i] = spawn(client, (void *)(intptr_t)i);
	for (int i = 0; i < workers; i++)
		pthread_join(threads[i], NULL);
	printf("%d good\n", done);
}

static void ping(void)
{
	int fd = dial(0), on = 1;
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
	for (int i = 0; i < workers; i++) {
		char c = (char)i;
		send_all(fd, &c, 1);
		check(recv(fd, &c, 1, 0) == 1 && c == (char)i, "ping");
	}
	printf("%d good\n", workers);
}

static void knock(void)
{
	int good = 0;
	struct sockaddr_in a = at(PORT);
	for (int nth = 0; nth < workers; nth++) {
		int fd = socket(AF_INET, SOCK_DGRAM, 0);
		check(connect(fd, (void *)&a, sizeof a) == 0, "connect");
		for (int i = 0; i < count; i++) {
			char c = (char)i;
			check(send(fd, &c, 1, 0) == 1, "send");
			check(recv(fd, &c, 1, 0) == 1 && c == (char)i, "knock");
			good++;
		}
		close(fd);
	}
	printf("%d good\n", good);
}

static void tell(void)
{
	int good = 0;
	for (int i = 0; i < workers; i++) {
		int fd = socket(AF_INET, SOCK_DGRAM, 0);
		struct sockaddr_in a = at(PORT + i);
		check(connect(fd, (void *)&a, sizeof a) == 0, "connect");
		for (int n = 1; n <= count; n++) {
			char out[1200], in[1300];
			fill(out, sizeof out, (unsigned)(i * 1000 + n));
			check(send(fd, out, sizeof out, 0) == sizeof out, "send");
			check(recv(fd, in, sizeof in, 0) == sizeof out, "recv");
			good += memcmp(in, out, sizeof out) == 0;
		}
		close(fd);
	}
	printf("%d good\n", good);
}

/* A message each, then the answers: the mux sends by whichever connection is free. */
static void ask(void)
{
	int fds[64], good = 0;
	char out[2000], in[2000];
	struct pollfd any[64];
	for (int i = 0; i < workers; i++) {
		fds[i] = dial(0);
		any[i] = (struct pollfd){ fds[i], POLLIN, 0 };
	}
	for (int n = 0; n < count; n++) {
		size_t size = p4(out, (size_t)(n * 37 % 1500), 'a' + n % 26);
		for (int i = 0; i < workers; i++)
			send_all(fds[i], out, size);
		for (int left = workers; left > 0;) {
			check(poll(any, (nfds_t)workers, -1) > 0, "poll");
			for (int i = 0; i < workers; i++)
				if (any[i].revents && left > 0) {
					take_all(fds[i], in, size);
					good += memcmp(in, out, size) == 0;
					left--;
				}
		}
	}
	printf("%d good\n", good);
}

int main(int argc, char **argv)
{
	check(argc >= 4, "usage");
	hang_guard(argv[1]);
	address = argv[2];
	workers = atoi(argv[3]);
	count = argc > 4 ? atoi(argv[4]) : 0;
	length = argc > 5 ? atoi(argv[5]) : 0;
	const char *mode = argv[1];
	if (!strcmp(mode, "reuse")) {
		for (int i = 0; i < workers; i++)
			spawn(reuse, (void *)(intptr_t)listener(1));
		listening();
		until_told();
	} else if (!strcmp(mode, "one")) {
		int s = listener(0);
		for (int i = 0; i < workers; i++)
			spawn(one, (void *)(intptr_t)s);
		listening();
		until_told();
	} else if (!strcmp(mode, "fork")) {
		family(listener(0));
		listening();
		until_told();
	} else if (!strcmp(mode, "udp")) {
		udp();
	} else if (!strcmp(mode, "group")) {
		group();
		listening();
		until_told();
	} else if (!strcmp(mode, "kcm")) {
		serve_kcm();
	} else if (!strcmp(mode, "hoard")) {
		listener(0);
		listening();
		until_told();
	} else if (!strcmp(mode, "crowd")) {
		for (int i = 0; i < workers; i++)
			dial(0);
		listening();
		until_told();
	} else if (!strcmp(mode, "dial")) {
		clients();
	} else if (!strcmp(mode, "fixed")) {
		base = 20000;
		clients();
	} else if (!strcmp(mode, "ping")) {
		ping();
	} else if (!strcmp(mode, "knock")) {
		knock();
	} else if (!strcmp(mode, "tell")) {
		tell();
	} else if (!strcmp(mode, "ask")) {
		ask();
	}
	return 0;
}
