/* stack_queues SHAPE ADDRESS THREADS     an echo server of one of the shapes below; says "ready", serves until
 *                                        its input ends, then says how many peers each of its threads had
 * stack_queues call ADDRESS THREADS CONNECTIONS   as many threads, each of which connects, talks and closes
 * stack_queues ask ADDRESS THREADS QUESTIONS      as many UDP sockets, each of which asks and is answered
 * stack_queues flows ADDRESS THREADS FLOWS        each thread has so many UDP sockets, which ask one port in turn:
 *                                                 always the same thread answers each
 *
 * What programs with several threads do with their sockets, so that engines in several threads have to get
 * along: whose thread accepts, whose reads, and who waits for what is different in each shape. */
#include "check.h"

#include <stdatomic.h>

enum { PORT = 7, THREADS_MAX = 16, EVENTS = 16, MESSAGE_MAX = 20000, ROUNDS = 5 };

static struct sockaddr_in address;
static int threads;

static struct worker {
	pthread_t thread;
	int number;
	int listener;
	int epoll;
	int peers;
} workers[THREADS_MAX];

static atomic_int ends;

static void give_up(int line, const char *what)
{
	/* What threads find while the process ends is nobody's business. */
	while (ends)
		pause();
	printf("%s:%d: %s (errno %s)\n", __FILE__, line, what, errno_name(errno));
	exit(1);
}

/* CHECK, in threads that serve until the end. */
#define SERVE(condition) ((condition) ? (void)0 : give_up(__LINE__, #condition))

static int listener(int shares_port)
{
	int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
	CHECK(fd >= 0);
	CHECK(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) == 0);
	if (shares_port)
		CHECK(setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &one, sizeof one) == 0);
	CHECK(bind(fd, (void *)&address, sizeof address) == 0);
	CHECK(listen(fd, 512) == 0);
	return fd;
}

static void had(struct worker *w)
{
	__atomic_add_fetch(&w->peers, 1, __ATOMIC_RELAXED);
}

static void send_all(int fd, const char *data, size_t len)
{
	while (len > 0) {
		ssize_t n = send(fd, data, len, MSG_NOSIGNAL);
		if (n < 0 && errno == EAGAIN) {
			struct pollfd full = { fd, POLLOUT, 0 };
			SERVE(poll(&full, 1, -1) == 1);
			continue;
		}
		SERVE(n > 0);
		data += n;
		len -= n;
	}
}

/* Sends back what is there. Whether the peer is done. */
static int echo(int fd)
{
	char data[1 << 16];
	ssize_t n = recv(fd, data, sizeof data, 0);
	if (n < 0 && errno == EAGAIN)
		return 0;
	SERVE(n >= 0);
	send_all(fd, data, n);
	if (n == 0)
		close(fd);
	return n == 0;
}

static void watch(int epoll, int fd, unsigned events)
{
	struct epoll_event e = { .events = events, .data.fd = fd };
	SERVE(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &e) == 0);
}

/* Serves what its epoll set says, its listener among it if it has one. */
static void *serve_events(void *argument)
{
	struct worker *w = argument;
	for (;;) {
		struct epoll_event events[EVENTS];
		int n = epoll_wait(w->epoll, events, EVENTS, -1);
		SERVE(n > 0 || errno == EINTR); /* stopped and continued */
		for (int i = 0; i < n; i++) {
			if (events[i].data.fd != w->listener) {
				echo(events[i].data.fd);
				continue;
			}
			int fd = accept4(w->listener, NULL, NULL, SOCK_NONBLOCK);
			if (fd < 0) {
				SERVE(errno == EAGAIN);
				continue;
			}
			had(w);
			watch(w->epoll, fd, EPOLLIN);
		}
	}
	return NULL;
}

/* One thread accepts, in a call that blocks, for all others. */
static void *hand_out(void *argument)
{
	for (int next = 0;; next = (next + 1) % threads) {
		int fd = accept4(*(int *)argument, NULL, NULL, SOCK_NONBLOCK);
		SERVE(fd >= 0);
		had(&workers[next]);
		watch(workers[next].epoll, fd, EPOLLIN);
	}
	return NULL;
}

static void *serve_one(void *argument)
{
	while (!echo((int)(long)argument))
		;
	return NULL;
}

/* All threads block in accept; a connection has a thread of its own. */
static void *serve_blocking(void *argument)
{
	struct worker *w = argument;
	for (;;) {
		int fd = accept(w->listener, NULL, NULL);
		SERVE(fd >= 0);
		had(w);
		pthread_t thread;
		SERVE(pthread_create(&thread, NULL, serve_one, (void *)(long)fd) == 0);
		SERVE(pthread_detach(thread) == 0);
	}
	return NULL;
}

/* One thread, one poll over everything. */
static void *serve_polled(void *argument)
{
	static struct pollfd fds[1024];
	struct worker *w = argument;
	int count = 1;
	fds[0] = (struct pollfd){ w->listener, POLLIN, 0 };
	for (;;) {
		SERVE(poll(fds, count, -1) > 0);
		for (int i = count - 1; i > 0; i--) {
			if (fds[i].revents && echo(fds[i].fd))
				fds[i] = fds[--count];
		}
		if (!fds[0].revents)
			continue;
		int fd = accept4(w->listener, NULL, NULL, SOCK_NONBLOCK);
		if (fd < 0) {
			SERVE(errno == EAGAIN);
			continue;
		}
		had(w);
		SERVE(count < 1024);
		fds[count++] = (struct pollfd){ fd, POLLIN, 0 };
	}
	return NULL;
}

/* Sends datagrams back. */
static void *serve_datagrams(void *argument)
{
	struct worker *w = argument;
	for (;;) {
		char data[2048];
		struct sockaddr_in from;
		socklen_t len = sizeof from;
		ssize_t n = recvfrom(w->listener, data, sizeof data, 0, (void *)&from, &len);
		SERVE(n >= 0);
		had(w);
		SERVE(sendto(w->listener, data, n, 0, (void *)&from, len) == n);
	}
	return NULL;
}

static int datagram_socket(int number)
{
	struct sockaddr_in here = address;
	here.sin_port = htons(PORT + number);
	int fd = socket(AF_INET, SOCK_DGRAM, 0);
	CHECK(fd >= 0 && bind(fd, (void *)&here, sizeof here) == 0);
	return fd;
}

/* One of those that share a port. */
static int grouped_socket(void)
{
	int one = 1, fd = socket(AF_INET, SOCK_DGRAM, 0);
	CHECK(fd >= 0 && setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &one, sizeof one) == 0);
	CHECK(bind(fd, (void *)&address, sizeof address) == 0);
	return fd;
}

struct question {
	int number, answered_by;
};

/* Answers who it is. A peer is counted by its first question. */
static void *serve_grouped(void *argument)
{
	struct worker *w = argument;
	for (;;) {
		struct question q;
		struct sockaddr_in from;
		socklen_t len = sizeof from;
		SERVE(recvfrom(w->listener, &q, sizeof q, 0, (void *)&from, &len) == sizeof q);
		if (q.number == 0)
			had(w);
		q.answered_by = w->number;
		SERVE(sendto(w->listener, &q, sizeof q, 0, (void *)&from, len) == sizeof q);
	}
	return NULL;
}

static void serve(const char *shape)
{
	int reuse = !strcmp(shape, "reuse"), shared = !strcmp(shape, "shared");
	int handed = !strcmp(shape, "handed"), polled = !strcmp(shape, "polled");
	int datagrams = !strcmp(shape, "datagrams"), blocking = !strcmp(shape, "blocking");
	int grouped = !strcmp(shape, "grouped");
	CHECK(reuse || shared || handed || polled || datagrams || grouped || blocking);
	static int one = -1;
	if (!reuse && !datagrams && !grouped)
		one = listener(0);
	void *(*run)(void *) = datagrams ? serve_datagrams : grouped ? serve_grouped : polled ? serve_polled : blocking ? serve_blocking : serve_events;
	for (int i = 0; i < threads; i++) {
		struct worker *w = &workers[i];
		w->number = i;
		w->listener = reuse ? listener(1) : datagrams ? datagram_socket(i) : grouped ? grouped_socket() : handed ? -1 : one;
		w->epoll = epoll_create1(0);
		if (reuse || shared || polled)
			CHECK(fcntl(w->listener, F_SETFL, O_NONBLOCK) == 0);
		if (reuse || shared)
			watch(w->epoll, w->listener, EPOLLIN | (shared ? EPOLLEXCLUSIVE : 0));
		if (!grouped)
			CHECK(pthread_create(&w->thread, NULL, run, w) == 0);
	}
	/* Flows are spread over the sockets there are when they begin. */
	for (int i = 0; grouped && i < threads; i++)
		CHECK(pthread_create(&workers[i].thread, NULL, run, &workers[i]) == 0);
	pthread_t acceptor;
	if (handed)
		CHECK(pthread_create(&acceptor, NULL, hand_out, &one) == 0);
	printf("ready\n");
	fflush(stdout);
	char byte;
	while (read(0, &byte, 1) > 0)
		;
	ends = 1;
	for (int i = 0; i < threads; i++)
		printf("%d\n", workers[i].peers);
}

static int count;

/* A message of this number, and its length. */
static size_t message(char *data, unsigned number)
{
	size_t len = number * 2654435761u % MESSAGE_MAX + 1;
	for (size_t i = 0; i < len; i++)
		data[i] = (char)(number + i * 7);
	return len;
}

static void *call(void *argument)
{
	static __thread char said[MESSAGE_MAX], heard[MESSAGE_MAX];
	unsigned number = (unsigned)(long)argument * 1000000;
	for (int i = 0; i < count; i++) {
		int fd = socket(AF_INET, SOCK_STREAM, 0);
		CHECK(fd >= 0);
		CHECK(connect(fd, (void *)&address, sizeof address) == 0);
		for (int round = 0; round < ROUNDS; round++) {
			size_t len = message(said, ++number);
			send_all(fd, said, len);
			/* MSG_WAITALL would end early where the process is stopped and goes on. */
			for (size_t got = 0; got < len;) {
				ssize_t n = recv(fd, heard + got, len - got, 0);
				CHECK(n > 0);
				got += n;
			}
			CHECK(memcmp(said, heard, len) == 0);
		}
		CHECK(shutdown(fd, SHUT_WR) == 0);
		CHECK(recv(fd, heard, 1, 0) == 0);
		CHECK(close(fd) == 0);
	}
	return NULL;
}

/* Each thread asks another port; a lost datagram is asked again, and late answers are passed over. */
static void *ask(void *argument)
{
	struct sockaddr_in to = address;
	to.sin_port = htons(PORT + (int)(long)argument);
	struct timeval patience = { 2, 0 };
	int fd = socket(AF_INET, SOCK_DGRAM, 0);
	CHECK(fd >= 0);
	CHECK(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience) == 0);
	for (int i = 0, tries = 0; i < count; tries++) {
		int answer;
		ssize_t got;
		CHECK(tries < count + 10);
		CHECK(sendto(fd, &i, sizeof i, 0, (void *)&to, sizeof to) == sizeof i);
		do
			got = recv(fd, &answer, sizeof answer, 0);
		while (got == sizeof answer && answer != i);
		i += got == sizeof answer;
	}
	return NULL;
}

/* A lost question is asked again, and late answers are passed over. */
static void *ask_in_turn(void *argument)
{
	struct timeval patience = { 2, 0 };
	int *fds = calloc(count, sizeof *fds), *servers = calloc(count, sizeof *servers);
	(void)argument;
	for (int i = 0; i < count; i++) {
		fds[i] = socket(AF_INET, SOCK_DGRAM, 0);
		CHECK(fds[i] >= 0 && connect(fds[i], (void *)&address, sizeof address) == 0);
		CHECK(setsockopt(fds[i], SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience) == 0);
	}
	for (int round = 0; round < ROUNDS; round++) {
		for (int i = 0, tries = 0; i < count; tries++) {
			struct question q = { round, -1 }, answer;
			CHECK(tries < count + 10);
			ssize_t got;
			CHECK(send(fds[i], &q, sizeof q, 0) == sizeof q);
			do
				got = recv(fds[i], &answer, sizeof answer, 0);
			while (got == sizeof answer && answer.number != round);
			if (got != sizeof answer)
				continue;
			CHECK(round == 0 || servers[i] == answer.answered_by);
			servers[i++] = answer.answered_by;
		}
	}
	for (int i = 0; i < count; i++)
		close(fds[i]);
	free(fds);
	free(servers);
	return NULL;
}

int main(int argc, char **argv)
{
	CHECK(argc >= 4);
	hang_guard(argv[1]);
	address = (struct sockaddr_in){ .sin_family = AF_INET, .sin_port = htons(PORT) };
	CHECK(inet_pton(AF_INET, argv[2], &address.sin_addr) == 1);
	threads = atoi(argv[3]);
	CHECK(threads > 0 && threads <= THREADS_MAX);
	int calls = !strcmp(argv[1], "call"), flows = !strcmp(argv[1], "flows");
	if (!calls && !flows && strcmp(argv[1], "ask")) {
		serve(argv[1]);
		return 0;
	}
	CHECK(argc == 5);
	count = atoi(argv[4]);
	pthread_t callers[THREADS_MAX];
	for (long i = 0; i < threads; i++)
		CHECK(pthread_create(&callers[i], NULL, calls ? call : flows ? ask_in_turn : ask, (void *)i) == 0);
	for (int i = 0; i < threads; i++)
		CHECK(pthread_join(callers[i], NULL) == 0);
	return 0;
}
