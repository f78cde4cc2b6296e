/*
 * rx_kcm.c - receives on KCM sockets, as kcm.rst shows it.
 *
 *   -m recvmsg | recvmmsg    one message a call, or up to 64
 *   -c N -k K -t T           N connections in one multiplexor, K KCM sockets (clones) on it, T receiving threads
 *
 * One socket and one thread: plain blocking calls. More: each thread has its share of the sockets in an epoll set and
 * empties a ready socket without blocking.
 */
#define _GNU_SOURCE
#include "kcm_user.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>

#define MESSAGES_PER_CALL 64u
#define KCMS_MAX 16
#define THREADS_MAX 8
#define LINE_BYTES 128 /* what two threads write to lies this far apart: lines are fetched in pairs */
#define DONE_LOOK_MS 20 /* how often an idle thread looks whether the others have finished */

struct receiver {
	_Alignas(LINE_BYTES) pthread_t thread;
	int epfd;
	unsigned batch; /* messages a recvmmsg may return; 1 means recvmsg */
	struct mmsghdr headers[MESSAGES_PER_CALL];
	struct iovec iovecs[MESSAGES_PER_CALL];
	struct tally tallies[KCMS_MAX]; /* one a socket: order holds within a socket only */
};

static int kcms[KCMS_MAX];
static unsigned conns;
static atomic_ullong received, announced; /* messages, by all threads */
static atomic_uint ended;                 /* connections whose END has come */
static _Atomic double start, finish;

static void receiver_init(struct receiver *receiver, const char *mode, size_t message_bytes)
{
	size_t apart = (message_bytes + LINE_BYTES - 1) / LINE_BYTES * LINE_BYTES;

	memset(receiver, 0, sizeof *receiver);
	receiver->batch = !strcmp(mode, "recvmmsg") ? MESSAGES_PER_CALL : 1;
	for (unsigned i = 0; i < receiver->batch; i++) {
		receiver->iovecs[i].iov_base = aligned_alloc(LINE_BYTES, apart);
		receiver->iovecs[i].iov_len = message_bytes;
		receiver->headers[i].msg_hdr.msg_iov = &receiver->iovecs[i];
		receiver->headers[i].msg_hdr.msg_iovlen = 1;
		if (!receiver->iovecs[i].iov_base)
			die("aligned_alloc");
	}
}

/* One receive call on `kcm`, every message it returned tallied. Returns how many, or 0 when there was none to have. */
static unsigned receive(struct receiver *receiver, int kcm, int flags, struct tally *tally)
{
	int count;

	if (receiver->batch == 1) {
		ssize_t n = recvmsg(kcm, &receiver->headers[0].msg_hdr, flags);

		if (n < 0) {
			if (errno == EAGAIN)
				return 0;
			die("recvmsg");
		}
		tally_message(tally, receiver->iovecs[0].iov_base, (size_t)n);
		return 1;
	}
	/* Without MSG_WAITFORONE a blocking recvmmsg waits until all 64 have come. */
	count = recvmmsg(kcm, receiver->headers, receiver->batch, flags | MSG_WAITFORONE, NULL);
	if (count < 0) {
		if (errno == EAGAIN)
			return 0;
		die("recvmmsg");
	}
	for (int i = 0; i < count; i++)
		tally_message(tally, receiver->iovecs[i].iov_base, receiver->headers[i].msg_len);
	return (unsigned)count;
}

static double receive_alone(struct receiver *receiver)
{
	struct tally *tally = &receiver->tallies[0];

	receive(receiver, kcms[0], 0, tally);
	start = now_seconds();
	while (tally->ends < conns)
		receive(receiver, kcms[0], 0, tally);
	return now_seconds() - start;
}

static int all_received(void)
{
	return atomic_load(&ended) == conns && atomic_load(&received) >= atomic_load(&announced);
}

/* Empties one ready socket and publishes what came. */
static void drain(struct receiver *receiver, unsigned which)
{
	struct tally *tally = &receiver->tallies[which];
	struct tally before = *tally;

	while (receive(receiver, kcms[which], MSG_DONTWAIT, tally) > 0)
		;
	atomic_fetch_add(&announced, tally->expected_count - before.expected_count);
	atomic_fetch_add(&ended, tally->ends - before.ends);
	atomic_fetch_add(&received, tally->count - before.count);
}

static void *receiver_main(void *arg)
{
	struct receiver *receiver = arg;
	struct epoll_event events[KCMS_MAX];

	while (!all_received()) {
		int ready = epoll_wait(receiver->epfd, events, KCMS_MAX, DONE_LOOK_MS);
		double none = 0;

		if (ready > 0)
			atomic_compare_exchange_strong(&start, &none, now_seconds());
		for (int i = 0; i < ready; i++)
			drain(receiver, events[i].data.u32);
		if (all_received()) {
			none = 0;
			atomic_compare_exchange_strong(&finish, &none, now_seconds());
		}
	}
	return NULL;
}

static double receive_together(struct receiver *receivers, const struct options *opt)
{
	for (int i = 0; i < opt->threads; i++)
		if ((receivers[i].epfd = epoll_create1(0)) < 0)
			die("epoll_create1");
	for (int i = 0; i < opt->sockets; i++) {
		struct epoll_event event = { .events = EPOLLIN, .data.u32 = (uint32_t)i };

		if (epoll_ctl(receivers[i % opt->threads].epfd, EPOLL_CTL_ADD, kcms[i], &event) < 0)
			die("epoll_ctl");
	}
	for (int i = 0; i < opt->threads; i++)
		if (pthread_create(&receivers[i].thread, NULL, receiver_main, &receivers[i]))
			die("pthread_create");
	for (int i = 0; i < opt->threads; i++)
		pthread_join(receivers[i].thread, NULL);
	return finish - start;
}

int main(int argc, char **argv)
{
	static struct receiver receivers[THREADS_MAX];
	struct options opt = parse_options(argc, argv, "recvmsg");
	int fds[WIRE_CONNS_MAX], parser = load_parser();
	struct tally all = { 0 };

	if (opt.conns > WIRE_CONNS_MAX || opt.sockets > KCMS_MAX || opt.threads > THREADS_MAX)
		return 2;
	conns = (unsigned)opt.conns;
	for (int i = 0; i < opt.threads; i++)
		receiver_init(&receivers[i], opt.mode, opt.size);
	struct peer peer = connect_peer(argv[0], "peer", "source", &opt, fds);

	kcms[0] = kcm_open();
	for (int i = 1; i < opt.sockets; i++)
		kcms[i] = kcm_clone(kcms[0]);
	for (int i = 0; i < opt.conns; i++)
		kcm_attach(kcms[0], fds[i], parser);
	double seconds = opt.sockets == 1 && opt.threads == 1 ? receive_alone(&receivers[0])
							      : receive_together(receivers, &opt);

	for (int i = 0; i < opt.threads; i++)
		for (int k = 0; k < opt.sockets; k++)
			tally_merge(&all, &receivers[i].tallies[k]);
	for (int i = 0; i < opt.sockets; i++)
		close(kcms[i]);
	for (int i = 0; i < opt.conns; i++)
		close(fds[i]);
	reap_peer(&peer);
	return report_rate(&all, conns, seconds);
}
