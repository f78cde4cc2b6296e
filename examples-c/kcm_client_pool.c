/* SPDX-License-Identifier: MIT */
/*
 * kcm_client_pool - many threads call a service over a few shared TCP connections.
 *
 *     cc -O2 kcm_client_pool.c -o kcm_client_pool -pthread
 *     ./kcm_client_pool -p port [-c connections] [-t threads] [-n calls per thread]
 *
 * Expected output against kcm_echo_server (bytes vary); exit status 1 if an answer
 * is missing or wrong:
 *
 *     kcm_client_pool: 8 threads, 1000 calls each, 4 connections
 *     8000 answered, 0 wrong
 *     connection 0 carried 48001 bytes
 *     connection 1 carried 47977 bytes
 *     ...
 *
 * The usual pool locks a connection per call, or keeps a write lock and a reader
 * thread on each.  Here the multiplexor is the pool.  A send takes any connection
 * that is free and is atomic, so callers need no lock among each other; when the
 * send queue is empty connections take turns.
 *
 * Answers come in any order and on any connection, so a call carries an id.  They
 * also reach any KCM socket of the multiplexor: callers send on clones that
 * KCM_RECV_DISABLE keeps out of reception, and one thread receives for all.
 */
#define _GNU_SOURCE
#include "../c-header/kcm.h"
#include "../c-header/kcm_parser.h"

#include <arpa/inet.h>
#include <inttypes.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <time.h>

enum { CONNECTIONS_MAX = 256, THREADS_MAX = 1024, PATIENCE_S = 10 };

/* On the wire: big-endian length of the rest, then the call; echoed as it is. */
struct call {
	uint32_t length;
	uint32_t caller; /* which thread, an index */
	uint64_t number; /* which of its calls */
	uint64_t payload;
};

struct caller {
	pthread_t thread;
	struct pool *pool;
	uint32_t index;
	int kcm; /* a clone that only sends */
	unsigned long answered, wrong;

	pthread_mutex_t lock; /* guards the two below */
	pthread_cond_t arrived;
	int has_answer;
	struct call answer;
};

struct pool {
	int kcm; /* the KCM socket that receives */
	int connections, threads;
	unsigned long calls;
	int tcp[CONNECTIONS_MAX];
	struct caller *callers;
};

static void die(const char *what)
{
	fprintf(stderr, "kcm_client_pool: %s: %s (errno %d)\n", what, strerror(errno), errno);
	exit(1);
}

static int connect_to(int port)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port) };
	int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		die("socket(AF_INET)");
	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (connect(fd, (struct sockaddr *)&address, sizeof address))
		die("connect");
	if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one))
		die("setsockopt(TCP_NODELAY)");
	return fd;
}

static void open_pool(struct pool *pool, int port)
{
	struct kcm_length field = { .width = 4, .adjust = 4, .least = sizeof(struct call), .most = sizeof(struct call) };
	struct kcm_attach attach;
	int i;

	pool->kcm = socket(AF_KCM, SOCK_DGRAM, KCMPROTO_CONNECTED);
	if (pool->kcm < 0)
		die("socket(AF_KCM)");
	attach.bpf_fd = kcm_parser_open_length(&field);
	if (attach.bpf_fd < 0)
		die("bpf(BPF_PROG_LOAD)");
	for (i = 0; i < pool->connections; i++) {
		attach.fd = pool->tcp[i] = connect_to(port);
		if (ioctl(pool->kcm, SIOCKCMATTACH, &attach))
			die("ioctl(SIOCKCMATTACH)");
	}
	close(attach.bpf_fd);
}

/* Hands each answer to the thread that waits for it. */
static void *receive_answers(void *argument)
{
	struct pool *pool = argument;
	struct call answer;

	for (;;) {
		ssize_t size = recv(pool->kcm, &answer, sizeof answer, 0);

		if (size < 0 && errno == EINTR)
			continue;
		if (size < 0)
			die("recv(KCM)");
		if (size == sizeof answer && answer.caller < (uint32_t)pool->threads) {
			struct caller *caller = &pool->callers[answer.caller];

			pthread_mutex_lock(&caller->lock);
			caller->answer = answer;
			caller->has_answer = 1;
			pthread_cond_signal(&caller->arrived);
			pthread_mutex_unlock(&caller->lock);
		}
	}
	return NULL; /* the loop ends with the process */
}

/* One remote call.  Returns 0 if no answer came in time. */
static int call(struct caller *self, struct call *exchange)
{
	struct timespec deadline;
	int error = 0;

	clock_gettime(CLOCK_REALTIME, &deadline);
	deadline.tv_sec += PATIENCE_S;
	/* On SOCK_DGRAM every send without MSG_MORE is a whole message. */
	if (send(self->kcm, exchange, sizeof *exchange, 0) != sizeof *exchange)
		die("send(KCM)");
	pthread_mutex_lock(&self->lock);
	while (!self->has_answer && !error)
		error = pthread_cond_timedwait(&self->arrived, &self->lock, &deadline);
	*exchange = self->answer;
	self->has_answer = 0;
	pthread_mutex_unlock(&self->lock);
	return error == 0;
}

static void *make_calls(void *argument)
{
	struct caller *self = argument;
	unsigned long i;

	for (i = 0; i < self->pool->calls; i++) {
		uint64_t payload = (uint64_t)self->index << 32 | i;
		struct call exchange = { htonl(sizeof exchange - 4), self->index, i, payload };

		if (!call(self, &exchange))
			break;
		self->answered++;
		self->wrong += exchange.number != i || exchange.payload != payload;
	}
	return NULL;
}

static void start_caller(struct pool *pool, int index)
{
	struct caller *caller = &pool->callers[index];
	struct kcm_clone clone = { .fd = -1 };
	int one = 1;

	if (ioctl(pool->kcm, SIOCKCMCLONE, &clone))
		die("ioctl(SIOCKCMCLONE)");
	if (setsockopt(clone.fd, SOL_KCM, KCM_RECV_DISABLE, &one, sizeof one))
		die("setsockopt(KCM_RECV_DISABLE)");
	caller->pool = pool;
	caller->index = (uint32_t)index;
	caller->kcm = clone.fd;
	pthread_mutex_init(&caller->lock, NULL);
	pthread_cond_init(&caller->arrived, NULL);
	errno = pthread_create(&caller->thread, NULL, make_calls, caller);
	if (errno)
		die("pthread_create");
}

/* What each TCP socket sent: the descriptors stay ours beneath the multiplexor. */
static void report_connections(const struct pool *pool)
{
	int i;

	for (i = 0; i < pool->connections; i++) {
		struct tcp_info info;
		socklen_t size = sizeof info;

		memset(&info, 0, sizeof info);
		if (getsockopt(pool->tcp[i], IPPROTO_TCP, TCP_INFO, &info, &size))
			die("getsockopt(TCP_INFO)");
		printf("connection %d carried %" PRIu64 " bytes\n", i, (uint64_t)info.tcpi_bytes_acked);
	}
}

static int usage(void)
{
	fprintf(stderr, "usage: kcm_client_pool -p port [-c connections] [-t threads] [-n calls per thread]\n");
	return 2;
}

int main(int argc, char **argv)
{
	/* Static: threads still use it while main() has returned and exit() runs. */
	static struct pool pool = { .connections = 4, .threads = 8, .calls = 1000 };
	unsigned long answered = 0, wrong = 0;
	pthread_t receiver;
	int option, i, port = 0;

	while ((option = getopt(argc, argv, "p:c:t:n:")) != -1) {
		switch (option) {
		case 'p': port = atoi(optarg); break;
		case 'c': pool.connections = atoi(optarg); break;
		case 't': pool.threads = atoi(optarg); break;
		case 'n': pool.calls = strtoul(optarg, NULL, 10); break;
		default: return usage();
		}
	}
	if (!port || pool.connections < 1 || pool.connections > CONNECTIONS_MAX || pool.threads < 1 ||
	    pool.threads > THREADS_MAX)
		return usage();
	signal(SIGPIPE, SIG_IGN);
	open_pool(&pool, port);
	pool.callers = calloc((size_t)pool.threads, sizeof *pool.callers);
	if (!pool.callers)
		die("calloc");
	printf("kcm_client_pool: %d threads, %lu calls each, %d connections\n", pool.threads, pool.calls,
	       pool.connections);
	fflush(stdout);

	errno = pthread_create(&receiver, NULL, receive_answers, &pool);
	if (errno)
		die("pthread_create");
	for (i = 0; i < pool.threads; i++)
		start_caller(&pool, i);
	for (i = 0; i < pool.threads; i++) {
		pthread_join(pool.callers[i].thread, NULL);
		answered += pool.callers[i].answered;
		wrong += pool.callers[i].wrong;
	}
	printf("%lu answered, %lu wrong\n", answered, wrong);
	report_connections(&pool);
	return wrong || answered != pool.calls * (unsigned long)pool.threads;
}
